"""Anybody's own images in folders, a folder a class."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdzoo.api.data import NO_LABEL, DataError, DataSource, DataSplits, FileSplit, OfferOptions
from kdzoo_vision.files import Files, check_link, image_file, images_below, real_path, visible, within

#: Folder of more training images, without labels, where the recipe names none.
UNLABELLED = "unlabelled"
#: Folders that hold the validation split where the recipe names none.
VALIDATION = ("validation", "val")

#: The paths of a split's images, and their classes' numbers (N,).
Listed = tuple[tuple[str, ...], np.ndarray]


class ImageFolder(DataSource):
    """Folders train, validation (or val) and test, each with one folder a class, or the folders of the classes alone.

    In the second case ``test_share`` divides them: a file's split depends on ``split_seed``, its class and its name,
    so that it stays where it is when other files come or go.

    A folder ``unlabelled`` holds more training images, without labels. With ``classes``, no training image has one:
    they lie in any folders below train, or below ``folder`` where ``test_share`` divides them, and test may hold images
    without class folders too.

    How an image becomes pixels, the recipe says in ``data.preprocessing``. What cannot be read is an error that names
    the file; no sample is ever left out or replaced. Hidden files are not looked at.
    """

    name = "image_folder"
    description = "your own images, a folder a class"
    encoded = True

    class Options(OfferOptions):
        folder: str = Field("", description="Folder of the splits, below the data root.")
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
        class_order: Literal["name", "natural"] = Field(
            "name",
            description="How folders become numbers of classes: name as Python sorts, natural as timm: 2 before 10.",
        )
        unlabelled: str | None = Field(
            None, description="Folder of more training images without labels; null: unlabelled, if there is one."
        )
        classes: Annotated[int, Field(ge=2, le=1_000_000)] | tuple[str, ...] | None = Field(
            None,
            description="The teacher's classes, their number or names, where no training image has a label; null: the "
            "names of the folders.",
        )

    def __init__(self, options: OfferOptions) -> None:
        super().__init__(options)
        shares: Any = options
        if shares.test_share is not None and shares.test_share + shares.validation_share >= 1:
            raise DataError("test_share and validation_share leave nothing to train on; less than 1 would be right")

    def load(self, root: Path) -> DataSplits:
        """List the files of all splits and check their names; pixels are read when they are needed."""
        options: Any = self.options
        base = real_path(root / options.folder)
        if not within(base, real_path(root)):
            raise DataError(f"data set 'image_folder': '{options.folder}' lies outside of the data root '{root}'")
        if options.classes is not None:
            classes, listed = self._without_labels(base)
        else:
            classes, listed = self._split(base) if options.test_share is None else self._divided(base)
            listed["train"] = _joined(listed["train"], self._more(base))
        splits = {}
        for split, (paths, targets) in listed.items():
            files = Files(paths)
            splits[split] = FileSplit(paths, targets, files.content, files.digest, files=paths)
        return DataSplits(
            train=splits["train"],
            test=lambda: splits["test"],
            validation=splits.get("validation"),
            classes=classes,
            source="own images",
            unlabelled=bool((splits["train"].targets == NO_LABEL).any()),
        )

    def _more(self, base: str) -> tuple[str, ...]:
        """Return the training images without labels beside those that have one."""
        options: Any = self.options
        folder = os.path.join(base, options.unlabelled or UNLABELLED)
        if not os.path.isdir(folder):
            if options.unlabelled is None:
                return ()
            raise DataError(f"data set 'image_folder': no folder '{folder}', which data.options.unlabelled names")
        if options.test_share is not None:
            raise DataError(
                f"data set 'image_folder': '{folder}' lies among the classes that data.options.test_share divides; "
                "folders train, test and unlabelled would be right"
            )
        return self._images(base, folder)

    def _images(self, base: str, folder: str) -> tuple[str, ...]:
        """Return the images in a folder and in those below it; raise DataError where there is none."""
        if not os.path.isdir(folder):
            raise DataError(f"data set 'image_folder': no folder '{folder}', which would hold images")
        if not (paths := tuple(images_below(folder, base))):
            raise DataError(f"{folder}: has no images")
        return paths

    def _without_labels(self, base: str) -> tuple[tuple[str, ...], dict[str, Listed]]:
        """Return the classes that the recipe names, and the files of each split; no training image has a label."""
        options: Any = self.options
        given = options.classes
        classes = tuple(map(str, range(given))) if isinstance(given, int) else tuple(given)
        if options.test_share is not None:
            images = self._images(base, base)
            taken = {path for path in images if _draw(options.split_seed, path) < options.test_share}
            if not 0 < len(taken) < len(images):
                raise DataError(
                    f"data set 'image_folder': test_share: {options.test_share:g} of {len(images)} images leaves "
                    f"{'train' if taken else 'test'} none; more images or another share would be right"
                )
            return classes, {
                "train": _joined(_no_files(), tuple(path for path in images if path not in taken)),
                "test": _joined(_no_files(), tuple(path for path in images if path in taken)),
            }
        trained = os.path.join(base, options.unlabelled or options.train)
        train, folder = _joined(_no_files(), self._images(base, trained)), os.path.join(base, options.test)
        if not _has_folders(folder):
            return classes, {"train": train, "test": _joined(_no_files(), self._images(base, folder))}
        named, paths, targets = self._listed(base, folder)
        if strange := sorted(set(named) - set(classes)):
            raise DataError(
                f"{os.path.join(folder, strange[0])}: is none of the {len(classes)} classes that the recipe names"
            )
        numbers = np.array([classes.index(name) for name in named])
        return classes, {"train": train, "test": (paths, numbers[targets])}

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
        options: Any = self.options
        classes: list[str] = []
        paths: list[str] = []
        targets: list[int] = []
        natural = options.class_order == "natural"
        for child in sorted(visible(folder), key=lambda entry: _natural(entry.name)) if natural else visible(folder):
            check_link(child, base)
            if not child.is_dir() and not _has_folders(folder):
                raise DataError(
                    f"{folder}: has no folders; each would be a class. Where no image has a label, "
                    "data.options.classes is the number of the teacher's"
                )
            if not child.is_dir():
                raise DataError(
                    f"{child.path}: is no folder; {os.path.basename(folder)} holds one folder a class and nothing else"
                )
            files = [image_file(file, base) for file in visible(child.path)]
            if not files:
                raise DataError(f"{child.path}: this class has no images")
            targets += [len(classes)] * len(files)
            classes.append(child.name)
            paths += files
        if not classes:
            raise DataError(f"{folder}: has no folders; each would be a class")
        return tuple(classes), tuple(paths), np.array(targets)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort as timm does: digits as numbers, letters without their case."""
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _no_files() -> Listed:
    return (), np.zeros(0, np.int64)


def _joined(listed: Listed, unlabelled: tuple[str, ...]) -> Listed:
    """Add images without labels to those that have one."""
    return (*listed[0], *unlabelled), np.concatenate([listed[1], np.full(len(unlabelled), NO_LABEL)])


def _has_folders(folder: str) -> bool:
    return os.path.isdir(folder) and any(entry.is_dir() for entry in visible(folder))


def _draw(seed: int, path: str) -> float:
    """Return a number in [0, 1) that depends on the seed, the class and the name of a file alone."""
    folder, name = os.path.split(path)
    drawn = hashlib.blake2b(os.fsencode(f"{seed}/{os.path.basename(folder)}/{name}"), digest_size=8)
    return int.from_bytes(drawn.digest()) / 2**64


def _differing(expected: tuple[str, ...], got: tuple[str, ...]) -> str:
    parts = []
    for what, names in (("missing", set(expected) - set(got)), ("unknown", set(got) - set(expected))):
        if names:
            shown = sorted(names)
            parts.append(f"{what} {', '.join(shown[:5])}" + (f" and {len(shown) - 5} more" if len(shown) > 5 else ""))
    return "; ".join(parts)
