"""Data sets as the engine reads them: splits that are stated and seeded, and batches that are pure functions.

Order is a function of (seed, epoch), augmentation of (seed, view, sample index). Arrays live on the device as uint8
and are augmented there; files are read by DataLoader workers and augmented the same way, with the same bits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdzoo.augment import augment
from kdzoo.errors import ContractError, DataError
from kdzoo.offers import ArraySplit, DataSource, FileSplit, Split
from kdzoo.recipe import DataRecipe
from kdzoo.types import Batch, derive_seed


class TestGate:
    """Keeps the test split shut until every choice has been made."""

    def __init__(self, load: Callable[[], Split]) -> None:
        self._load = load
        self._split: Split | None = None
        self.is_open = False
        self.reads = 0

    def open(self) -> None:
        self.is_open = True

    def read(self) -> Split:
        """Return the test split; raise ContractError while selection is still going on."""
        if not self.is_open:
            raise ContractError("the test split was asked for before selection had closed; use the validation split")
        self.reads += 1
        if self._split is None:
            self._split = self._load()
        return self._split


@dataclass
class DataSet:
    """A data set with its splits; ``validation`` is None when the recipe holds nothing out."""

    name: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split | None
    test_gate: TestGate
    fingerprint: str
    split_sizes: Mapping[str, int]
    source: str = ""
    licence: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def num_train(self) -> int:
        return len(self.train.targets)

    def loader(self, device: torch.device, batch_size: int, augment: str, seed: int, workers: int, timeout_s: float) -> Loader:
        return Loader(self, device, batch_size, augment, seed, workers, timeout_s)


# --- opening ---------------------------------------------------------------------------------


def open_data(source: DataSource, recipe: DataRecipe, seed: int) -> DataSet:
    """Load a data set and settle its splits. Raises DataError for what is missing or inconsistent."""
    root = Path(recipe.root or os.environ.get("KDZOO_DATA", "data")).expanduser()
    splits = source.load(root)
    train, validation = splits.train, splits.validation
    _check(train, len(splits.classes), "train")
    notes: list[str] = []
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "splits")))
    if recipe.train_limit is not None:
        held = recipe.train_limit + _held_out(recipe.validation, recipe.train_limit, validation)
        if held > len(train.targets):
            raise DataError(f"data.train_limit: {held} samples asked for (validation included), there are {len(train.targets)}")
        train = subset(train, _stratified(train.targets, held, generator)[0])
    if validation is None and recipe.validation:
        count = _held_out(recipe.validation, len(train.targets) if recipe.train_limit is None else recipe.train_limit, None)
        if count >= len(train.targets):
            raise DataError(f"data.validation: {count} samples held out of {len(train.targets)} leaves nothing to train on")
        chosen, rest = _stratified(train.targets, count, generator)
        train, validation = subset(train, rest), subset(train, chosen)
        notes.append(f"validation: {count} samples held out of the training split, stratified, seed {seed}")
    if validation is not None:
        _check(validation, len(splits.classes), "validation")

    def load_test() -> Split:
        test = splits.test()
        _check(test, len(splits.classes), "test")
        notes.extend(_duplicates({"train": train, "validation": validation, "test": test}))
        return test

    notes.extend(_duplicates({"train": train, "validation": validation}))
    sizes = {"train": len(train.targets), "validation": 0 if validation is None else len(validation.targets)}
    return DataSet(
        name=source.name,
        classes=splits.classes,
        channels=splits.channels,
        size=splits.size,
        mean=splits.mean,
        std=splits.std,
        train=train,
        validation=validation,
        test_gate=TestGate(load_test),
        fingerprint=_fingerprint(train, validation),
        split_sizes=sizes,
        source=splits.source,
        licence=splits.licence,
        notes=notes,
    )


def _held_out(wanted: float | int, samples: int, given: Split | None) -> int:
    if given is not None:
        return 0
    return round(wanted * samples) if wanted < 1 else int(wanted)


def _check(split: Split, classes: int, which: str) -> None:
    targets = np.asarray(split.targets)
    if len(targets) == 0:
        raise DataError(f"the {which} split has no samples")
    count = len(split.images) if isinstance(split, ArraySplit) else len(split.names)
    if count != len(targets):
        raise DataError(f"the {which} split has {count} images but {len(targets)} targets")
    if targets.min() < 0 or targets.max() >= classes:
        raise DataError(f"the {which} split has targets {targets.min()} to {targets.max()}; {classes} classes allow 0 to {classes - 1}")


def _stratified(targets: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of ``count`` samples with the classes in proportion, and of the rest, both in order."""
    targets = np.asarray(targets)
    shuffled = generator.permutation(len(targets))
    labels, sizes = np.unique(targets, return_counts=True)
    exact = sizes * count / len(targets)
    share = np.floor(exact).astype(int)
    for k in np.argsort(-(exact - share), kind="stable")[: count - share.sum()]:
        share[k] += 1
    taken = np.concatenate([shuffled[targets[shuffled] == label][:part] for label, part in zip(labels, share, strict=True)])
    taken = np.sort(taken)
    return taken, np.setdiff1d(np.arange(len(targets)), taken)


def subset(split: Split, index: np.ndarray) -> Split:
    """The samples of a split at ``index``."""
    if isinstance(split, ArraySplit):
        return ArraySplit(split.images[index], np.asarray(split.targets)[index])
    places = index.tolist()
    read = split.read
    return FileSplit(tuple(split.names[i] for i in places), np.asarray(split.targets)[index], _Reindexed(read, tuple(places)))


@dataclass(frozen=True)
class _Reindexed:
    """A reader of a subset; a class so that workers can receive it."""

    read: Callable[[int], np.ndarray]
    places: tuple[int, ...]

    def __call__(self, i: int) -> np.ndarray:
        return self.read(self.places[i])


def _fingerprint(*splits: Split | None) -> str:
    """Hash of all samples that training and selection see; of a file split its names, sizes and targets."""
    digest = hashlib.sha256()
    for split in splits:
        if split is None:
            continue
        digest.update(np.ascontiguousarray(split.targets, dtype=np.int64).tobytes())
        if isinstance(split, ArraySplit):
            digest.update(str(split.images.shape).encode() + np.ascontiguousarray(split.images).tobytes())
        else:
            for name in split.names:
                path = Path(name)
                digest.update(f"{name}\0{path.stat().st_size if path.is_file() else 0}\0".encode())
    return digest.hexdigest()


def _duplicates(splits: Mapping[str, Split | None]) -> list[str]:
    """Say how many images stand in two splits; arrays only, files would have to be read twice."""
    seen: dict[str, set[bytes]] = {}
    notes = []
    for name, split in splits.items():
        if not isinstance(split, ArraySplit):
            continue
        images = np.ascontiguousarray(split.images)
        hashes = {hashlib.blake2b(image.tobytes(), digest_size=12).digest() for image in images}
        for other, known in seen.items():
            if name == "test" or other == "train":
                common = len(hashes & known)
                if common:
                    notes.append(f"{common} images of the {name} split are also in the {other} split")
        seen[name] = hashes
    return notes


# --- feeding ---------------------------------------------------------------------------------


class Loader:
    """Makes batches of a data set on one device."""

    def __init__(self, data: DataSet, device: torch.device, batch_size: int, augment: str, seed: int, workers: int, timeout_s: float) -> None:
        self.data, self.device, self.batch_size = data, device, batch_size
        self.augment, self.seed, self.workers, self.timeout_s = augment, seed, workers, timeout_s
        self.steps_per_epoch = data.num_train // batch_size
        if self.steps_per_epoch == 0:
            raise DataError(f"data.batch_size: {batch_size} is more than the {data.num_train} training samples")
        self._train = self._samples(data.train)

    def _samples(self, split: Split) -> _Memory | _Files:
        if isinstance(split, ArraySplit):
            return _Memory(split, self.device)
        return _Files(split, self.device, self.workers, self.timeout_s)

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch in their order, (steps, batch size)."""
        generator = np.random.Generator(np.random.Philox(derive_seed(self.seed, "order", epoch)))
        kept = self.steps_per_epoch * self.batch_size
        return generator.permutation(self.data.num_train)[:kept].reshape(-1, self.batch_size)

    def train_batches(self, epoch: int, view: int, start: int, rank: int, world: int, second_view: bool) -> Iterator[Batch]:
        """Batches of one epoch from step ``start``; a rank's share is a contiguous part of each global batch."""
        share = self.batch_size // world
        order = self.order(epoch)[start:, rank * share : (rank + 1) * share]
        for index, images, targets in self._train.batches(order):
            second = None
            if second_view:  # views of one epoch never coincide with another's first view
                second = self._pixels(augment(images, index, self.augment, derive_seed(self.seed, "second"), view))
            yield Batch(self._pixels(augment(images, index, self.augment, self.seed, view)), targets, index, view, second)

    def canonical_batches(self, view: int) -> Iterator[Batch]:
        """The training split at one view in index order; ``inputs`` always has the full batch size, padded by
        repetition at the end, while ``index`` and ``targets`` have only the true samples."""
        count = self.data.num_train
        padded = np.arange(-(-count // self.batch_size) * self.batch_size) % count
        done = 0
        for index, images, targets in self._train.batches(padded.reshape(-1, self.batch_size)):
            true = min(self.batch_size, count - done)
            done += true
            inputs = self._pixels(augment(images, index, self.augment, self.seed, view))
            yield Batch(inputs, targets[:true], index[:true], view)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """A split in its order, not augmented; the last batch may be short."""
        samples = self._train if split == "train" else self._samples(self._split(split))
        count = len(samples)
        chunks = [np.arange(start, min(count, start + batch_size)) for start in range(0, count, batch_size)]
        for index, images, targets in samples.batches(chunks):
            yield Batch(self._pixels(images), targets, index)

    def _split(self, name: str) -> Split:
        if name == "test":
            return self.data.test_gate.read()
        if name == "validation" and self.data.validation is not None:
            return self.data.validation
        raise DataError(f"there is no {name} split; known: train, validation (data.validation above 0), test")

    def _pixels(self, images: Tensor) -> Tensor:
        return images.float().div_(255)


class _Memory:
    """A split that lives on the device as uint8 (N, C, H, W)."""

    def __init__(self, split: ArraySplit, device: torch.device) -> None:
        images = torch.from_numpy(np.ascontiguousarray(split.images))
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=torch.channels_last).to(device)
        self.targets = torch.from_numpy(np.asarray(split.targets).astype(np.int64)).to(device)

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for chosen in order:
            index = torch.from_numpy(np.ascontiguousarray(chosen)).to(self.targets.device)
            yield index, self.images[index], self.targets[index]


class _Files(Dataset[Any]):
    """A split that workers read sample by sample."""

    def __init__(self, split: FileSplit, device: torch.device, workers: int, timeout_s: float) -> None:
        self.split, self.device, self.workers, self.timeout_s = split, device, workers, timeout_s

    def __len__(self) -> int:
        return len(self.split.targets)

    def __getitem__(self, i: int) -> Tensor:
        image = self.split.read(i)
        if image.ndim == 2:
            image = image[..., None]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def batches(self, order: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = [np.asarray(chosen).tolist() for chosen in order]
        loader = DataLoader(
            self,
            batch_sampler=order,
            num_workers=self.workers,
            timeout=self.timeout_s if self.workers else 0,
            multiprocessing_context="spawn" if self.workers else None,
        )
        targets = torch.from_numpy(np.asarray(self.split.targets).astype(np.int64))
        try:
            for chosen, images in zip(order, loader, strict=True):
                index = torch.tensor(chosen)
                yield index.to(self.device), images.to(self.device), targets[index].to(self.device)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise DataError(f"a worker that reads files died or took more than {self.timeout_s:g} s: {error}") from error
