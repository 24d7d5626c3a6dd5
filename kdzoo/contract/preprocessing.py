"""How an image file becomes the pixels of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image file, in this order; whoever uses the student does the same.

    Grey of 16 bits is divided by 257; the image is turned as its EXIF says, converted to ``color_mode``, cut to its
    central square, whose side is ``crop_share`` of the image's shorter side, and resized. Normalisation follows; it is
    each network's own. Modes and interpolations have Pillow's names.
    """

    size: tuple[int, int]  # (H, W) after resizing
    crop_share: float
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    color_mode: Literal["RGB", "L"] = "RGB"
    orientation: Literal["exif"] = "exif"

    def record(self) -> dict[str, Any]:
        """Return it as plain values, for files."""
        return {
            "orientation": self.orientation,
            "color_mode": self.color_mode,
            "grey_16_bit": "divided by 257",
            "crop": "central square",
            "crop_share": self.crop_share,
            "resize": list(self.size),
            "interpolation": self.interpolation,
            "library": "Pillow",
        }

    def sentence(self) -> str:
        """Say it in words, for people."""
        kept = "the central square" if self.crop_share == 1 else f"the central {100 * self.crop_share:g} % square"
        return (
            f"turned by EXIF, converted to {self.color_mode}, cut to {kept} of the shorter side, resized to "
            f"{self.size[0]}x{self.size[1]} ({self.interpolation}, Pillow)"
        )
