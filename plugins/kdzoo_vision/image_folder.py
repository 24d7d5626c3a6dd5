"""Anybody's own images in folders, a folder a class."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from kdzoo.api.data import DataError, DataSource, DataSplits, FileSplit, OfferOptions, Preprocessing

#: What is read, by the name's ending.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
#: A larger file is no image.
MOST_BYTES = 2**30
#: Folders that hold the validation split where the recipe names none.
VALIDATION = ("validation", "val")

#: The paths of a split's images, and their classes' numbers (N,).
Listed = tuple[tuple[str, ...], np.ndarray]


class ImageFolder(DataSource):
    """Folders train, validation (or val) and test, each with one folder a class, or the folders of the classes alone.

    In the second case ``test_share`` divides them: a file's split depends on ``split_seed``, its class and its name,
    so that it stays where it is when other files come or go.

    Every image is turned as its EXIF says, converted to RGB, cut to a central square, whose side is ``crop_share`` of
    its shorter side, and resized to ``size``. What cannot be read is an error that names the file; no sample is ever
    left out or replaced. Hidden files are not looked at.
    """

    name = "image_folder"
    description = "your own images, a folder a class"

    class Options(OfferOptions):
        folder: str = Field("", description="Folder of the splits, below the data root.")
        size: int = Field(224, ge=1, le=4096, description="Height and width, pixels.")
        crop_share: float = Field(
            0.875,
            gt=0,
            le=1,
            description="Side of the central square that is kept, as a share of the shorter side; 1: all of it.",
        )
        train: str = Field("train", description="Folder of the training split.")
        validation: str | None = Field(
            None,
            description="Folder of the validation split; null: validation or val, else a share of train.",
        )
        test: str = Field("test", description="Folder of the test split; val where there are only train and val.")
        test_share: float | None = Field(
            None,
            gt=0,
            lt=1,
            description="Share of the images that becomes the test split, where the folder holds the classes and no "
            "splits; null: it holds splits.",
        )
        validation_share: float = Field(0.1, ge=0, lt=1, description="The same for validation, with test_share.")
        split_seed: int = Field(0, ge=0, description="Which images test_share takes; independent of the recipe's seed.")
        mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="Of pixels in [0, 1]; ImageNet's.")
        std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="Of pixels in [0, 1]; ImageNet's.")

    def __init__(self, options: OfferOptions) -> None:
        super().__init__(options)
        shares: Any = options
        if shares.test_share is not None and shares.test_share + shares.validation_share >= 1:
            raise DataError("test_share and validation_share leave nothing to train on; less than 1 would be right")

    def load(self, root: Path) -> DataSplits:
        """List the files of all splits and check their names; pixels are read when they are needed."""
        options: Any = self.options
        base = real_path(root / options.folder)
        if not _within(base, real_path(root)):
            raise DataError(f"data set 'image_folder': '{options.folder}' lies outside of the data root '{root}'")
        classes, listed = self._split(base) if options.test_share is None else self._divided(base)
        splits = {}
        for split, (paths, targets) in listed.items():
            files = Files(paths)
            splits[split] = FileSplit(paths, targets, files.content, files.digest, files=paths)
        return DataSplits(
            train=splits["train"],
            test=lambda: splits["test"],
            validation=splits.get("validation"),
            classes=classes,
            channels=3,
            size=(options.size, options.size),
            mean=options.mean,
            std=options.std,
            source="own images",
            preprocessing=Preprocessing((options.size, options.size), options.crop_share),
        )

    def _split(self, base: str) -> tuple[tuple[str, ...], dict[str, Listed]]:
        """Return the classes and the files of each split, which has a folder of its own."""
        options: Any = self.options
        names = {"train": options.train, "test": options.test}
        present = [name for name in VALIDATION if os.path.isdir(os.path.join(base, name)) and name != options.test]
        if options.validation or present:
            names["validation"] = options.validation or present[0]
        if not os.path.isdir(os.path.join(base, options.train)) and _has_folders(base):
            raise DataError(
                f"data set 'image_folder': no folder '{os.path.join(base, options.train)}', but others; if those are "
                "the classes, data.options.test_share: 0.2 divides their images into splits"
            )
        classes: dict[str, tuple[str, ...]] = {}
        listed: dict[str, Listed] = {}
        for split, name in names.items():
            if split == "test" and present and not os.path.isdir(os.path.join(base, name)):
                raise DataError(
                    f"data set 'image_folder': no folder '{os.path.join(base, name)}', but '{present[0]}'; "
                    f"data.options.test: {present[0]} makes it the test split, and validation a share of train"
                )
            classes[split], paths, targets = self._listed(base, os.path.join(base, name))
            if classes[split] != classes["train"]:
                raise DataError(
                    f"{os.path.join(base, name)}: other classes than {options.train}: "
                    f"{_differing(classes['train'], classes[split])}"
                )
            listed[split] = paths, targets
        return classes["train"], listed

    def _divided(self, base: str) -> tuple[tuple[str, ...], dict[str, Listed]]:
        """Return the classes below ``base``, and their files divided into splits by share."""
        options: Any = self.options
        for name in (options.train, options.test):
            if os.path.isdir(os.path.join(base, name)):
                raise DataError(
                    f"data set 'image_folder': '{os.path.join(base, name)}' is a split, so there is nothing to divide; "
                    "leave out data.options.test_share"
                )
        classes, paths, targets = self._listed(base, base)
        drawn = np.array([_draw(options.split_seed, path) for path in paths])
        held_out = options.test_share + options.validation_share
        rows = {"test": drawn < options.test_share, "train": drawn >= held_out}
        if options.validation_share:
            rows["validation"] = ~rows["test"] & ~rows["train"]
        bare = sorted(set(range(len(classes))) - set(targets[rows["train"]].tolist()))
        empty = [split for split, mask in rows.items() if not mask.any()]
        if bare or empty:
            missing = f"class '{classes[bare[0]]}' none to train on" if bare else f"the {empty[0]} split none"
            raise DataError(
                f"data set 'image_folder': test_share: {options.test_share:g} and validation_share: "
                f"{options.validation_share:g} of {len(paths)} images leave {missing}; more images, other shares or "
                "another split_seed would be right"
            )
        listed = {
            split: (tuple(path for path, taken in zip(paths, mask, strict=True) if taken), targets[mask])
            for split, mask in rows.items()
        }
        return classes, listed

    def _listed(self, base: str, folder: str) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
        """Return the classes in a folder, the paths of its images and their classes' numbers (N,)."""
        if not os.path.isdir(folder):
            raise DataError(f"data set 'image_folder': no folder '{folder}'; each of its folders would be a class")
        classes: list[str] = []
        paths: list[str] = []
        targets: list[int] = []
        for child in _visible(folder):
            _check_link(child, base)
            if not child.is_dir():
                raise DataError(
                    f"{child.path}: is no folder; {os.path.basename(folder)} holds one folder a class and nothing else"
                )
            files = [_image(file, base) for file in _visible(child.path)]
            if not files:
                raise DataError(f"{child.path}: this class has no images")
            targets += [len(classes)] * len(files)
            classes.append(child.name)
            paths += files
        if not classes:
            raise DataError(f"{folder}: has no folders; each would be a class")
        return tuple(classes), tuple(paths), np.array(targets)


@dataclass(frozen=True)
class Files:
    """The image files of one split; worker processes get a copy."""

    paths: tuple[str, ...]

    def content(self, i: int) -> bytes:
        """Return the bytes of file ``i``; raise DataError naming it when it cannot be read."""
        try:
            with open(self.paths[i], "rb") as file:
                if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                    raise DataError(f"{self.paths[i]}: {size:,} bytes are more than an image may have, {MOST_BYTES:,}")
                return file.read()
        except OSError as error:
            raise DataError(f"{self.paths[i]}: cannot be read: {error}") from error

    def digest(self, i: int) -> str:
        """Hash the bytes of file ``i``."""
        try:
            with open(self.paths[i], "rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
                if file.tell() == 0:
                    raise DataError(f"{self.paths[i]}: is empty")
                return found
        except OSError as error:
            raise DataError(f"{self.paths[i]}: cannot be read: {error}") from error


def real_path(path: Path) -> str:
    """Return where a path of the recipe leads; raise DataError for one that no file can have."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is no path: {error}") from error


def _has_folders(folder: str) -> bool:
    return os.path.isdir(folder) and any(entry.is_dir() for entry in _visible(folder))


def _draw(seed: int, path: str) -> float:
    """Return a number in [0, 1) that depends on the seed, the class and the name of a file alone."""
    folder, name = os.path.split(path)
    drawn = hashlib.blake2b(os.fsencode(f"{seed}/{os.path.basename(folder)}/{name}"), digest_size=8)
    return int.from_bytes(drawn.digest()) / 2**64


def _within(path: str, base: str) -> bool:
    return path == base or path.startswith(base.rstrip(os.sep) + os.sep)


def _visible(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _check_link(entry: os.DirEntry[str], base: str) -> None:
    """Raise DataError for a link that leads nowhere, or out of ``base``."""
    if not entry.is_symlink():
        return
    try:
        real = os.path.realpath(entry.path, strict=True)
    except (OSError, RuntimeError) as error:  # nowhere, or in a circle
        raise DataError(f"{entry.path}: is a link to nothing") from error
    if not _within(real, base):
        raise DataError(f"{entry.path}: leads to {real}, outside of {base}")


def _image(entry: os.DirEntry[str], base: str) -> str:
    _check_link(entry, base)
    if not entry.name.lower().endswith(SUFFIXES) or not entry.is_file():  # a pipe would never end
        raise DataError(
            f"{entry.path}: is no image by its name; {', '.join(SUFFIXES)} are read, and hidden files passed over"
            if not entry.name.lower().endswith(SUFFIXES)
            else f"{entry.path}: is no regular file"
        )
    return entry.path


def _differing(expected: tuple[str, ...], got: tuple[str, ...]) -> str:
    parts = []
    for what, names in (("missing", set(expected) - set(got)), ("unknown", set(got) - set(expected))):
        if names:
            shown = sorted(names)
            parts.append(f"{what} {', '.join(shown[:5])}" + (f" and {len(shown) - 5} more" if len(shown) > 5 else ""))
    return "; ".join(parts)
