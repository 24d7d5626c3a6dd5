"""What the arms of a study cost, and which of their files no other beats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kdzoo.report.statistics import spread
from kdzoo.report.study_results import Arm, ArmFile, Measured
from kdzoo.study.grouping import question_of, split, title

#: What a file costs, see ``Front``.
COSTS: tuple[tuple[str, Callable[[ArmFile], float | None]], ...] = (
    ("latency_p50_ms", lambda file: file.latency_p50_ms),
    ("size_mib", lambda file: file.size_mib),
)


def mean_of(things: Sequence[Any], value: Callable[[Any], float | None]) -> float | None:
    """The mean of the values that are known; None where none is."""
    known = [found for thing in things if (found := value(thing)) is not None]
    return spread(known).mean if known else None


def file_label(study: Measured) -> str | None:
    """The exported file that most arms have, the first of equals; size and latency in the ranking are of it."""
    counts = Counter(label for arm in study.arms for label in files_of(arm))
    return max(counts, key=counts.__getitem__, default=None)


def files_of(arm: Arm) -> dict[str, list[ArmFile]]:
    """The files of an arm's finished runs by label."""
    found: dict[str, list[ArmFile]] = {}
    for run in arm.finished:
        for file in run.files:
            found.setdefault(file.label, []).append(file)
    return found


def costs(arm: Arm, label: str | None) -> dict[str, Any]:
    """The mean cost of an arm over its finished seeds; size and latency are of the file named ``label``.

    The compute counts all training that leads to the student: its own, the teacher's, and a search.
    """
    runs, files = arm.finished, files_of(arm).get(label or "", [])
    return {
        "step_ms": mean_of(runs, lambda run: run.step_ms),
        "training_seconds": mean_of(runs, lambda run: run.training_seconds),
        "training_pmacs": mean_of(runs, lambda run: run.training_pmacs.total if run.training_pmacs else None),
        "params_m": mean_of(runs, lambda run: run.params_m),
        "macs_g": mean_of(runs, lambda run: run.macs_g),
        "file": label if files else None,
        "file_top1_percent": mean_of(files, lambda file: file.top1_percent),
        "size_mib": mean_of(files, lambda file: file.size_mib),
        "latency_p50_ms": mean_of(files, lambda file: file.latency_p50_ms),
        "latency_p95_ms": mean_of(files, lambda file: file.latency_p95_ms),
    }


def fronts(study: Measured) -> Iterator[dict[str, Any]]:
    """The exported files of arms that answer the same question, by accuracy and each cost; means over seeds."""
    for arms in split(study.arms, question_of):
        for cost, value in COSTS:
            points: list[dict[str, Any]] = []
            for arm in arms:
                for label, files in files_of(arm).items():
                    accuracy, spent = mean_of(files, lambda file: file.top1_percent), mean_of(files, value)
                    if accuracy is not None and spent is not None:
                        points.append({"label": arm.label, "file": label, "top1_percent": accuracy, "cost": spent})
            kept = on_front([(point["top1_percent"], point["cost"]) for point in points])
            for point, is_on in zip(points, kept, strict=True):
                point["on_front"] = is_on
            if points:
                yield {"title": title(arms, study.arms), "cost": cost, "points": points}


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (accuracy, cost), whether no other is at least as good in both and better in one."""
    return [
        not any(a >= accuracy and c <= cost and (a, c) != (accuracy, cost) for a, c in points)
        for accuracy, cost in points
    ]
