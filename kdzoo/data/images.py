"""Decoding of image files: formats, limits, orientation, colour mode, and the steps to the pixels of a sample."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.errors import DataError

#: What is decoded, by Pillow's name of the format.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
#: How many times larger than asked for evaluation decodes a JPEG at least, unless in full: the resizing after it then
#: decides how sharp the pixels are. With 1, pixels are off by twice as much, and here and there by 70 levels.
LEFT_TO_RESIZE = 2
#: The EXIF tag of how an image is turned, and those of its values that exchange width and height.
ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Decoder:
    """Makes pixels of encoded images; worker processes get a copy.

    An image of more than ``max_megapixels`` is an error: it may be made to fill the memory.
    """

    preprocessing: Preprocessing
    max_megapixels: float

    @property
    def rules(self) -> str:
        """What decides whether an image can be decoded, in addition to its content."""
        return f"{self.max_megapixels:g} megapixels, Pillow {PIL.__version__}, {self.preprocessing.decode}"

    def pixels(self, content: bytes, name: str) -> np.ndarray:
        """Return an encoded image as evaluation sees it, uint8 (H, W, C); raise DataError that begins with ``name``."""
        steps = self.preprocessing
        if steps.decode == "exact":
            return array_of(framed(self.decoded(content, name), steps))

        def spare(size: tuple[int, int]) -> float:
            wanted = fitted_size(size, steps)
            return min(size[0] / wanted[0], size[1] / wanted[1]) / LEFT_TO_RESIZE

        shrunk, size = self.shrunk(content, name, spare)
        fitted, (height, width) = fitted_size(size, steps), steps.size
        if fitted[0] < width or fitted[1] < height or not quick(steps.color_mode, steps.interpolation):
            return array_of(framed(image_of(shrunk), steps, fitted))
        left, top = round((fitted[0] - width) / 2), round((fitted[1] - height) / 2)
        return quickly_resized(shrunk, fitted, steps.interpolation)[top : top + height, left : left + width]

    def decoded(self, content: bytes, name: str) -> Image.Image:
        """Return an encoded image, upright and in the right colour mode; raise DataError that begins with ``name``."""
        with self._opened(content, name) as image:
            return self._upright(image, name)

    def shrunk(
        self, content: bytes, name: str, spare: Callable[[tuple[int, int]], float]
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the pixels of ``decoded``, (H, W, C), and the full size (W, H); a JPEG may come smaller than that.

        ``spare`` gets the full size and says how many times smaller the image may be: to a half, a quarter or an eighth
        libjpeg decodes without the finest waves of each block, which is faster than decoding and resizing all.
        """
        with self._opened(content, name) as image:
            (width, height), turned = image.size, image.getexif().get(ORIENTATION, 1)
            size = (height, width) if turned in LYING else (width, height)
            most = spare(size)
            factor = max(power for power in (1, 2, 4, 8) if power == 1 or power <= most)
            if factor > 1:
                image.draft(None, (width // factor, height // factor))  # of no effect on other formats
            plain = image.format == "JPEG" and image.mode == self.preprocessing.color_mode == "RGB" and turned in (0, 1)
            if factor == 1 and plain and (pixels := _jpeg(content)) is not None:
                return pixels, size
            return array_of(self._upright(image, name)), size

    @contextmanager
    def _opened(self, content: bytes, name: str) -> Iterator[Image.Image]:
        """Open an image that is not too large; raise DataError for whatever a codec raises inside."""
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > self.max_megapixels * 1e6:
                    raise DataError(
                        f"{name}: {width} x {height} pixels are more than data.max_megapixels: {self.max_megapixels:g}"
                    )
                yield image
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{name}: cannot be read as an image: {error}") from error

    def _upright(self, image: Image.Image, name: str) -> Image.Image:
        ImageOps.exif_transpose(image, in_place=True)
        upright, mode = _eight_bits(image, name), self.preprocessing.color_mode
        upright.load()
        return upright if upright.mode == mode else upright.convert(mode)


def framed(image: Image.Image, steps: Preprocessing, size: tuple[int, int] | None = None) -> Image.Image:
    """Resize and cut an image as ``steps`` say, in timm's order and with its rounding.

    ``size`` is what ``fitted_size`` says of the full image; None: this is the full one.
    """
    size = size or fitted_size(image.size, steps)
    if size != image.size:
        image = image.resize(size, Image.Resampling[steps.interpolation.upper()])
    height, width = steps.size
    if size[0] < width or size[1] < height:  # only a border leaves room
        fill = steps.fill if len(steps.fill) > 1 else steps.fill[0]
        image = ImageOps.expand(image, _margins(size, (width, height)), fill)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def fitted_size(size: tuple[int, int], steps: Preprocessing) -> tuple[int, int]:
    """Return (W, H) that an image of ``size`` (W, H) is resized to, before its centre is cut out."""
    width, height = size
    scaled = steps.scaled
    if steps.resize == "squash":
        return scaled[1], scaled[0]
    if steps.resize == "center" and scaled[0] == scaled[1]:
        side = scaled[0]
        return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    ratios = height / scaled[0], width / scaled[1]
    ratio = max(ratios) if steps.resize == "border" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def quick(color_mode: str, interpolation: str) -> bool:
    """Whether torch resizes as Pillow does, but for rounding."""
    return color_mode != "RGBA" and interpolation in ("bilinear", "bicubic")


def quickly_resized(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize uint8 (H, W, C) to ``size`` (W, H) by torch, whose weights have fewer bits than Pillow's.

    A few pixels of a thousand come out one level, rarely two, from Pillow's, in a quarter of the time.
    """
    if pixels.shape[1::-1] == size:
        return pixels
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]  # channels last throughout
    resized = functional.interpolate(images, (size[1], size[0]), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _jpeg(content: bytes) -> np.ndarray | None:
    """Decode a JPEG in colours to the bits that Pillow gives, in three quarters of its time.

    None where torchvision cannot, or no longer can, as its decoders are on their way out: then Pillow does.
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        image: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except (ImportError, RuntimeError):
        return None
    return image.permute(1, 2, 0).numpy()


def array_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image, (H, W, C)."""
    pixels = np.array(image)  # a copy, as torch takes no memory that it may not write to
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def image_of(pixels: np.ndarray) -> Image.Image:
    """Return pixels (H, W, C) as an image of 1, 3 or 4 channels."""
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def _margins(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return what is missing left, top, right and bottom; an odd pixel goes to the end."""
    missing = [max(0, wanted - got) for got, wanted in zip(size, target, strict=True)]
    return missing[0] // 2, missing[1] // 2, (missing[0] + 1) // 2, (missing[1] + 1) // 2


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Return grey of 16 bits as grey of 8, so that 257 v becomes v; Pillow itself would cut all above 255 to white."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "floats"
        raise DataError(
            f"{name}: holds {kind}, and no scale that says what is white; an image of 8 or 16 bits would be right"
        )
    return image
