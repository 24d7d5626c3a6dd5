"""Anybody's own images in a data set of the library datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
)

TITLE = "data set 'hf_dataset'"


@dataclass(frozen=True)
class Images:
    """The images of one split, not decoded; worker processes get a copy."""

    table: Any  # datasets.Dataset
    column: str
    names: tuple[str, ...]

    def content(self, i: int) -> bytes:
        """Return the bytes of image ``i``; raise DataError, which names it, when there are none."""
        found = self.table[i][self.column]
        content = found.get("bytes") if isinstance(found, dict) else found
        path = found.get("path") if isinstance(found, dict) else None
        if content is None and path is not None:
            try:
                return Path(path).read_bytes()
            except OSError as error:
                raise DataError(f"{self.names[i]}: cannot be read: {error}") from error
        if not content:
            raise DataError(f"{self.names[i]}: has no image in '{self.column}'")
        return bytes(content)

    def files(self) -> tuple[str, ...]:
        """Return the file of each image where all are files of their own, as in a folder of images."""
        import pyarrow.compute

        column = self.table.data.column(self.column)
        if not hasattr(column.type, "fields"):  # no struct of bytes and path
            return ()
        if pyarrow.compute.struct_field(column, "bytes").null_count < len(column):
            return ()
        paths = pyarrow.compute.struct_field(column, "path").to_pylist()
        return tuple(paths) if all(path is not None and os.path.isabs(path) for path in paths) else ()


class HFDataset(DataSource):
    """A data set with a column of images and one of labels: a folder of parquet files, a folder of images, what
    ``save_to_disk`` wrote, or a name on the Hugging Face Hub.

    The library datasets reads it and runs no code of it. Images stay encoded until the core decodes them.
    """

    name = "hf_dataset"
    description = "your own images in a data set of the library datasets, or one of the Hugging Face Hub"
    encoded = True

    class Options(OfferOptions):
        folder: str = Field("", description="Folder of the data set, below the data root.")
        hub: str | None = Field(
            None,
            pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$",
            description="Name on the Hugging Face Hub, owner/name; null: the folder.",
        )
        config: str | None = Field(None, description="Configuration of a data set that has several.")
        revision: str | None = Field(None, description="Commit or tag on the Hub; null: the newest.")
        train: str = Field("train", description="Name of the training split.")
        test: str = Field("test", description="Name of the test split.")
        validation: str | None = Field(None, description="Name of the validation split; null: a share of train.")
        unlabelled: str | None = Field(None, description="Name of a split of more training images, without labels.")
        image: str = Field("image", description="Column of the images.")
        label: str | None = Field("label", description="Column of the labels; null: no image has one.")
        classes: Annotated[int, Field(ge=2, le=1_000_000)] | tuple[str, ...] | None = Field(
            None, description="The classes in the teacher's order, or their number; null: those of the data set."
        )

    def load(self, root: Path) -> DataSplits:
        """Open the splits and read the labels; images are read when they are needed."""
        options: Any = self.options
        tables, place = self._open(root)
        names = {"train": options.train, "test": options.test}
        names |= {"validation": options.validation} if options.validation else {}
        names |= {"unlabelled": options.unlabelled} if options.unlabelled else {}
        for split, name in names.items():
            if name not in tables:
                raise DataError(
                    f"{place}: no split '{name}', but {', '.join(map(str, tables))}; data.options.{split} names another"
                )
        if len(set(names.values())) < len(names):
            raise DataError(f"{place}: one split twice: {', '.join(names.values())}; each needs its own")
        images = {split: self._images(tables[name], f"{place}[{name}]") for split, name in names.items()}
        labels = {split: self._labels(tables[names[split]], images[split]) for split in images if split != "unlabelled"}
        if more := images.pop("unlabelled", None):
            images["train"] = _joined(images["train"], more)
            labels["train"] += [None] * len(more.names)
        given = self._classes(tables[options.train]) if options.classes is None else options.classes
        classes, targets = numbered_classes(labels, given, lambda split, i: images[split].names[i], TITLE)
        splits = {}
        for split, own in images.items():
            files = own.files()
            cached = [each["filename"] for each in own.table.cache_files]
            members = tuple(map(str, range(len(own.names)))) if not files and len(cached) == 1 else ()
            files = files or (tuple(cached) * len(own.names) if members else ())
            splits[split] = FileSplit(own.names, targets[split], own.content, files=files, members=members)
        return DataSplits(
            train=splits["train"],
            test=lambda: splits["test"],
            validation=splits.get("validation"),
            classes=classes,
            source=options.hub or "own images",
            unlabelled=bool((targets["train"] == NO_LABEL).any()),
        )

    def _open(self, root: Path) -> tuple[Mapping[str, Any], str]:
        """Return the splits by name, and what to call the data set in an error."""
        options: Any = self.options
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f'{TITLE}: needs the library datasets, which is not installed; pip install "kdzoo[datasets]"'
            ) from error
        folder = os.path.realpath(root / options.folder)
        place = options.hub or folder
        if options.hub is None and not os.path.isdir(folder):
            raise DataError(f"{TITLE}: no folder '{folder}'; set data.root, data.options.folder or data.options.hub")
        try:
            with _quietly(datasets):
                if options.hub is not None:
                    found = datasets.load_dataset(options.hub, options.config, revision=options.revision)
                elif any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json")):
                    found = datasets.load_from_disk(folder)
                else:
                    found = datasets.load_dataset(folder, options.config)
        except ConnectionError as error:
            raise DataError(f"{place}: the Hugging Face Hub cannot be reached: {_line(error)}") from error
        except Exception as error:  # whatever its readers raise is about these files
            raise DataError(f"{place}: cannot be read as a data set: {_line(error)}") from error
        if not isinstance(found, dict):
            raise DataError(f"{place}: is a single split; a data set with a train and a test split would be right")
        return found, place

    def _images(self, table: Any, place: str) -> Images:
        import datasets

        column = self._column(table, self.options.image, place)  # type: ignore[attr-defined]
        kind = table.features[column]
        if isinstance(kind, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        elif getattr(kind, "dtype", None) not in ("binary", "large_binary"):
            raise DataError(f"{place}: the column '{column}' holds {kind}; images or their bytes would be right")
        return Images(table, column, tuple(f"{place} row {i}" for i in range(len(table))))

    def _labels(self, table: Any, images: Images) -> list[str | None]:
        import datasets

        options: Any = self.options
        if options.label is None:
            return [None] * len(table)
        column = self._column(table, options.label, images.names[0].rpartition(" row ")[0] if images.names else TITLE)
        kind, values = table.features[column], list(table[column])
        if isinstance(kind, datasets.ClassLabel):  # -1 is how the library says that there is none
            return [None if value in (None, -1) else kind.int2str(value) for value in values]
        return [read_label(value, name) for value, name in zip(values, images.names, strict=True)]

    def _classes(self, table: Any) -> tuple[str, ...] | None:
        """Return the classes in the data set's own order, where it names them."""
        import datasets

        kind = table.features.get(self.options.label)  # type: ignore[attr-defined]
        return tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None

    def _column(self, table: Any, name: str, place: str) -> str:
        if name not in table.features:
            raise DataError(f"{place}: no column '{name}', but {', '.join(table.features)}")
        return name


def _joined(one: Images, other: Images) -> Images:
    """Put the images of two splits together; other columns may differ and are left out."""
    import datasets

    tables = [each.table.select_columns([each.column]) for each in (one, other)]
    return Images(datasets.concatenate_datasets(tables), one.column, one.names + other.names)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _quietly(datasets: Any) -> Iterator[None]:
    """Show no progress bars inside."""
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
