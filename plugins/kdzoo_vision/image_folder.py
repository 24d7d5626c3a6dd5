"""Anybody's own images in folders, a folder a class."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from kdzoo.api.data import DataError, DataSource, DataSplits, FileSplit, OfferOptions

#: What is read, by the name's ending and by Pillow's name of the format.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


class ImageFolder(DataSource):
    """Folders train, validation (or val) and test, each with one folder a class.

    Every image is turned as its EXIF says, made RGB, scaled and cut at its centre to a square of ``size``. What cannot
    be read is an error that names the file; no sample is ever left out or replaced. Hidden files are not looked at.
    """

    name = "image_folder"
    description = "your own images, a folder a class"

    class Options(OfferOptions):
        folder: str = Field("", description="Folder of the splits, below the data root.")
        size: int = Field(224, ge=1, le=4096, description="Height and width, pixels.")
        crop_share: float = Field(
            0.875, gt=0, le=1, description="Share of the shorter side that is kept when the centre is cut out."
        )
        train: str = Field("train", description="Folder of the training split.")
        validation: str | None = Field(
            None,
            description="Folder of the validation split; null: validation or val, else a share of train.",
        )
        test: str = Field("test", description="Folder of the test split.")
        mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="Of pixels in [0, 1]; ImageNet's.")
        std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="Of pixels in [0, 1]; ImageNet's.")
        max_megapixels: float = Field(
            64.0, gt=0, le=10_000, description="A larger image is an error: it may be made to fill the memory."
        )

    def load(self, root: Path) -> DataSplits:
        """List the files of all splits and check their names; pixels are read when they are needed."""
        options: Any = self.options
        base = (root / options.folder).resolve()
        if not base.is_relative_to(root.resolve()):
            raise DataError(f"data set 'image_folder': '{options.folder}' lies outside of the data root '{root}'")
        names = {"train": options.train, "test": options.test}
        present = [name for name in ("validation", "val") if (base / name).is_dir() and name != options.test]
        if options.validation or present:
            names["validation"] = options.validation or present[0]
        classes: dict[str, tuple[str, ...]] = {}
        splits: dict[str, FileSplit] = {}
        for split, name in names.items():
            classes[split], splits[split] = self._listed(base, name)
            if classes[split] != classes["train"]:
                raise DataError(
                    f"{base / name}: other classes than {options.train}: {_differing(classes['train'], classes[split])}"
                )
        return DataSplits(
            train=splits["train"],
            test=lambda: splits["test"],
            validation=splits.get("validation"),
            classes=classes["train"],
            channels=3,
            size=(options.size, options.size),
            mean=options.mean,
            std=options.std,
            source="own images",
        )

    def _listed(self, base: Path, name: str) -> tuple[tuple[str, ...], FileSplit]:
        folder = base / name
        if not folder.is_dir():
            raise DataError(f"data set 'image_folder': no folder '{folder}'; each of its folders would be a class")
        classes: list[str] = []
        paths: list[Path] = []
        targets: list[int] = []
        for child in _visible(folder):
            if not _inside(child, base).is_dir():
                raise DataError(f"{child}: is no folder; {name} holds one folder a class and nothing else")
            files = [_image(file, base) for file in _visible(child)]
            if not files:
                raise DataError(f"{child}: this class has no images")
            targets += [len(classes)] * len(files)
            classes.append(child.name)
            paths += files
        if not classes:
            raise DataError(f"{folder}: has no folders; each would be a class")
        options: Any = self.options
        reader = Reader(tuple(paths), options.size, options.crop_share, options.max_megapixels)
        split = FileSplit(tuple(map(os.fspath, paths)), np.array(targets), reader.read, reader.digest)
        return tuple(classes), split


@dataclass(frozen=True)
class Reader:
    """Reads the images of one split; worker processes get a copy."""

    paths: tuple[Path, ...]
    size: int
    crop_share: float
    max_megapixels: float

    def read(self, i: int) -> np.ndarray:
        """Return image ``i`` as uint8 (size, size, 3); raise DataError naming the file when it cannot be read."""
        path = self.paths[i]
        try:
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > self.max_megapixels * 1e6:
                    raise DataError(
                        f"{path}: {width} x {height} pixels are more than max_megapixels: {self.max_megapixels:g}"
                    )
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # whatever a codec raises
            raise DataError(f"{path}: cannot be read as an image: {error}") from error
        border = (1 - self.crop_share) / 2
        return np.asarray(ImageOps.fit(upright, (self.size, self.size), Image.Resampling.BICUBIC, bleed=border))

    def digest(self, i: int) -> str:
        """Hash the bytes of file ``i``."""
        try:
            with self.paths[i].open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except OSError as error:
            raise DataError(f"{self.paths[i]}: cannot be read: {error}") from error


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _inside(path: Path, base: Path) -> Path:
    """Where a path really leads, which must exist and lie below ``base``."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # nowhere, or in a circle
        raise DataError(f"{path}: is a link to nothing") from error
    if not real.is_relative_to(base):
        raise DataError(f"{path}: leads to {real}, outside of {base}")
    return real


def _image(path: Path, base: Path) -> Path:
    real = _inside(path, base)
    if path.suffix.lower() not in SUFFIXES or not real.is_file():
        raise DataError(
            f"{path}: is no image by its name; {', '.join(SUFFIXES)} are read, and hidden files passed over"
        )
    if real.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    return path


def _differing(expected: tuple[str, ...], got: tuple[str, ...]) -> str:
    parts = []
    for what, names in (("missing", set(expected) - set(got)), ("unknown", set(got) - set(expected))):
        if names:
            shown = sorted(names)
            parts.append(f"{what} {', '.join(shown[:5])}" + (f" and {len(shown) - 5} more" if len(shown) > 5 else ""))
    return "; ".join(parts)
