"""A data set in its splits, and the batches made of them.

The order of samples is a function of (seed, epoch) and augmentation one of (seed, view, sample index), so batches are
the same bits for any number of workers and after any number of kills. The test split stays shut until its gate is
opened, once, when nothing is left to select."""

from __future__ import annotations

import hashlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from kdzoo.contract.extension_points import ArraySplit, DataSource, DataSplits, FileSplit, Split, TokenSplit
from kdzoo.data.augmentation import Augment
from kdzoo.data.inputs import TokenIds, inputs_of
from kdzoo.data.loader import Loader
from kdzoo.errors import ContractError, DataError
from kdzoo.types import derive_seed, stable_hash

if TYPE_CHECKING:
    from kdzoo.recipe.sections import DataRecipe

SplitName = Literal["train", "validation", "test"]

#: Threads that hash files; hashing lets go of the interpreter, so they run side by side.
HASHING_THREADS = 8


def data_root(root: str | None) -> Path:
    """Return the folder of data sets: the recipe's ``data.root``, else $KDZOO_DATA, else ./data."""
    return Path(root or os.environ.get("KDZOO_DATA") or "data").expanduser()


def open_data(source: DataSource, recipe: DataRecipe, seed: int) -> DataSet:
    """Load a data set's training side and check it; its test split is not read.

    A validation split is carved out of the training split, stratified and seeded, where the source has none of its
    own. Raises DataError, saying what would be right, when the data is missing, unreadable or inconsistent.
    """
    return DataSet(source, source.load(data_root(recipe.root)), recipe, seed)


@dataclass(frozen=True)
class Part:
    """Some rows of a split; a sample's index is its position in here."""

    split: Split
    rows: np.ndarray  # (N,) int64, ascending

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> np.ndarray:
        return np.asarray(self.split.targets)[self.rows].astype(np.int64)


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

    def __init__(self, source: DataSource, splits: DataSplits, recipe: DataRecipe, seed: int) -> None:
        self.name = source.name
        self.classes = tuple(splits.classes)
        #: The form of its samples: pixels, measurements or ids of tokens.
        self.inputs = inputs_of(splits)
        self.channels, self.size = self.inputs.channels, self.inputs.size
        self.mean, self.std = self.inputs.mean, self.inputs.std
        self.modalities = dict(splits.modalities)
        self._augmented = recipe.augment != "none"
        self.source, self.licence = splits.source, splits.licence
        self.notes: list[str] = []
        self.test_gate = TestGate(self)
        self._splits, self._seed = splits, seed
        self._check_header()
        if self.inputs.kind == "text" and recipe.augment != "none":
            raise DataError(f"{self._title}: data.augment: '{recipe.augment}' is for images; none is right for text")
        whole = self._checked(splits.train, "train")
        self._digests = {"train": digests(splits.train, self.inputs.pad or 0)}
        content: list[Any] = [
            *self.inputs.content(),
            source.name,
            source.options.model_dump(mode="json", exclude_defaults=True),
            self.classes,
            self.channels,
            self.size,
            self.mean,
            self.std,
            self._content("train", splits.train),
        ]
        self.parts: dict[str, Part] = {}
        if splits.validation is not None:
            self.parts["validation"] = self._checked(splits.validation, "validation")
            self._digests["validation"] = digests(splits.validation, self.inputs.pad or 0)
            content.append(self._content("validation", splits.validation))
            whole = self._limited(whole, recipe.train_limit)
        else:
            whole, held_out = self._carved(whole, recipe.validation)
            if held_out is not None:
                self.parts["validation"] = held_out
                self._digests["validation"] = [self._digests["train"][row] for row in held_out.rows]
            whole = self._limited(whole, recipe.train_limit)
        self.parts["train"] = whole
        if isinstance(self.inputs, TokenIds) and isinstance(whole.split, TokenSplit):
            self.inputs = self.inputs.with_seen(np.asarray(whole.split.ids)[whole.rows])
        #: Rows of the training split that have a label for student and control; None: all.
        self.labelled = self._few_labels(whole, recipe.labelled)
        self._digests["train"] = [self._digests["train"][row] for row in whole.rows]
        #: Hash of the content of train and validation, the same for any seed, limit and place on disk.
        self.fingerprint = stable_hash(content)
        self._note_duplicates("validation", "train")
        absent = sorted(set(range(len(self.classes))) - set(whole.targets.tolist()))
        if absent:
            self.notes.append(f"no training sample of: {', '.join(self.classes[k] for k in absent)}")

    @property
    def num_train(self) -> int:
        return len(self.parts["train"])

    @property
    def split_sizes(self) -> dict[str, int]:
        """Samples of each split that has been read; test is among them once its gate is open."""
        return {name: len(self.parts[name]) for name in ("train", "validation", "test") if name in self.parts}

    def part(self, name: SplitName) -> Part:
        """Return a split; raise ContractError for the test split while its gate is shut."""
        if name == "test" and not self.test_gate.is_open:
            raise ContractError("the test split was asked for before selection closed; open test_gate first")
        if name not in self.parts:
            raise DataError(f"{self._title}: has no {name} split; set data.validation above 0")
        return self.parts[name]

    def loader(
        self,
        device: torch.device,
        batch_size: int,
        augment: Augment = "none",
        seed: int = 0,
        workers: int = 0,
        timeout_s: float = 120.0,
        channels_last: bool = False,
    ) -> Loader:
        """Return what makes batches on ``device``; ``batch_size`` is that of all processes together."""
        return Loader(self, device, batch_size, augment, seed, workers, timeout_s, channels_last)

    # --- checking -----------------------------------------------------------------------------

    @property
    def _title(self) -> str:
        return f"data set '{self.name}'"

    def _check_header(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise DataError(f"{self._title}: needs at least 2 classes of different names, got {list(self.classes)}")
        if self.inputs.kind == "text" and (self.channels != 1 or self.size[1] != 1):
            raise DataError(
                f"{self._title}: text with {self.channels} channels of size {self.size}; 1 of (L, 1) would be right"
            )
        if self.channels < 1 or len(self.size) != 2 or min(self.size) < 1:
            raise DataError(f"{self._title}: {self.channels} channels of size {self.size} are no images")
        for name, (first, last) in self.modalities.items():
            if not 0 <= first < last <= self.channels:
                raise DataError(
                    f"{self._title}: modality '{name}' has the channels {first}..{last - 1}; there are {self.channels}"
                )
        lengths = {len(self.mean), len(self.std)}
        if lengths != {self.channels} or not np.isfinite([*self.mean, *self.std]).all() or min(self.std) <= 0:
            raise DataError(
                f"{self._title}: mean {self.mean} and std {self.std} must be {self.channels} finite numbers each, "
                "one a channel, and std above 0"
            )

    def _checked(self, split: Split, name: str) -> Part:
        """The whole of a split, after checking its shape, type and targets."""
        where = f"{self._title}, split {name}"
        targets = np.asarray(split.targets)
        if isinstance(split, TokenSplit) != isinstance(self.inputs, TokenIds):
            raise DataError(f"{where}: text has TokenSplits and DataSplits.tokens; images have neither")
        samples = samples_of(split)
        if samples == 0:
            raise DataError(f"{where}: has no samples")
        if isinstance(split, TokenSplit):
            self._check_ids(where, split)
        if isinstance(split, ArraySplit):
            wanted = (samples, *self.size, self.channels)
            grey = self.channels == 1 and split.images.shape == wanted[:3]
            dtype = np.dtype(self.inputs.stored_dtype)
            if split.images.dtype != dtype or (split.images.shape != wanted and not grey):
                raise DataError(
                    f"{where}: images are {split.images.dtype} {split.images.shape}; {dtype} {wanted} would be right"
                )
            if split.images.dtype == np.float32 and self._augmented:
                raise DataError(f"{where}: measurements in float32 are no pixels; data.augment: none would be right")
            if split.images.dtype == np.float32 and not np.isfinite(split.images).all():
                raise DataError(f"{where}: some measurements are not finite")
        if targets.shape != (samples,) or targets.dtype.kind not in "iu":
            raise DataError(f"{where}: targets are {targets.dtype} {targets.shape}; int64 {(samples,)} would be right")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(f"{where}: targets lie in {low}..{high}; 0..{len(self.classes) - 1} would be right")
        return Part(split, np.arange(samples))

    def _check_ids(self, where: str, split: TokenSplit) -> None:
        assert isinstance(self.inputs, TokenIds)
        vocab_size, pad = self.inputs.vocab_size, self.inputs.fill
        ids = np.asarray(split.ids)
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or ids.shape[1] < 1:
            raise DataError(f"{where}: ids are {ids.dtype} {ids.shape}; int (N, L) would be right")
        if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            raise DataError(f"{where}: ids lie in {ids.min()}..{ids.max()}; 0..{vocab_size - 1} would be right")
        real = ids != pad
        wrong = np.flatnonzero(~real[:, 0] | (real[:, 1:] & ~real[:, :-1]).any(axis=1))
        if len(wrong):
            raise DataError(
                f"{where}: row {int(wrong[0])} is empty or is filled up before its end with {pad}; tokens "
                "first, then only fill, would be right"
            )

    def _content(self, name: str, split: Split) -> str:
        """Hash of a whole split: each sample's digest and target, in order."""
        digest = hashlib.sha256("".join(self._digests[name]).encode())
        digest.update(np.asarray(split.targets).astype("<i8").tobytes())
        return digest.hexdigest()

    def _note_duplicates(self, name: str, other: str) -> None:
        """Same image in two splits: known of public sets, so it is said and is no error."""
        if name not in self._digests or other not in self._digests:
            return
        known = set(self._digests[other])
        count = sum(digest in known for digest in self._digests[name])
        if count:
            what = self.inputs.noun
            samples = f"1 {what}" if count == 1 else f"{count} {what}s"
            self.notes.append(f"{samples} of {name} {'is' if count == 1 else 'are'} also in {other}")

    def _read_test(self) -> None:
        test = self._splits.test()
        self.parts["test"] = self._checked(test, "test")
        self._digests["test"] = digests(test, self.inputs.pad or 0)
        self._note_duplicates("test", "train")
        self._note_duplicates("test", "validation")

    # --- splitting ----------------------------------------------------------------------------

    def _carved(self, whole: Part, validation: float) -> tuple[Part, Part | None]:
        """Train and validation out of the training split; at least one sample of each class stays in train."""
        samples = len(whole)
        count = validation if isinstance(validation, int) else round(validation * samples)
        if count == 0:
            return whole, None
        chosen = stratified(whole.targets, count, derive_seed(self._seed, "validation"), keep=1)
        if chosen is None:
            raise DataError(
                f"{self._title}: data.validation takes {count} of {samples} training samples, which leaves none of "
                "some class to train on; lower it"
            )
        rest = np.setdiff1d(np.arange(samples), chosen)
        return Part(whole.split, whole.rows[rest]), Part(whole.split, whole.rows[chosen])

    def _few_labels(self, part: Part, count: int | None) -> tuple[int, ...] | None:
        if count is None or count == len(part):
            return None
        rows = stratified(part.targets, count, derive_seed(self._seed, "labelled"), keep=0)
        if rows is None:
            raise DataError(f"{self._title}: data.labelled is {count}, but there are {len(part)} training samples")
        return tuple(rows.tolist())

    def _limited(self, part: Part, limit: int | None) -> Part:
        if limit is None or limit == len(part):
            return part
        chosen = stratified(part.targets, limit, derive_seed(self._seed, "train_limit"), keep=0)
        if chosen is None:
            raise DataError(f"{self._title}: data.train_limit is {limit}, but there are {len(part)} training samples")
        return Part(part.split, part.rows[chosen])


def stratified(targets: np.ndarray, count: int, seed: int, keep: int) -> np.ndarray | None:
    """Choose ``count`` rows, of each class its share, leaving at least ``keep`` of each class that there is.

    Shapes: targets (N,) -> ascending rows (count,); None where there are not that many.
    """
    classes, inverse, sizes = np.unique(targets, return_inverse=True, return_counts=True)
    most = sizes - keep
    if count > most.sum():
        return None
    exact = sizes * (count / len(targets))
    quota = np.minimum(np.floor(exact).astype(np.int64), most)
    by_remainder = np.argsort(quota - exact, kind="stable")
    for k in itertools.cycle(by_remainder):
        if quota.sum() == count:
            break
        quota[k] += quota[k] < most[k]
    generator = np.random.Generator(np.random.Philox(seed))
    rows = [generator.permutation(np.flatnonzero(inverse == k))[: quota[k]] for k in range(len(classes))]
    return np.sort(np.concatenate(rows))


def samples_of(split: Split) -> int:
    """How many samples a split has."""
    if isinstance(split, FileSplit):
        return len(split.names)
    return len(split.images if isinstance(split, ArraySplit) else split.ids)


def digests(split: Split, pad: int = 0) -> list[str]:
    """Hash the content of each sample; of text without its fill, ``pad``."""
    if isinstance(split, TokenSplit):
        ids = np.asarray(split.ids).astype("<i4")
        rows = [row[:length].tobytes() for row, length in zip(ids, (ids != pad).sum(axis=1), strict=True)]
        return [hashlib.blake2b(row, digest_size=16).hexdigest() for row in rows]
    if isinstance(split, ArraySplit):
        images = np.ascontiguousarray(split.images)
        return [hashlib.blake2b(image.data, digest_size=16).hexdigest() for image in images]

    def of_file(i: int) -> str:
        if split.digest is not None:
            return split.digest(i)
        return hashlib.blake2b(np.ascontiguousarray(split.read(i)).tobytes(), digest_size=16).hexdigest()

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(pool.map(of_file, range(len(split.names))))
