"""Decoding of image files: formats, limits, orientation, colour mode, and the steps to the pixels of a sample."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import Image, ImageOps

from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.errors import DataError

#: What is decoded, by Pillow's name of the format.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


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
        return f"{self.max_megapixels:g} megapixels, Pillow {PIL.__version__}"

    def pixels(self, content: bytes, name: str) -> np.ndarray:
        """Return an encoded image as evaluation sees it, uint8 (H, W, C); raise DataError that begins with ``name``."""
        image = framed(self.decoded(content, name), self.preprocessing)
        pixels = np.asarray(image)
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def decoded(self, content: bytes, name: str) -> Image.Image:
        """Return an encoded image, upright and in the right colour mode; raise DataError that begins with ``name``."""
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > self.max_megapixels * 1e6:
                    raise DataError(
                        f"{name}: {width} x {height} pixels are more than data.max_megapixels: {self.max_megapixels:g}"
                    )
                upright = _eight_bits(ImageOps.exif_transpose(image), name)
                return upright.convert(self.preprocessing.color_mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # whatever a codec raises
            raise DataError(f"{name}: cannot be read as an image: {error}") from error


def framed(image: Image.Image, steps: Preprocessing) -> Image.Image:
    """Resize and cut an image as ``steps`` say, in timm's order and with its rounding."""
    size = fitted_size(image.size, steps)
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
