"""Successive halving: train all candidates shortly, keep the better ones, train those longer, until one is left.

Each round trains from scratch, with its own schedule over its own number of epochs, so a round is a set of ordinary
stages: what is stored is not trained again, and a study that was killed takes the same decisions. Scores are of the
validation split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kdzoo.errors import BudgetError, KdzooError

#: A round's work: trains candidates for so many epochs; label -> accuracy on the validation split in percent, or what
#: went wrong.
TrainRound = Callable[[Sequence[str], int], Mapping[str, float | KdzooError]]


@dataclass(frozen=True)
class Round:
    """What one round found out. ``kept`` go on, the best one first."""

    epochs: int
    scores: Mapping[str, float]  # label -> accuracy on the validation split, percent
    failed: Mapping[str, str]  # label -> why it could not be trained
    kept: tuple[str, ...]


def halve(
    costs: Mapping[str, float], train: TrainRound, *, epochs: int, most_epochs: int, keep: float = 0.5
) -> list[Round]:
    """Return the rounds; the last one keeps one candidate. One candidate alone needs no round.

    ``costs`` has an entry for each candidate: of two that are as good, the one that costs less is kept. The first round
    has ``epochs``, every further one twice as many, and none more than ``most_epochs``. ``keep`` is the share that goes
    on. Raises BudgetError where no candidate can be trained.
    """
    rounds: list[Round] = []
    left = tuple(costs)
    while len(left) > 1:
        length = min(epochs * 2 ** len(rounds), most_epochs)
        outcome = train(left, length)
        scores = {label: found for label in left if isinstance(found := outcome[label], float)}
        failed = {label: str(outcome[label]) for label in left if label not in scores}
        if not scores:
            first = next(iter(failed))
            raise BudgetError(f"budget: none of {len(left)} candidates could be trained; {first}: {failed[first]}")
        best = sorted(scores, key=lambda label: (-scores[label], costs[label], label))
        left = tuple(best[: min(math.ceil(keep * len(left)), len(left) - 1)])
        rounds.append(Round(length, scores, failed, left))
    return rounds


def planned(candidates: int, epochs: int, most_epochs: int, keep: float = 0.5) -> list[tuple[int, int]]:
    """Return (candidates, epochs) of each round that ``halve`` would make, if every candidate can be trained."""
    rounds: list[tuple[int, int]] = []
    while candidates > 1:
        rounds.append((candidates, min(epochs * 2 ** len(rounds), most_epochs)))
        candidates = min(math.ceil(keep * candidates), candidates - 1)
    return rounds


def front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the labels of points that no other beats: none is at least as good in everything and better in something.

    A point is an accuracy, of which more is better, and then costs, of which less is better.
    """

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = [(one[0], other[0]), *zip(other[1:], one[1:], strict=True)]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [label for label, point in points.items() if not any(beats(other, point) for other in points.values())]
