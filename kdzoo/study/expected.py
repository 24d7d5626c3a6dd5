"""Hold measured results against what a recipe says it reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kdzoo.contract.classification import quality
from kdzoo.report.statistics import spread

if TYPE_CHECKING:
    from kdzoo.recipe.sections import ExpectedRecipe

#: Standard errors of the difference of two means that still count as the same result.
STANDARD_ERRORS = 3.0

#: Points of accuracy below which a difference is rounding, not a result.
LEAST_TOLERANCE = 0.1

#: Points of accuracy above which the seeds are too far apart for a comparison to say anything.
MOST_TOLERANCE = 5.0

Outcome = Literal["reproduced", "not reproduced", "undecided"]


@dataclass(frozen=True)
class Reproduction:
    """Whether the mean was reproduced, and a few lines that say so with the numbers.

    ``problem`` is one sentence; empty when the mean was reproduced.
    """

    outcome: Outcome
    text: str
    problem: str


def tolerance_of(expected: ExpectedRecipe, std: float, seeds: int) -> float:
    """How many points below the published mean a mean over ``seeds`` with a standard deviation ``std`` may be."""
    error = (expected.std**2 / expected.seeds + max(std, expected.std) ** 2 / seeds) ** 0.5
    return max(STANDARD_ERRORS * error, LEAST_TOLERANCE)


def can_be_reproduced(expected: ExpectedRecipe) -> bool:
    """Whether as many seeds as were published, of the same spread, can decide anything."""
    return tolerance_of(expected, expected.std, expected.seeds) <= MOST_TOLERANCE


def hold_against(expected: ExpectedRecipe, results: Sequence[Mapping[str, Any]]) -> Reproduction:
    """Compare the mean top-1 over seeds with the published mean; better than published also counts.

    The tolerance is three standard errors of the difference, from the published and the measured spread. Where it is
    above MOST_TOLERANCE, a mean within it is neither reproduced nor refuted.
    """
    students = [quality(result["student"]) for result in results]
    found = spread(students)
    std = expected.std if found.std is None else found.std
    tolerance = tolerance_of(expected, std, len(students))
    below = expected.top1_percent - found.mean
    lines = [
        f"student   {found.mean:.2f} +- {std:.2f} % over {len(students)} seeds; "
        f"expected {expected.top1_percent:.2f} +- {expected.std:.2f} over {expected.seeds} (tolerance {tolerance:.2f})"
    ]
    controls = [quality(result["control"]) for result in results if result.get("control")]
    bound = results[0].get("upper_bound")
    if len(controls) == len(students) and bound:
        lines.append(
            f"control   {spread(controls).mean:.2f} %, an upper bound: the same network trained {bound}; the "
            f"student's mean is {found.mean - spread(controls).mean:+.2f} points from it"
        )
    elif len(controls) == len(students):
        gains = [s - c for s, c in zip(students, controls, strict=True)]
        wins = sum(gain > 0 for gain in gains)
        lines.append(
            f"control   {spread(controls).mean:.2f} %; gain {spread(gains).mean:+.2f} points, "
            f"{min(gains):+.2f} to {max(gains):+.2f}, better on {wins} of {len(gains)} seeds"
        )
    if below > tolerance:
        lines.append(f"NOT reproduced: {below:.2f} points below")
        return Reproduction("not reproduced", "\n".join(lines), "the published result was not reproduced")
    if tolerance > MOST_TOLERANCE:
        lines.append(
            f"UNDECIDED: seeds are so far apart that a mean may be {tolerance:.2f} points off, more than "
            f"{MOST_TOLERANCE:.2f}; this result can be neither reproduced nor refuted"
        )
        return Reproduction("undecided", "\n".join(lines), "the published result can be neither reproduced nor refuted")
    return Reproduction("reproduced", "\n".join([*lines, "reproduced"]), "")
