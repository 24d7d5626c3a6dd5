"""A data set in its splits, and the batches made of them.

The order of samples is a function of (seed, epoch) and augmentation one of (seed, view, sample index), so batches are
the same bits for any number of workers and after any number of kills. The test split is not read for a measurement
until its gate is opened, once, when nothing is left to select; its form is checked before training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdzoo.contract.classification import NO_LABEL
from kdzoo.contract.extension_points import DataSource, DataSplits, FileSplit, Split, TokenSplit
from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.data.checking import FormCheck
from kdzoo.data.digests import digests, samples_of, split_hash
from kdzoo.data.file_records import FileRecords
from kdzoo.data.images import Decoder
from kdzoo.data.inputs import TokenIds, inputs_of
from kdzoo.data.splitting import Part, carved, few_labels, limited
from kdzoo.errors import ContractError, DataError
from kdzoo.types import stable_hash

if TYPE_CHECKING:
    from kdzoo.recipe.sections import DataRecipe

SplitName = Literal["train", "validation", "test"]


def data_root(root: str | None) -> Path:
    """Return the folder of data sets: the recipe's ``data.root``, else $KDZOO_DATA, else ./data."""
    return Path(root or os.environ.get("KDZOO_DATA") or "data").expanduser()


def open_data(
    source: DataSource, recipe: DataRecipe, seed: int, config: Callable[[], Preprocessing] = Preprocessing
) -> DataSet:
    """Load a data set's training side and check it; its test split is not read.

    ``config`` returns the steps from an image file to pixels of which the recipe's ``data.preprocessing`` changes some.

    A validation split is carved out of the training split, stratified and seeded, where the source has none of its
    own. Raises DataError, saying what would be right, when the data is missing, unreadable or inconsistent.
    """
    root = data_root(recipe.root)
    splits, preprocessing = source.load(root), None
    if isinstance(splits.train, FileSplit):
        preprocessing = config().changed(recipe.preprocessing.given() if recipe.preprocessing else {})
    return DataSet(source, splits, recipe, seed, FileRecords(root), preprocessing)


class TestGate:
    """Keeps the test split unread until selection has closed."""

    __test__ = False  # a word of the field, no test for pytest to collect

    def __init__(self, data: DataSet) -> None:
        self._data = data
        self.reads = 0  # how often the test split was read from its source

    @property
    def is_open(self) -> bool:
        return self.reads > 0

    def open(self) -> None:
        """Read the test split; what is found out about it is added to the data set's notes."""
        if not self.is_open:
            self._data._read_test()
            self.reads += 1


class DataSet:
    """A data set: its classes, shape and normalisation, its splits, and what was noticed about them."""

    def __init__(
        self,
        source: DataSource,
        splits: DataSplits,
        recipe: DataRecipe,
        seed: int,
        records: FileRecords,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """``preprocessing`` are the steps from an image file to pixels; None where samples live in memory."""
        self.name = source.name
        self.classes = tuple(splits.classes)
        #: The form of its samples: pixels, measurements or ids of tokens.
        self.inputs = inputs_of(splits, preprocessing)
        self.channels, self.size = self.inputs.channels, self.inputs.size
        self.mean, self.std = self.inputs.mean, self.inputs.std
        self.modalities = dict(splits.modalities)
        self.source, self.licence = splits.source, splits.licence
        self.preprocessing, self._max_megapixels = preprocessing, recipe.max_megapixels
        #: Makes pixels of encoded images; None where samples live in memory.
        self.decoder = self.decoder_of(preprocessing)
        self.notes: list[str] = []
        self.test_gate = TestGate(self)
        self._digests: dict[str, list[str]] = {}
        self._splits, self._records = splits, records
        self._check = FormCheck(self._title, self.classes, self.inputs, recipe.augmentation, self.decoder)
        self._check.header(self.modalities)
        whole = self._whole(splits.train, "train")
        content = self._content(source, splits.train.targets)
        self.parts: dict[str, Part] = {}
        if splits.validation is not None:
            self.parts["validation"] = self._whole(splits.validation, "validation")
            content.append(split_hash(self._digests["validation"], splits.validation.targets))
        else:
            whole, held_out = carved(self._title, whole, recipe.validation, seed)
            if held_out is not None:
                self.parts["validation"] = held_out
                self._digests["validation"] = [self._digests["train"][row] for row in held_out.rows]
        if self.preprocessing is not None:
            content.append(self.preprocessing.record())
        whole = limited(self._title, whole, recipe.train_limit, seed)
        self.parts["train"] = whole
        if isinstance(self.inputs, TokenIds) and isinstance(whole.split, TokenSplit):
            self.inputs = self.inputs.with_seen(np.asarray(whole.split.ids)[whole.rows])
        #: Rows of the training split that have a label, for a teacher; None: all.
        self.labels = few_labels(self._title, whole, None, seed)
        #: Those of them that have it for student and control too; None: all.
        self.labelled = few_labels(self._title, whole, recipe.labelled, seed)
        self._digests["train"] = [self._digests["train"][row] for row in whole.rows]
        #: Hash of the content of train and validation, the same for any seed, limit and place on disk.
        self.fingerprint = stable_hash(content)
        records.save()
        self._note_duplicates("validation", "train")
        absent = sorted(set(range(len(self.classes))) - set(whole.targets.tolist()))
        if absent and len(whole.labelled):
            self.notes.append(f"no training sample of: {', '.join(self.classes[k] for k in absent)}")

    def _content(self, source: DataSource, targets: np.ndarray) -> list[Any]:
        """Return what the fingerprint is of: what the samples are, and the whole training split with its targets."""
        return [
            *self.inputs.content(),
            source.name,
            source.options.model_dump(mode="json", exclude_defaults=True),
            self.classes,
            self.channels,
            self.size,
            self.mean,
            self.std,
            split_hash(self._digests["train"], targets),
        ]

    def decoder_of(self, preprocessing: Preprocessing | None) -> Decoder | None:
        """Return what makes pixels of encoded images by other steps than the data set's own."""
        return None if preprocessing is None else Decoder(preprocessing, self._max_megapixels)

    @property
    def num_train(self) -> int:
        return len(self.parts["train"])

    @property
    def split_sizes(self) -> dict[str, int]:
        """Samples of each split that has been read; test is among them once its gate is open."""
        return {name: len(self.parts[name]) for name in ("train", "validation", "test") if name in self.parts}

    @property
    def test_fingerprint(self) -> str:
        """Hash of the content of the test split; raises ContractError while its gate is shut."""
        part = self.part("test")
        rules = "" if self.decoder is None else self.decoder.rules
        return stable_hash([split_hash(self._digests["test"], part.targets), rules])

    def part(self, name: SplitName) -> Part:
        """Return a split; raise ContractError for the test split while its gate is shut."""
        if name == "test" and not self.test_gate.is_open:
            raise ContractError("the test split was asked for before selection closed; open test_gate first")
        if name not in self.parts:
            raise DataError(f"{self._title}: has no {name} split; set data.validation above 0")
        return self.parts[name]

    def check_form(self) -> str:
        """Decode every image once and check the form of the test split; say on one line what was checked.

        Of the test split, only shapes, types and labels are looked at, and whether its images can be decoded. This is
        no read of the test gate: nothing that a choice could depend on leaves this method. Raises DataError.
        """
        test = self._splits.test()
        self._check_split(test, "test")
        own = [self._splits.train, *([self._splits.validation] if self._splits.validation is not None else [])]
        decoded = sum(self._check.images(split, self._records) for split in (*own, test))
        form = f"test split of {samples_of(test)} samples: form checked, content not used before the end"
        return f"{decoded} images decoded; {form}" if decoded else form

    @property
    def _title(self) -> str:
        return f"data set '{self.name}'"

    def _check_split(self, split: Split, name: SplitName) -> None:
        """Check a split's form. Samples may lack a label in train, and where none has one there, all of test may."""
        trained = np.asarray(self._splits.train.targets)
        alone = self._splits.unlabelled and (trained == NO_LABEL).all()
        self._check.split(split, name, self._splits.unlabelled if name == "train" else name == "test" and bool(alone))
        targets = np.asarray(split.targets)
        if name == "test" and 0 < (targets == NO_LABEL).sum() < len(targets):
            raise DataError(
                f"{self._title}, split test: {int((targets == NO_LABEL).sum())} of {len(targets)} samples have no "
                "label; all or none would be right"
            )

    def _whole(self, split: Split, name: SplitName) -> Part:
        """Return a split with all of its rows, after checking and hashing it."""
        self._check_split(split, name)
        self._digests[name] = digests(split, self.inputs.pad or 0, self._records)
        self.notes += self._records.notes
        self._records.notes.clear()
        return Part(split, np.arange(samples_of(split)))

    def _note_duplicates(self, name: str, other: str) -> None:
        """Note samples that are in two splits; public sets have some, so it is no error."""
        if name not in self._digests or other not in self._digests:
            return
        known = set(self._digests[other])
        count = sum(digest in known for digest in self._digests[name])
        if count:
            what = self.inputs.noun
            samples = f"1 {what}" if count == 1 else f"{count} {what}s"
            self.notes.append(f"{samples} of {name} {'is' if count == 1 else 'are'} also in {other}")

    def _read_test(self) -> None:
        self.parts["test"] = self._whole(self._splits.test(), "test")
        self._records.save()
        self._note_duplicates("test", "train")
        self._note_duplicates("test", "validation")
