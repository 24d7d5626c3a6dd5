"""Batches of a data set, the same bits for any number of workers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kdzoo.contract.classification import NO_LABEL
from kdzoo.contract.extension_points import ArraySplit, TokenSplit
from kdzoo.contract.step import Batch
from kdzoo.data.augmentation import Augment, augment
from kdzoo.data.data_set import DataSet, SplitName
from kdzoo.data.images import Decoder
from kdzoo.data.inputs import Inputs
from kdzoo.data.mixing import mixed
from kdzoo.data.readers import FileReader, MemoryReader, TokenReader
from kdzoo.data.sample_views import SampleViews
from kdzoo.errors import ContractError, DataError
from kdzoo.types import derive_seed

#: Batches of text that are sorted by length together: enough that each has rows of nearly one length, few enough that
#: whom a sentence meets stays a matter of chance.
POOLED_BATCHES = 50


def bucketed(order: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Reorder rows so that each batch holds rows of nearly one length, and batches of all lengths take turns.

    Shapes: rows (N,) in a random order, a length for each row of the split, -> (N,), N a multiple of ``batch_size``.
    """
    pool = POOLED_BATCHES * batch_size
    pools = [rows[np.argsort(lengths[rows], kind="stable")] for rows in np.split(order, range(pool, len(order), pool))]
    batches = np.concatenate(pools).reshape(-1, batch_size)
    return np.random.Generator(np.random.Philox(seed)).permutation(batches).reshape(-1)


class Loader:
    """Makes batches on the device: pixels in float32 in [0, 1], not normalised, or ids of tokens, int64.

    A batch of text is as wide as its longest row. In training, rows of nearly one length share a batch.
    """

    def __init__(
        self,
        data: DataSet,
        device: torch.device,
        batch_size: int,
        augment: Augment = "none",
        seed: int = 0,
        workers: int = 0,
        timeout_s: float = 120.0,
        channels_last: bool = False,
        pinned: bool = False,
    ) -> None:
        """``batch_size`` is that of all processes together; ``pinned`` batches from files reach the device faster."""
        self.data, self.device, self.batch_size = data, device, batch_size
        self._augment, self._seed = augment, seed
        #: What augments sample by sample; None: nothing, or the whole batch at once.
        self._views = None if isinstance(augment, str) else SampleViews(augment, data.inputs, seed)
        self._workers, self._timeout_s, self._pinned = workers, timeout_s, pinned
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._readers: dict[tuple[str, Decoder | None], MemoryReader | FileReader | TokenReader] = {}
        self._rows: np.ndarray | None = None
        self._epoch_samples: int | None = None
        self._labelled: np.ndarray | None = None  # (training samples,) bool; None: all have a label
        self._has_label: Tensor | None = None  # the same on the device

    def with_labels(self, rows: Sequence[int] | None) -> Loader:
        """The same loader, which shows the labels of these rows of the training split alone; None: of all."""
        other = copy.copy(self)
        other._labelled = None
        if rows is not None:
            other._labelled = np.isin(np.arange(self.data.num_train), rows)
            other._has_label = torch.from_numpy(other._labelled).to(self.device)
        return other

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
        mix: bool = False,
    ) -> Iterator[Batch]:
        """Yield an epoch's batches from ``start_step`` on; with ``world`` processes, this rank's share of each.

        With ``mix``, they are mixed as the augmentation says.
        """
        steps = self.steps_per_epoch
        batches = self.order(epoch)[: steps * self.batch_size].reshape(steps, world, self.batch_size // world)
        widths = self._widths(batches[start_step:].reshape(-1, self.batch_size)) if world > 1 else None
        shown = self._batches("train", list(batches[start_step:, rank]), view, widths)
        if self._labelled is not None:
            labelled = self._labelled[batches[start_step:]].sum(axis=(1, 2)) / world
            shown = map(self._with_labels_hidden, shown, labelled.tolist())
        augment = self._augment
        if not mix or isinstance(augment, str) or not augment.mixes:
            return shown
        return (mixed(batch, augment, self._seed, epoch, step) for step, batch in enumerate(shown, start_step))

    def _with_labels_hidden(self, batch: Batch, labelled: float) -> Batch:
        assert self._has_label is not None, "asked for with labels to hide"
        targets = batch.targets.where(self._has_label[batch.index], NO_LABEL)
        return replace(batch, targets=targets, labelled=labelled)

    def _widths(self, batches: np.ndarray) -> list[int] | None:
        """Return how wide each batch of text is in all processes, so that their shares fit together."""
        reader = self._reader("train")
        return reader.lengths[batches].max(axis=1).tolist() if isinstance(reader, TokenReader) else None

    def canonical_batches(
        self, view: int, batch_size: int | None = None, numbers: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Yield the training split in index order as ``view`` shows it; of its batches only ``numbers``, if given.

        Every ``inputs`` has exactly ``batch_size`` samples (None: a training batch's): the last batch is filled by
        repeating samples, so that the same kernels run as in training. ``index`` and ``targets`` hold the samples
        that count. Text is as wide as the split's longest row, so that whatever is made of it has one shape.
        """
        samples, batch_size = self.data.num_train, batch_size or self.batch_size
        steps = -(-samples // batch_size)
        numbers = range(steps) if numbers is None else numbers
        rows = (np.arange(steps * batch_size) % samples).reshape(steps, batch_size)[list(numbers)]
        reader = self._reader("train")
        widths = [int(reader.lengths.max())] * len(rows) if isinstance(reader, TokenReader) else None
        for number, batch in zip(numbers, self._batches("train", list(rows), view, widths), strict=True):
            count = min(samples - number * batch_size, batch_size)
            yield Batch(batch.inputs, batch.targets[:count], batch.index[:count], view)

    def eval_batches(
        self,
        split: SplitName,
        batch_size: int,
        samples: Sequence[int] | np.ndarray | None = None,
        inputs: Inputs | None = None,
    ) -> Iterator[Batch]:
        """Yield a split, or some rows of it, in order, without augmentation; the last batch may be short.

        ``inputs`` are those of the network that is evaluated: image files become pixels as it takes them. None: as the
        data set has them.
        """
        rows = np.arange(len(self.data.part(split))) if samples is None else np.asarray(samples, dtype=np.int64)
        batches = np.split(rows, range(batch_size, len(rows), batch_size))
        own = None if inputs is None else inputs.steps
        if own is None or self.data.preprocessing is None or own.same_pixels(self.data.preprocessing):
            return self._batches(split, batches, None)
        return self._batches(split, batches, None, decoder=self.data.decoder_of(own))

    def _batches(
        self,
        split: SplitName,
        batches: Sequence[np.ndarray],
        view: int | None,
        widths: Sequence[int] | None = None,
        decoder: Decoder | None = None,
    ) -> Iterator[Batch]:
        """Yield batches of rows; ``decoder`` None is the data set's own."""
        reader = self._reader(split, decoder)
        if isinstance(reader, TokenReader):
            for ids, rows in zip(reader.batches(batches, widths), batches, strict=True):
                index = torch.from_numpy(rows).to(self.device)
                yield Batch(ids, reader.targets[index], index, view or 0)
            return
        views = self._views if view is not None else None
        in_reader = isinstance(reader, FileReader) and views is not None
        images_of = reader.batches(batches, view) if isinstance(reader, FileReader) else reader.batches(batches)
        for images, rows in zip(images_of, batches, strict=True):
            index = torch.from_numpy(rows).to(self.device)
            shown = images
            if view is not None and isinstance(self._augment, str):
                shown = augment(images, index, self._augment, self._seed, view)
            elif view is not None and views is not None and not in_reader:
                shown = views.of_arrays(images, index, view)
            yield Batch(self._pixels(shown), reader.targets[index], index, view or 0)

    def _pixels(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self._format)  # first, as bytes are moved four times as fast
        return images if images.dtype == torch.float32 else images.float().div_(255)

    def _reader(self, split: SplitName, decoder: Decoder | None = None) -> MemoryReader | FileReader | TokenReader:
        part, key = self.data.part(split), (split, decoder or self.data.decoder)
        if key not in self._readers:
            if isinstance(part.split, TokenSplit):
                pad = self.data.inputs.pad
                assert pad is not None, "checked when the data set was opened"
                self._readers[key] = TokenReader(part, part.split, pad, self.device)
            elif isinstance(part.split, ArraySplit):
                self._readers[key] = MemoryReader(part, part.split, self.device)
            else:
                assert key[1] is not None, "checked when the data set was opened"
                self._readers[key] = FileReader(
                    part, part.split, key[1], self.device, self._workers, self._timeout_s, self._pinned, self._views
                )
        return self._readers[key]
