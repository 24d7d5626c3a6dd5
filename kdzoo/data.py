"""A data set in its splits, and the batches made of them.

The order of samples is a function of (seed, epoch) and augmentation one of (seed, view, sample index), so batches are
the same bits for any number of workers and after any number of kills. The test split stays shut until its gate is
opened, once, when nothing is left to select.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdzoo.augment import Augment, augment
from kdzoo.errors import ContractError, DataError
from kdzoo.offers import ArraySplit, DataSource, DataSplits, FileSplit, Split, TokenSplit
from kdzoo.types import Batch, derive_seed, stable_hash

if TYPE_CHECKING:
    from kdzoo.recipe import DataRecipe

SplitName = Literal["train", "validation", "test"]

#: Threads that hash files; hashing lets go of the interpreter, so they run side by side.
HASHING_THREADS = 8

#: Batches of text that are sorted by length together: enough that each has rows of nearly one length, few enough that
#: whom a sentence meets stays a matter of chance.
POOLED_BATCHES = 50


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
        self.channels, self.size = splits.channels, (splits.size[0], splits.size[1])
        self.mean, self.std = tuple(splits.mean), tuple(splits.std)
        self.tokens = splits.tokens
        self.modalities = dict(splits.modalities)
        #: Whether samples are measurements in float32, which come as they are, and no pixels in [0, 1].
        self.floats = isinstance(splits.train, ArraySplit) and splits.train.images.dtype == np.float32
        self._augmented = recipe.augment != "none"
        self.source, self.licence = splits.source, splits.licence
        self.notes: list[str] = []
        self.test_gate = TestGate(self)
        self._splits, self._seed = splits, seed
        self._check_header()
        if self.tokens is not None and recipe.augment != "none":
            raise DataError(f"{self._title}: data.augment: '{recipe.augment}' is for images; none is right for text")
        whole = self._checked(splits.train, "train")
        self._pad = 0 if self.tokens is None else self.tokens.pad
        self._digests = {"train": digests(splits.train, self._pad)}
        content: list[Any] = [] if self.tokens is None else [self._token_content()]
        content += [
            source.name,
            source.options.model_dump(mode="json", exclude_defaults=True),
            self.classes,
            self.channels,
        ]
        content += [self.size, self.mean, self.std, self._content("train", splits.train)]
        self.parts: dict[str, Part] = {}
        if splits.validation is not None:
            self.parts["validation"] = self._checked(splits.validation, "validation")
            self._digests["validation"] = digests(splits.validation, self._pad)
            content.append(self._content("validation", splits.validation))
            whole = self._limited(whole, recipe.train_limit)
        else:
            whole, held_out = self._carved(whole, recipe.validation)
            if held_out is not None:
                self.parts["validation"] = held_out
                self._digests["validation"] = [self._digests["train"][row] for row in held_out.rows]
            whole = self._limited(whole, recipe.train_limit)
        self.parts["train"] = whole
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
        if self.tokens is not None and (self.channels != 1 or self.size[1] != 1):
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
        if isinstance(split, TokenSplit) != (self.tokens is not None):
            raise DataError(f"{where}: text has TokenSplits and DataSplits.tokens; images have neither")
        samples = samples_of(split)
        if samples == 0:
            raise DataError(f"{where}: has no samples")
        if isinstance(split, TokenSplit):
            self._check_ids(where, split)
        if isinstance(split, ArraySplit):
            wanted = (samples, *self.size, self.channels)
            grey = self.channels == 1 and split.images.shape == wanted[:3]
            dtype = np.dtype(np.float32 if self.floats else np.uint8)
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
        assert self.tokens is not None
        ids = np.asarray(split.ids)
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or ids.shape[1] < 1:
            raise DataError(f"{where}: ids are {ids.dtype} {ids.shape}; int (N, L) would be right")
        if int(ids.min()) < 0 or int(ids.max()) >= self.tokens.vocab_size:
            raise DataError(
                f"{where}: ids lie in {ids.min()}..{ids.max()}; 0..{self.tokens.vocab_size - 1} would be right"
            )
        real = ids != self.tokens.pad
        wrong = np.flatnonzero(~real[:, 0] | (real[:, 1:] & ~real[:, :-1]).any(axis=1))
        if len(wrong):
            raise DataError(
                f"{where}: row {int(wrong[0])} is empty or is filled up before its end with {self.tokens.pad}; tokens "
                "first, then only fill, would be right"
            )

    def _token_content(self) -> Any:
        """What a tokenizer is known by: its ids, and its files."""
        assert self.tokens is not None
        files = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.tokens.files.items())}
        return [self.tokens.vocab_size, self.tokens.pad, self.tokens.unknown, files]

    def token_args(self) -> dict[str, Any] | None:
        """What a network that reads text is built from; None for images. ``seen`` are the ids of the training split."""
        if self.tokens is None:
            return None
        train = self.parts["train"]
        assert isinstance(train.split, TokenSplit)
        seen = np.unique(np.asarray(train.split.ids)[train.rows]).tolist()
        return {
            "vocab_size": self.tokens.vocab_size,
            "pad": self.tokens.pad,
            "unknown": self.tokens.unknown,
            "seen": seen,
        }

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
            what = "image" if self.tokens is None else "text"
            samples = f"1 {what}" if count == 1 else f"{count} {what}s"
            self.notes.append(f"{samples} of {name} {'is' if count == 1 else 'are'} also in {other}")

    def _read_test(self) -> None:
        test = self._splits.test()
        self.parts["test"] = self._checked(test, "test")
        self._digests["test"] = digests(test, self._pad)
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


def bucketed(order: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Reorder rows so that each batch holds rows of nearly one length, and batches of all lengths take turns.

    Shapes: rows (N,) in a random order, a length for each row of the split, -> (N,), N a multiple of ``batch_size``.
    """
    pool = POOLED_BATCHES * batch_size
    pools = [rows[np.argsort(lengths[rows], kind="stable")] for rows in np.split(order, range(pool, len(order), pool))]
    batches = np.concatenate(pools).reshape(-1, batch_size)
    return np.random.Generator(np.random.Philox(seed)).permutation(batches).reshape(-1)


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


# --- batches --------------------------------------------------------------------------------


class Loader:
    """Makes batches on the device: pixels in float32 in [0, 1], not normalised, or ids of tokens, int64.

    A batch of text is as wide as its longest row. In training, rows of nearly one length share a batch.
    """

    def __init__(
        self,
        data: DataSet,
        device: torch.device,
        batch_size: int,
        augment: Augment,
        seed: int,
        workers: int,
        timeout_s: float,
        channels_last: bool,
    ) -> None:
        self.data, self.device, self.batch_size = data, device, batch_size
        self._augment, self._seed = augment, seed
        self._workers, self._timeout_s = workers, timeout_s
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._readers: dict[str, MemoryReader | FileReader | TokenReader] = {}
        self._rows: np.ndarray | None = None
        self._epoch_samples: int | None = None

    def only(self, rows: Sequence[int], epoch_samples: int | None = None) -> Loader:
        """The same loader for training on some rows of the training split alone; a sample keeps its index.

        They recur until an epoch has ``epoch_samples``; None: each comes once.
        """
        chosen = np.unique(np.asarray(rows, dtype=np.int64))
        if len(chosen) < len(rows) or not len(chosen) or chosen[0] < 0 or chosen[-1] >= self.data.num_train:
            raise ContractError(
                f"a stage's samples must be different rows of the {self.data.num_train} training samples, got "
                f"{len(rows)} of {len(chosen)} different"
                + (f", from {chosen[0]} to {chosen[-1]}" if len(chosen) else "")
            )
        other = copy.copy(self)
        other._rows, other._epoch_samples = chosen, epoch_samples
        return other

    @property
    def num_train(self) -> int:
        """Samples of an epoch."""
        if self._epoch_samples is not None:
            return self._epoch_samples
        return self.data.num_train if self._rows is None else len(self._rows)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training split; the last, short one is dropped."""
        steps = self.num_train // self.batch_size
        if steps == 0:
            whose = f"'{self.data.name}' has after validation is held out" if self._rows is None else "a stage has"
            raise DataError(
                f"data.batch_size: {self.batch_size} is more than the {self.num_train} training samples that "
                f"{whose}; lower it"
            )
        return steps

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of the samples that are trained on, or as many of them as it takes."""
        generator = np.random.Generator(np.random.Philox(derive_seed(self._seed, "order", epoch)))
        rows = np.arange(self.data.num_train) if self._rows is None else self._rows
        rounds = -(-self.num_train // len(rows))
        order = rows[np.concatenate([generator.permutation(len(rows)) for _ in range(rounds)])[: self.num_train]]
        reader = self._reader("train")
        if not isinstance(reader, TokenReader):
            return order
        whole = order[: self.steps_per_epoch * self.batch_size]
        return bucketed(whole, reader.lengths, self.batch_size, derive_seed(self._seed, "buckets", epoch))

    def train_batches(
        self,
        epoch: int,
        view: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        second_view: bool = False,
    ) -> Iterator[Batch]:
        """Yield an epoch's batches from ``start_step`` on; with ``world`` processes, this rank's share of each."""
        steps = self.steps_per_epoch
        batches = self.order(epoch)[: steps * self.batch_size].reshape(steps, world, self.batch_size // world)
        widths = self._widths(batches[start_step:].reshape(-1, self.batch_size)) if world > 1 else None
        return self._batches("train", list(batches[start_step:, rank]), view, second_view, widths)

    def _widths(self, batches: np.ndarray) -> list[int] | None:
        """How wide each batch of text is for all processes, whose shares are put together again."""
        reader = self._reader("train")
        return reader.lengths[batches].max(axis=1).tolist() if isinstance(reader, TokenReader) else None

    def canonical_batches(self, view: int, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield the training split in index order as ``view`` shows it.

        Every ``inputs`` has exactly ``batch_size`` samples (None: a training batch's): the last batch is filled by
        repeating samples, so that the same kernels run as in training. ``index`` and ``targets`` hold the samples
        that count. Text is as wide as the split's longest row, so that whatever is made of it has one shape.
        """
        samples, batch_size = self.data.num_train, batch_size or self.batch_size
        steps = -(-samples // batch_size)
        rows = np.arange(steps * batch_size) % samples
        valid = samples
        reader = self._reader("train")
        widths = [int(reader.lengths.max())] * steps if isinstance(reader, TokenReader) else None
        for batch in self._batches("train", list(rows.reshape(steps, batch_size)), view, False, widths):
            count = min(valid, batch_size)
            valid -= count
            yield Batch(batch.inputs, batch.targets[:count], batch.index[:count], view)

    def eval_batches(
        self, split: SplitName, batch_size: int, samples: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yield a split, or some rows of it, in order, without augmentation; the last batch may be short."""
        rows = np.arange(len(self.data.part(split))) if samples is None else np.asarray(samples, dtype=np.int64)
        return self._batches(split, np.split(rows, range(batch_size, len(rows), batch_size)), None, False)

    def _batches(
        self,
        split: SplitName,
        batches: Sequence[np.ndarray],
        view: int | None,
        second_view: bool,
        widths: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        reader = self._reader(split)
        if isinstance(reader, TokenReader):
            for ids, rows in zip(reader.batches(batches, widths), batches, strict=True):
                index = torch.from_numpy(rows).to(self.device)
                yield Batch(ids, reader.targets[index], index, view or 0, ids if second_view else None)
            return
        for images, rows in zip(reader.batches(batches), batches, strict=True):
            index = torch.from_numpy(rows).to(self.device)
            first = images if view is None else augment(images, index, self._augment, self._seed, view)
            second = None
            if second_view:
                assert view is not None, "evaluation has one view"
                second = self._pixels(augment(images, index, self._augment, self._seed, view, "second"))
            yield Batch(self._pixels(first), reader.targets[index], index, view or 0, second)

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = images if images.dtype == torch.float32 else images.float().div_(255)
        return pixels.contiguous(memory_format=self._format)

    def _reader(self, split: SplitName) -> MemoryReader | FileReader | TokenReader:
        part = self.data.part(split)
        if split not in self._readers:
            if isinstance(part.split, TokenSplit):
                assert self.data.tokens is not None, "checked when the data set was opened"
                self._readers[split] = TokenReader(part, part.split, self.data.tokens.pad, self.device)
            elif isinstance(part.split, ArraySplit):
                self._readers[split] = MemoryReader(part, part.split, self.device)
            else:
                shape = (*self.data.size, self.data.channels)
                self._readers[split] = FileReader(part, part.split, shape, self.device, self._workers, self._timeout_s)
        return self._readers[split]


class MemoryReader:
    """A split that lives on the device as uint8."""

    def __init__(self, part: Part, split: ArraySplit, device: torch.device) -> None:
        images = torch.from_numpy(np.asarray(split.images)[part.rows])
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        self.images = images.contiguous().to(device)
        self.targets = torch.from_numpy(part.targets).to(device)

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield uint8 (N, C, H, W) for each batch of indices."""
        for rows in batches:
            yield self.images.index_select(0, torch.from_numpy(rows).to(self.images.device))


class TokenReader:
    """A split of text that lives on the device."""

    def __init__(self, part: Part, split: TokenSplit, pad: int, device: torch.device) -> None:
        ids = np.asarray(split.ids)[part.rows]
        self.lengths = (ids != pad).sum(axis=1)  # (N,), tokens without fill
        self.ids = torch.from_numpy(ids.astype(np.int64)).to(device)
        self.targets = torch.from_numpy(part.targets).to(device)

    def batches(self, batches: Sequence[np.ndarray], widths: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield ids (N, L) for each batch of indices, L its longest row's length or the width that is given."""
        for number, rows in enumerate(batches):
            width = int(self.lengths[rows].max()) if widths is None else widths[number]
            yield self.ids[:, :width].index_select(0, torch.from_numpy(rows).to(self.ids.device))


class FileReader:
    """A split that worker processes read sample by sample; they only read, so their number changes no bit."""

    def __init__(
        self,
        part: Part,
        split: FileSplit,
        shape: tuple[int, ...],
        device: torch.device,
        workers: int,
        timeout_s: float,
    ) -> None:
        self.samples = Samples(split, part.rows, shape)
        self.targets = torch.from_numpy(part.targets).to(device)
        self.device, self.workers, self.timeout_s = device, workers, timeout_s

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield uint8 (N, C, H, W) for each batch of indices; raise DataError for what cannot be read."""
        loader = torch.utils.data.DataLoader(
            self.samples,
            batch_sampler=[rows.tolist() for rows in batches],
            num_workers=self.workers,
            timeout=self.timeout_s if self.workers else 0,
            collate_fn=_stacked,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its base seed must not come out of the global one
        )
        iterator = iter(loader)
        try:
            while (images := self._next(iterator)) is not None:
                if isinstance(images, str):
                    raise DataError(images)
                yield images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        finally:
            del iterator  # the workers end now, not when an error's traceback is collected

    def _next(self, iterator: Iterator[Tensor | str]) -> Tensor | str | None:
        """The next batch, a problem, or None at the end."""
        try:
            return next(iterator, None)
        except RuntimeError as error:  # a worker that hangs or was killed
            return (
                f"{self.workers} workers gave no batch within data.timeout_s: {self.timeout_s:g}, or died; set "
                f"data.workers: 0 to see what hangs, or raise data.timeout_s\n  {error}"
            )


class Samples(torch.utils.data.Dataset[Any]):
    """Rows of a file split. A problem is returned as its text, as exceptions do not travel well between processes."""

    def __init__(self, split: FileSplit, rows: np.ndarray, shape: tuple[int, ...]) -> None:
        self.split, self.rows, self.shape = split, rows, shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray | str:
        row = int(self.rows[index])
        name = self.split.names[row]
        try:
            image = self.split.read(row)
        except DataError as error:
            return str(error)
        except Exception as error:  # a plugin's reader; whatever it raises is about this sample, and is reported
            return f"{name}: cannot be read: {type(error).__name__}: {error}"
        if image.dtype != np.uint8 or image.shape != self.shape:
            return f"{name}: read as {image.dtype} {image.shape}; uint8 {self.shape} would be right"
        return image


def _stacked(samples: list[np.ndarray | str]) -> Tensor | str:
    """A batch of uint8 (N, H, W, C), or the first problem in it."""
    problem = next((sample for sample in samples if isinstance(sample, str)), None)
    return problem if problem is not None else torch.from_numpy(np.stack(samples))  # type: ignore[arg-type]
