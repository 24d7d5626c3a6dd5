"""A published mean is held against measured ones by standard errors, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from kdzoo.recipe.sections import ExpectedRecipe
from kdzoo.study.expected import can_be_reproduced, hold_against


def expected(top1: float = 90.0, std: float = 1.0, seeds: int = 4) -> ExpectedRecipe:
    return ExpectedRecipe(top1_percent=top1, std=std, seeds=seeds)


def results(*students: float, controls: tuple[float | None, ...] | None = None) -> list[dict[str, Any]]:
    controls = controls or (None,) * len(students)
    return [
        {"student": {"top1_percent": s}, "control": c and {"top1_percent": c}}
        for s, c in zip(students, controls, strict=True)
    ]


def test_the_tolerance_is_three_standard_errors_of_the_difference() -> None:
    # measured 87.0 and 90.0: mean 88.5, spread 2.121; error sqrt(1 / 4 + 4.5 / 2) = 1.5811, tolerance 4.74
    verdict = hold_against(expected(), results(87.0, 90.0))
    assert (verdict.outcome, verdict.problem) == ("reproduced", "")
    assert verdict.text == (
        "student   88.50 +- 2.12 % over 2 seeds; expected 90.00 +- 1.00 over 4 (tolerance 4.74)\nreproduced"
    )


def test_a_lucky_small_spread_is_taken_as_the_published_one() -> None:
    # measured 88.0 four times: error sqrt(1 / 4 + 1 / 4) = 0.7071, tolerance 2.12; 88.0 is 2.00 below
    assert hold_against(expected(), results(88.0, 88.0, 88.0, 88.0)).outcome == "reproduced"
    verdict = hold_against(expected(), results(87.8, 87.8, 87.8, 87.8))
    assert verdict.outcome == "not reproduced"
    assert verdict.problem == "the published result was not reproduced"
    assert verdict.text == (
        "student   87.80 +- 0.00 % over 4 seeds; expected 90.00 +- 1.00 over 4 (tolerance 2.12)\n"
        "NOT reproduced: 2.20 points below"
    )


def test_one_seed_is_judged_by_the_published_spread() -> None:
    # error sqrt(1 / 4 + 1 / 1) = 1.1180, tolerance 3.354
    assert hold_against(expected(), results(86.65)).outcome == "reproduced"
    assert hold_against(expected(), results(86.64)).outcome == "not reproduced"
    assert "86.65 +- 1.00 % over 1 seeds" in hold_against(expected(), results(86.65)).text


@pytest.mark.parametrize(("measured", "reproduced"), [(89.9, True), (89.89, False), (90.0, True), (99.0, True)])
def test_without_any_spread_a_tenth_of_a_point_is_rounding_and_better_always_counts(
    measured: float, reproduced: bool
) -> None:
    assert (hold_against(expected(std=0.0), results(measured, measured)).outcome == "reproduced") is reproduced


def test_a_published_spread_may_leave_nothing_to_decide() -> None:
    # of three seeds each the tolerance is 3 x std x sqrt(2 / 3), 5 points at a std of 2.04
    assert can_be_reproduced(expected(std=2.04, seeds=3))
    assert not can_be_reproduced(expected(std=2.05, seeds=3))


def test_seeds_that_are_too_far_apart_decide_nothing() -> None:
    # error sqrt(9.7**2 / 3 + 9.7**2 / 3) = 7.92, tolerance 23.76
    for mean in (70.0, 86.3, 99.0):
        verdict = hold_against(expected(86.3, std=9.7, seeds=3), results(mean, mean, mean))
        assert (verdict.outcome, verdict.problem) == (
            "undecided",
            "the published result can be neither reproduced nor refuted",
        )
        assert verdict.text.splitlines()[-1] == (
            "UNDECIDED: seeds are so far apart that a mean may be 23.76 points off, more than 5.00; this result can be "
            "neither reproduced nor refuted"
        )
    assert hold_against(expected(86.3, std=9.7, seeds=3), results(62.0, 62.0, 62.0)).outcome == "not reproduced"


def test_measured_seeds_may_be_too_far_apart_too() -> None:
    # measured 85.0 and 95.0: spread 7.07, error sqrt(0 + 50 / 2) = 5
    verdict = hold_against(expected(90.0, std=0.0), results(85.0, 95.0))
    assert verdict.outcome == "undecided"
    assert "tolerance 15.00" in verdict.text


def test_an_upper_bound_is_not_there_to_be_beaten() -> None:
    measured = [{**result, "upper_bound": "on all tasks"} for result in results(89.0, 91.0, controls=(95.0, 96.0))]
    assert hold_against(expected(), measured).text.splitlines()[1] == (
        "control   95.50 %, an upper bound: the same network trained on all tasks; the student's mean is -5.50 points "
        "from it"
    )


def test_the_control_is_compared_seed_by_seed() -> None:
    verdict = hold_against(expected(), results(91.0, 90.0, 92.0, controls=(89.0, 90.5, 91.0)))
    assert verdict.text.splitlines()[1] == (
        "control   90.17 %; gain +0.83 points, -0.50 to +2.00, better on 2 of 3 seeds"
    )


def test_a_control_that_some_seeds_lack_is_left_out() -> None:
    assert len(hold_against(expected(), results(91.0, 90.0, controls=(89.0, None))).text.splitlines()) == 2
