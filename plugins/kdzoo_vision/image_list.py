"""Anybody's own images by a list of paths and labels: .csv, .tsv, .jsonl or .parquet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdzoo.api.data import (
    NO_LABEL,
    DataError,
    DataSource,
    DataSplits,
    FileSplit,
    OfferOptions,
    numbered_classes,
    read_label,
    table_rows,
)
from kdzoo_vision.files import Files, real_path, within

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
#: What a column of splits may hold.
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


@dataclass
class Listed:
    """The images of one split: their paths, their labels as written, and where each is written."""

    paths: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


class ImageList(DataSource):
    """A list per split, or one list with a column that names the split of each image.

    Paths are relative to the list that they are in. A label is the name or the number of a class; an empty one is an
    image without a label, which only a training split may have.
    """

    name = "image_list"
    description = "your own images by a .csv, .tsv, .jsonl or .parquet of paths and labels"
    encoded = True

    class Options(OfferOptions):
        train: str = Field("train.csv", description="List of the training split, below the data root.")
        test: str = Field("test.csv", description="List of the test split; unused with a column of splits.")
        validation: str | None = Field(None, description="List of the validation split; null: a share of train.")
        path: str = Field("path", description="Column, or key, of the path.")
        label: str | None = Field("label", description="Column of the label; null: no image has one.")
        split: str | None = Field(
            None, description="Column of the split: train, validation or test; train is then the only list."
        )
        classes: Annotated[int, Field(ge=2, le=1_000_000)] | tuple[str, ...] | None = Field(
            None, description="The classes in the teacher's order, or their number; null: those of the training split."
        )

    def load(self, root: Path) -> DataSplits:
        """Read the lists and check that each path leads to a file; pixels are read when they are needed."""
        options: Any = self.options
        names = {"train": options.train}
        if options.split is None:
            names |= {"test": options.test}
            names |= {} if options.validation is None else {"validation": options.validation}
        found: dict[str, Listed] = {}
        for split, name in names.items():
            self._read(self._list(root, name), real_path(root), split, found)
        for split in ("train", "test"):
            if split not in found:
                raise DataError(f"data set 'image_list': {names['train']} has no row of the {split} split")
        _check_repeats(found)
        classes, targets = numbered_classes(
            {split: listed.labels for split, listed in found.items()},
            options.classes,
            lambda split, i: found[split].places[i],
            "data set 'image_list'",
        )
        _check_labels(found)
        splits = {}
        for split, listed in found.items():
            files = Files(tuple(listed.paths))
            splits[split] = FileSplit(files.paths, targets[split], files.content, files.digest, files=files.paths)
        return DataSplits(
            train=splits["train"],
            test=lambda: splits["test"],
            validation=splits.get("validation"),
            classes=classes,
            source="own images",
            unlabelled=bool((targets["train"] == NO_LABEL).any()),
        )

    def _list(self, root: Path, name: str) -> Path:
        path, base = real_path(root / name), real_path(root)
        if not within(path, base):
            raise DataError(f"data set 'image_list': {name} lies outside of the data root '{root}'; set data.root")
        if not path.endswith(SUFFIXES):
            raise DataError(f"data set 'image_list': {name}: {', '.join(SUFFIXES)} would be right")
        if not os.path.isfile(path):
            raise DataError(f"data set 'image_list': no file '{name}' below '{root}'; set data.root or data.options")
        return Path(path)

    def _read(self, path: Path, root: str, split: str, found: dict[str, Listed]) -> None:
        """Add the rows of a list to their splits."""
        options: Any = self.options
        wanted = [name for name in (options.path, options.label, options.split) if name is not None]
        folder, begun = os.path.dirname(path), len(found)
        for where, row in table_rows(path, wanted):
            place = f"{path}: {where}"
            if missing := [name for name in wanted if name not in row]:
                raise DataError(
                    f"{place}: no column '{missing[0]}'; the row has {', '.join(map(str, row)) or 'nothing'}"
                )
            own = split if options.split is None else SPLITS.get(str(row[options.split]))
            if own is None:
                raise DataError(
                    f"{place}: the split in '{options.split}' is '{row[options.split]}'; train, validation or test "
                    "would be right"
                )
            listed = found.setdefault(own, Listed())
            listed.paths.append(_image(row[options.path], folder, root, place))
            listed.labels.append(None if options.label is None else read_label(row[options.label], place))
            listed.places.append(place)
        if len(found) == begun:
            raise DataError(f"{path}: holds no rows")


def _image(written: Any, folder: str, root: str, place: str) -> str:
    """Return where an image is; raise DataError where there is none, or it lies out of the data root."""
    if not isinstance(written, str) or not written.strip():
        raise DataError(f"{place}: a path is text, got {written!r}")
    path = real_path(Path(folder, written))
    if not within(path, root):
        raise DataError(f"{place}: {written} leads to {path}, outside of the data root '{root}'")
    if not os.path.isfile(path):
        raise DataError(f"{place}: no file '{path}'")
    return path


def _check_repeats(found: Mapping[str, Listed]) -> None:
    """Raise DataError where an image is listed twice."""
    before: dict[str, str] = {}
    for listed in found.values():
        for path, place in zip(listed.paths, listed.places, strict=True):
            if path in before:
                raise DataError(f"{place}: {path} is listed before, in {before[path]}; each image belongs in once")
            before[path] = place


def _check_labels(found: Mapping[str, Listed]) -> None:
    """Raise DataError for an image of validation or test that has no label, where training images have one."""
    if not any(label is not None for label in found["train"].labels):
        return
    for split in ("validation", "test"):
        listed = found.get(split, Listed())
        bare: Sequence[str] = [p for p, label in zip(listed.places, listed.labels, strict=True) if label is None]
        if bare:
            raise DataError(f"{bare[0]}: has no label; only training images may have none, and this one is of {split}")
