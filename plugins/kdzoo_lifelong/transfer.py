"""Measures of a sequence of tasks: accuracy on each task after each task, and three numbers computed from it.

``accuracies[i][j]`` is the accuracy on task j after task i was learnt, in percent; None where it was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Accuracies = Sequence[Sequence[float | None]]


def task_accuracies(
    logits: np.ndarray, targets: np.ndarray, tasks: Sequence[Sequence[int]], after: int
) -> tuple[float | None, ...]:
    """Return the accuracy in percent on each task after task ``after``, where the answer is one of the classes seen.

    The task of a sample is not given. None for later tasks, and for one without a test sample.

    Shapes: ``logits`` (N, K), ``targets`` (N,).
    """
    seen = np.array([k for task in tasks[: after + 1] for k in task])
    right = seen[logits[:, seen].argmax(axis=1)] == targets
    own = [np.isin(targets, task) for task in tasks]
    return tuple(
        float(100 * right[rows].mean()) if number <= after and rows.any() else None for number, rows in enumerate(own)
    )


def average_accuracy(accuracies: Accuracies, after: int) -> float | None:
    """Return the mean accuracy over the tasks learnt so far, in percent."""
    return mean(accuracies[after][: after + 1])


def average_forgetting(accuracies: Accuracies, after: int) -> float | None:
    """Return the distance of earlier tasks from their best accuracy so far, in points; None after the first task.

    The mean over earlier tasks j of max over l < i of a_lj, minus a_ij (Chaudhry et al. 2018, average forgetting).
    """
    drops = []
    for task in range(after):
        best = max((a for a in (row[task] for row in accuracies[task:after]) if a is not None), default=None)
        drops.append(difference(best, accuracies[after][task]))
    return mean(drops)


def backward_transfer(accuracies: Accuracies, after: int) -> float | None:
    """Return the effect of later learning on earlier tasks, in points; negative is forgetting, None after the first.

    The mean over earlier tasks j of a_ij - a_jj (Lopez-Paz and Ranzato 2017, equation 3).
    """
    return mean(difference(accuracies[after][task], accuracies[task][task]) for task in range(after))


def difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the measured values; None if there are none."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None
