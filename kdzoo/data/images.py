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
        """Return an encoded image as uint8 (H, W, C); raise DataError that begins with ``name``."""
        image = self.decoded(content, name)
        border = (1 - self.preprocessing.crop_share) / 2
        method = Image.Resampling[self.preprocessing.interpolation.upper()]
        return np.asarray(ImageOps.fit(image, self.preprocessing.size[::-1], method, bleed=border))

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
