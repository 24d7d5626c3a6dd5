"""Means, spreads and paired differences over seeds: the one place that computes them.

A seed is a sample of what a recipe can reach. Two arms with the same seed share the order of the data and the start of
the student, so the difference within a seed says more than the difference of two means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

#: Share of intervals that cover the true mean difference, if differences are normally distributed over seeds.
LEVEL = 0.95
#: A spread below this share of the values is rounding: the values are equal.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Spread:
    """The mean of some values, and their standard deviation (n - 1 in the denominator; None of a single value)."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean difference over ``seeds`` seeds, in the unit of the values.

    ``low`` and ``high`` end its interval of ``level``; ``p`` is two-sided. The three are None where nothing is known
    of the spread: with one seed, and where every seed shows the same difference. ``p_holm`` is ``p`` after Holm's
    correction for all comparisons of a table.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    p_holm: float | None = None
    level: float = LEVEL

    @property
    def decided(self) -> bool:
        """Whether the difference is unlikely to be chance, as one of all comparisons of its table."""
        return self.p_holm is not None and self.p_holm < 1 - self.level


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of at least one value."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Compare values by seed; a seed that only one side has is left out. None where no seed is in both."""
    shared = sorted(ours.keys() & theirs.keys())
    return mean_difference([ours[seed] - theirs[seed] for seed in shared]) if shared else None


def mean_difference(differences: Sequence[float]) -> Difference:
    """Return the mean of at least one difference, one a seed, with Student's t-interval and two-sided p."""
    found = spread(differences)
    largest = max(map(abs, differences))
    if found.std is None or found.std <= ROUNDING * largest:
        return Difference(found.mean, None, None, None, found.count)
    from scipy.special import stdtr, stdtrit  # here: 0.4 s that no other command needs

    freedom, error = found.count - 1, found.std / found.count**0.5
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(found.mean) / error))
    return Difference(found.mean, found.mean - half, found.mean + half, p, found.count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return each p after Holm's step-down correction for all of them.

    The chance that any true null hypothesis of the family is below a level is then at most that level.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def family(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """Return the same differences, those that have a p with ``p_holm`` for the family that they form."""
    tested = {name: found.p for name, found in differences.items() if found.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {name: replace(found, p_holm=corrected.get(name)) for name, found in differences.items()}
