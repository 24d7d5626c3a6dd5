"""Anybody's own images in tar shards."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
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
from kdzoo_webdataset.shards import Member, Sample, find, samples

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")
Shards = str | tuple[str, ...]
#: Threads that list shards.
THREADS = 8


@dataclass(frozen=True)
class Images:
    """The images of one split; worker processes get a copy."""

    members: tuple[Member, ...]
    names: tuple[str, ...]

    def content(self, i: int) -> bytes:
        """Return the bytes of image ``i``; raise DataError, which names it, when it cannot be read."""
        return self.members[i].read(self.names[i])


class WebDataset(DataSource):
    """Tar shards whose files of one name are a sample: an image and its label.

    Shards are listed once, before training; an image is then read by its place in the shard. So the order of the
    samples is that of every other data set, a function of seed and epoch, and no shard is read from end to end.
    """

    name = "webdataset"
    description = "your own images in tar shards, as webdataset writes them"
    encoded = True

    class Options(OfferOptions):
        folder: str = Field("", description="Folder of the shards, below the data root.")
        train: Shards = Field(
            "train-*.tar",
            description="Shards of the training split, one name or a list; braces and * stand for several.",
        )
        test: Shards = Field("test-*.tar", description="Shards of the test split.")
        validation: Shards | None = Field(None, description="Shards of the validation split; null: a share of train.")
        unlabelled: Shards | None = Field(
            None, description="Shards of more training images, without labels; null: none."
        )
        label: str | None = Field(
            "cls",
            description="Extension of the file that holds the label, a name or a number; null: no image has one.",
        )
        label_key: str | None = Field(None, description="Key of the label, where that file is JSON.")
        classes: Annotated[int, Field(ge=2, le=1_000_000)] | tuple[str, ...] | None = Field(
            None, description="The classes in the teacher's order, or their number; null: those of the training split."
        )

    def load(self, root: Path) -> DataSplits:
        """List the shards of all splits and read the labels; pixels are read when they are needed."""
        options: Any = self.options
        folder = str(root / options.folder)
        found = {
            split: self._samples(folder, getattr(options, split))
            for split in ("train", "validation", "test", "unlabelled")
            if getattr(options, split)
        }
        for split in ("train", "test"):
            if split not in found:
                raise DataError(f"data set 'webdataset': data.options.{split} names no shard")
        more = found.pop("unlabelled", [])
        labels = {split: [self._label(sample) for sample in listed] for split, listed in found.items()}
        found["train"] = [*found["train"], *more]
        members = {split: tuple(map(_image, listed)) for split, listed in found.items()}
        labels["train"] += [None] * len(more)
        classes, targets = numbered_classes(
            labels, options.classes, lambda split, i: found[split][i].name, "data set 'webdataset'"
        )
        splits = {}
        for split, listed in found.items():
            names = tuple(sample.name for sample in listed)
            images = Images(members[split], names)
            splits[split] = FileSplit(
                names,
                targets[split],
                images.content,
                files=tuple(sample.shard for sample in listed),
                members=tuple(f"{member.offset}+{member.size}" for member in images.members),
            )
        return DataSplits(
            train=splits["train"],
            test=lambda: splits["test"],
            validation=splits.get("validation"),
            classes=classes,
            source="own images",
            unlabelled=bool((targets["train"] == NO_LABEL).any()),
        )

    def _samples(self, folder: str, shards: Shards) -> list[Sample]:
        patterns = (shards,) if isinstance(shards, str) else shards
        with ThreadPoolExecutor(THREADS) as pool:
            return [sample for shard in pool.map(samples, find(folder, patterns)) for sample in shard]

    def _label(self, sample: Sample) -> str | None:
        """Return a sample's label as it is written; DataError where it has none."""
        options: Any = self.options
        if options.label is None:
            return None
        if options.label not in sample.members:
            raise DataError(
                f"{sample.name}: no label '.{options.label}', but .{', .'.join(sample.members)}; images without labels "
                "belong in shards of their own, which data.options.unlabelled names"
            )
        try:
            written: Any = sample.members[options.label].read(sample.name).decode()
            if options.label_key is not None:
                written = json.loads(written)
                if not isinstance(written, dict) or options.label_key not in written:
                    raise DataError(f"{sample.name}: '.{options.label}' has no key '{options.label_key}'")
                written = written[options.label_key]
        except (ValueError, RecursionError) as error:
            raise DataError(f"{sample.name}: '.{options.label}' cannot be read as text: {error}") from error
        label = read_label(written, sample.name)
        if label is None:
            raise DataError(f"{sample.name}: its label '.{options.label}' is empty")
        return label


def _image(sample: Sample) -> Member:
    """Return the image of a sample; DataError where it has none or several."""
    found = [extension for extension in sample.members if extension.rsplit(".", 1)[-1] in IMAGES]
    if len(found) != 1:
        has = f"several, .{', .'.join(found)}" if found else f"but .{', .'.join(sample.members)}"
        raise DataError(f"{sample.name}: {'no image' if not found else 'one image would be right'}, {has}")
    return sample.members[found[0]]
