"""Choosing rows of a training split: for validation, for a limit, for few labels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from kdzoo.contract.classification import NO_LABEL
from kdzoo.contract.extension_points import Split
from kdzoo.errors import DataError
from kdzoo.types import derive_seed


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

    @property
    def labelled(self) -> np.ndarray:
        """The samples that have a label, (N,) int64, ascending."""
        return np.flatnonzero(self.targets != NO_LABEL)


def carved(title: str, whole: Part, validation: float, seed: int) -> tuple[Part, Part | None]:
    """Divide the training split into train and validation; at least one sample of each class stays in train.

    ``validation`` is a share of the samples with a label, or a number of them where it is an int. The second part is
    None where it is 0, or where no sample has a label. Raises DataError that begins with ``title``.
    """
    labelled = whole.labelled
    samples = len(labelled)
    count = validation if isinstance(validation, int) else round(validation * samples)
    if count == 0 or samples == 0:
        return whole, None
    chosen = stratified(whole.targets[labelled], count, derive_seed(seed, "validation"), keep=1)
    if chosen is None:
        kind = "training samples" if samples == len(whole) else "training samples with a label"
        raise DataError(
            f"{title}: data.validation takes {count} of {samples} {kind}, which leaves none of "
            "some class to train on; lower it"
        )
    chosen = labelled[chosen]
    rest = np.setdiff1d(np.arange(len(whole)), chosen)
    return Part(whole.split, whole.rows[rest]), Part(whole.split, whole.rows[chosen])


def limited(title: str, part: Part, limit: int | None, seed: int) -> Part:
    """Return as many rows of the training split as ``data.train_limit`` allows; raise DataError if it has fewer."""
    if limit is None or limit == len(part):
        return part
    chosen = stratified(part.targets, limit, derive_seed(seed, "train_limit"), keep=0)
    if chosen is None:
        raise DataError(f"{title}: data.train_limit is {limit}, but there are {len(part)} training samples")
    return Part(part.split, part.rows[chosen])


def few_labels(title: str, part: Part, count: int | None, seed: int) -> tuple[int, ...] | None:
    """Return the samples that keep their label under ``data.labelled``; None: all have one. Raises DataError."""
    labelled = part.labelled
    if count is None or count == len(labelled):
        return None if len(labelled) == len(part) else tuple(labelled.tolist())
    rows = stratified(part.targets[labelled], count, derive_seed(seed, "labelled"), keep=0)
    if rows is None:
        kind = "training samples" if len(labelled) == len(part) else "training samples with a label"
        raise DataError(f"{title}: data.labelled is {count}, but there are {len(labelled)} {kind}")
    return tuple(labelled[rows].tolist())


def stratified(targets: np.ndarray, count: int, seed: int, keep: int) -> np.ndarray | None:
    """Choose ``count`` rows, of each class its share, leaving at least ``keep`` of each class that there is.

    Shapes: targets (N,) -> ascending rows (count,); None where there are not that many.
    """
    if count > len(targets):
        return None
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
