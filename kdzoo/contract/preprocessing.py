"""How an encoded image becomes the pixels that a network takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast, get_args

ColorMode = Literal["L", "RGB", "RGBA"]
Resize = Literal["center", "squash", "border"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Decode = Literal["exact", "fast"]

#: Channels of each colour mode.
CHANNELS: Mapping[str, int] = {"L": 1, "RGB": 3, "RGBA": 4}
#: ImageNet's, of pixels in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an encoded image, in this order; whoever uses the student does the same.

    Grey of 16 bits is divided by 257; the image is turned as its EXIF says and converted to ``color_mode``. It is
    resized by Pillow to ``scaled`` = floor(size / crop_share), and its centre of ``size`` is cut out. By ``resize``

    - center: the image keeps its shape, and its shorter side becomes that long;
    - squash: both sides become that long;
    - border: the image keeps its shape and fits in as a whole, and a border in the colour ``mean`` fills the rest.

    These are the steps of timm's evaluation, where ``crop_share`` is ``crop_pct`` and ``resize`` is ``crop_mode``.
    Pixels are then scaled to [0, 1] and normalised by ``mean`` and ``std``, one number a channel.

    With ``decode`` fast, a JPEG is decoded at a half, a quarter or an eighth of its size where that leaves it at least
    twice as large as asked for, and torch resizes it; pixels differ by a few levels of 255. Whoever uses the student
    need not do the same.
    """

    size: tuple[int, int] = (224, 224)  # (H, W)
    crop_share: float = 0.875
    resize: Resize = "center"
    interpolation: Interpolation = "bicubic"
    color_mode: ColorMode = "RGB"
    decode: Decode = "exact"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def channels(self) -> int:
        return CHANNELS[self.color_mode]

    @property
    def scaled(self) -> tuple[int, int]:
        """(H, W) that the image is resized to fit, before its centre is cut out."""
        return math.floor(self.size[0] / self.crop_share), math.floor(self.size[1] / self.crop_share)

    @property
    def fill(self) -> tuple[int, ...]:
        """The colour of the border, 0 to 255 a channel."""
        return tuple(round(255 * value) for value in self.mean[: self.channels])

    def changed(self, keys: Mapping[str, Any]) -> Preprocessing:
        """Return these steps with some of them set; ``mean`` and ``std`` follow a change of the colour mode.

        A ``size`` may be one number. Grey takes the average over the channels; alpha stays as it is.
        """
        keys = dict(keys)
        if isinstance(keys.get("size"), int):
            keys["size"] = (keys["size"], keys["size"])
        mode: ColorMode = keys.get("color_mode", self.color_mode)
        keys = {"mean": _fitted(self.mean, mode, 0.0), "std": _fitted(self.std, mode, 1.0), **keys}
        changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}
        return replace(self, **changes)

    def same_pixels(self, other: Preprocessing) -> bool:
        """Whether both make the same pixels, before they are normalised."""
        return self.decoding() == other.decoding()

    def decoding(self) -> dict[str, Any]:
        """Return the steps up to the pixels as plain values, for files."""
        return {
            "orientation": "exif",
            "grey_16_bit": "divided by 257",
            "color_mode": self.color_mode,
            "resize": self.resize,
            "crop_share": self.crop_share,
            "scaled": list(self.scaled),
            "size": list(self.size),
            "interpolation": self.interpolation,
            "antialias": self.interpolation != "nearest",  # Pillow always does, where there is a choice
            "library": "Pillow",
            "decode": self.decode,
            **({"fill": list(self.fill)} if self.resize == "border" else {}),
        }

    def record(self) -> dict[str, Any]:
        """Return all steps as plain values, for files."""
        return self.decoding() | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Preprocessing:
        """Return the steps that ``record`` wrote; raise KeyError, TypeError or ValueError for anything else."""
        keys = {field.name: record[field.name] for field in fields(cls)}
        made = cls().changed(keys)
        numbers = [*made.size, made.crop_share, *made.mean, *made.std]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError("numbers that are none")
        if min(made.size) < 1 or not 0 < made.crop_share <= 1 or min(made.std) <= 0:
            raise ValueError("numbers out of range")
        if len(made.mean) != len(made.std) or made.color_mode not in CHANNELS:
            raise ValueError("a colour mode without its numbers")
        if made.resize not in get_args(Resize) or made.interpolation not in get_args(Interpolation):
            raise ValueError("an unknown way of resizing")
        if made.decode not in get_args(Decode):
            raise ValueError("an unknown way of decoding")
        return made

    def sentence(self) -> str:
        """Say the steps up to the pixels in words, for people."""
        height, width = self.scaled
        target = f"{height}x{width}"
        way = {
            "center": f"so that the shorter side is {height}" if height == width else f"to cover {target}",
            "squash": f"to {target}, whatever their shape",
            "border": f"to fit into {target}, the rest filled with {_colour(self.fill)}",
        }[self.resize]
        cut = (
            ""
            if self.resize != "center" and self.scaled == self.size
            else (f", cut to their central {self.size[0]}x{self.size[1]}")
        )
        fast = "" if self.decode == "exact" else ", here decoded fast, a few levels of 255 from these pixels"
        return (
            f"turned by EXIF, converted to {self.color_mode}, resized {way} ({self.interpolation}, Pillow){cut}{fast}"
        )


def _fitted(numbers: Sequence[float], mode: ColorMode, of_alpha: float) -> tuple[float, ...]:
    """Return numbers of each channel for another colour mode."""
    if len(numbers) == CHANNELS[mode]:
        return tuple(numbers)
    colours = tuple(numbers[:3]) if len(numbers) > 1 else (numbers[0],) * 3
    if mode == "L":
        return (round(sum(colours) / 3, 6),)
    return colours if mode == "RGB" else (*colours, of_alpha)


def color_mode_of(channels: int) -> ColorMode:
    """Return the colour mode of a number of channels; raise ValueError where there is none."""
    for mode, count in CHANNELS.items():
        if count == channels:
            return cast("ColorMode", mode)
    raise ValueError(f"{channels} channels are those of no colour mode: {', '.join(CHANNELS)}")


def _colour(fill: Sequence[int]) -> str:
    return "/".join(map(str, fill))
