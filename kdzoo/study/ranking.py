"""From what a study measured to its ranking: differences over seeds, and what they decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kdzoo.report.statistics import Difference, family, paired_difference, spread
from kdzoo.report.study_results import Arm, parse_measured, parse_study
from kdzoo.study.arm_costs import costs, file_label, fronts, mean_of
from kdzoo.study.grouping import grouped
from kdzoo.study.verdict import verdict


def ranked(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study as study.json holds it: what was measured with groups, ranking, fronts and verdict added.

    Arms are ranked by their mean over finished seeds, within groups, see ``grouped``. Each is compared with its own
    control and with the baseline of its group, by seed. Holm's correction is over all comparisons of one kind in the
    study. Raise ReportError where ``measured`` is not as a study writes it.
    """
    study = parse_measured(measured)
    groups = grouped(study)
    to_control = family({arm.label: found for arm in study.arms if (found := over_control(arm))})
    to_baseline = family(
        {
            arm.label: found
            for group in groups
            for arm in group.arms
            if group.baseline is not None and arm is not group.baseline
            if (found := paired_difference(by_seed(arm), by_seed(group.baseline)))
        }
    )
    label = file_label(study)
    rows: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        for arm, rank in places(group.arms):
            row: dict[str, Any] = {
                "label": arm.label,
                "group": number,
                "rank": rank,
                **accuracies(arm),
                **costs(arm, label),
            }
            row["over_control"] = told(to_control.get(arm.label), arm.upper_bound)
            row["over_baseline"] = told(to_baseline.get(arm.label))
            rows.append(row)
    added = {
        "groups": [{"title": g.title, "baseline": g.baseline.label if g.baseline else None} for g in groups],
        "ranking": rows,
        "families": {"over_control": tested(to_control), "over_baseline": tested(to_baseline)},
        "fronts": list(fronts(study)),
    }
    unjudged = {"tone": "unknown", "headline": "", "groups": []}
    judged = parse_study({**measured, **added, "verdict": unjudged})
    return {**measured, **added, "verdict": verdict(judged)}


def by_seed(arm: Arm) -> dict[int, float]:
    """The accuracy of each finished seed."""
    return {run.seed: run.top1_percent for run in arm.finished if run.top1_percent is not None}


def over_control(arm: Arm) -> Difference | None:
    """An arm's difference to its own control; one to an upper bound is a distance and is not tested."""
    controls = {run.seed: run.control_top1_percent for run in arm.finished if run.control_top1_percent is not None}
    found = paired_difference(by_seed(arm), controls)
    if found is None or not arm.upper_bound:
        return found
    return Difference(found.mean, found.low, found.high, None, found.seeds)


def tested(differences: Mapping[str, Difference]) -> int:
    """How many comparisons a family has."""
    return sum(found.p is not None for found in differences.values())


def told(found: Difference | None, upper_bound: bool = False) -> dict[str, Any] | None:
    """A difference as study.json holds it, with what it says."""
    return None if found is None else asdict(found) | {"outcome": outcome(found, upper_bound)}


def outcome(found: Difference, upper_bound: bool = False) -> str:
    """What a difference says, see ``Outcome``; decided is what is decided after Holm's correction."""
    if upper_bound:
        return "upper bound"
    if found.seeds == 1:
        return "one seed"
    if not found.decided:
        return "not decided"
    return "better" if found.mean > 0 else "worse"


def places(arms: Sequence[Arm]) -> Iterator[tuple[Arm, int | None]]:
    """Arms with their ranks, the best mean first; equal means share a rank, and no result has none."""
    means = {arm.label: spread(list(by_seed(arm).values())).mean for arm in arms if arm.finished}
    for arm in sorted(arms, key=lambda arm: -means.get(arm.label, float("-inf"))):
        mean = means.get(arm.label)
        yield arm, None if mean is None else 1 + sum(other > mean for other in means.values())


def accuracies(arm: Arm) -> dict[str, Any]:
    """Mean and deviation over finished seeds, and the means of control and teacher."""
    values = list(by_seed(arm).values())
    found = spread(values) if values else None
    return {
        "seeds": len(values),
        "mean": found.mean if found else None,
        "std": found.std if found else None,
        "control": mean_of(arm.finished, lambda run: run.control_top1_percent),
        "teacher": mean_of(arm.finished, lambda run: run.teacher_top1_percent),
    }
