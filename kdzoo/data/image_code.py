"""Python that turns an image file into pixels, for users of a student; it needs Pillow and numpy alone."""

from __future__ import annotations

from kdzoo.contract.preprocessing import Preprocessing


def image_code(steps: Preprocessing, channels: int, file: str = "your.jpg") -> list[str]:
    """Return lines that end with ``pixels``, float32 (1, ``channels``, H, W) in [0, 1].

    They are ``kdzoo.data.images`` spelled out for one way of resizing.
    """
    height, width = steps.size
    method = f"Image.Resampling.{steps.interpolation.upper()}"
    mode = repr(steps.color_mode)
    lines = [
        f"image = ImageOps.exif_transpose(Image.open({file!r}))",
        "if image.mode.startswith('I;16'):  # grey of 16 bits",
        "    image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))",
        f"image = image.convert({mode})",
        *_resized(steps),
        f"image = image.resize(size, {method})",
    ]
    if steps.resize == "border":
        fill = steps.fill if len(steps.fill) > 1 else steps.fill[0]
        lines += [
            f"missing = [max(0, {width} - size[0]), max(0, {height} - size[1])]",
            "margins = (missing[0] // 2, missing[1] // 2, (missing[0] + 1) // 2, (missing[1] + 1) // 2)",
            f"image = ImageOps.expand(image, margins, {fill!r})",
        ]
    lines += [
        f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)",
        f"image = image.crop((left, top, left + {width}, top + {height}))",
        f"pixels = np.asarray(image, dtype=np.float32).reshape({height}, {width}, -1).transpose(2, 0, 1)[None] / 255",
    ]
    if channels != steps.channels:
        lines.append(f"pixels = np.repeat(pixels, {channels}, axis=1)")
    return lines


def _resized(steps: Preprocessing) -> list[str]:
    """Return lines that end with ``size``, (W, H) to resize ``image`` to."""
    height, width = steps.scaled
    if steps.resize == "squash":
        return [f"size = ({width}, {height})"]
    if steps.resize == "center" and height == width:
        return [
            "short = min(image.size)",
            f"size = tuple({height} if side == short else int({height} * side / short) for side in image.size)",
        ]
    which = "max" if steps.resize == "border" else "min"
    return [
        f"ratio = {which}(image.height / {height}, image.width / {width})",
        "size = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))",
    ]
