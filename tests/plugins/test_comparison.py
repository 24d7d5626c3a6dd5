"""What all algorithms of several teachers show: each teacher's weight, and the student of the best one alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdzoo.api import ModelSpec, StageResult
from kdzoo.testing import tiny as testing
from kdzoo.zoo.loading import load_zoo
from kdzoo_multi_teacher.ca_mkd import CAMKD
from kdzoo_multi_teacher.comparison import best_teacher
from kdzoo_multi_teacher.mt_average import MTAverage
from kdzoo_multi_teacher.mt_dissimilarity import MTDissimilarity

FAMILY = pytest.mark.parametrize("cls", [CAMKD, MTAverage, MTDissimilarity])
WIDE = {**testing.TEACHER, "channels": [8, 16, 16, 32]}
MODELS = {"teachers": [{"name": testing.TINY, "args": args} for args in (testing.STUDENT, testing.TEACHER, WIDE)]}


def run(cls: type, root: Path, options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    results = testing.tiny_runner(cls, load_zoo(), root, {"models": MODELS, **changes}, options=options).run()
    return json.loads(json.dumps(results))


def teacher(name: str, **metrics: float) -> StageResult:
    return StageResult(name, name, ModelSpec(name), {}, metrics)


def test_the_best_teacher_is_the_first_of_the_best_on_the_validation_split() -> None:
    teachers = [teacher(name, top1_percent=top1) for name, top1 in (("a", 90.0), ("b", 95.0), ("c", 95.0))]
    assert best_teacher(teachers) == teachers[1]
    assert best_teacher([*teachers, teacher("d")]) is None


@FAMILY
def test_the_student_stands_beside_that_of_the_best_single_teacher(cls: type, tmp_path: Path) -> None:
    results = run(cls, tmp_path, control=True)
    assert [stage["name"] for stage in results["stages"]] == [
        *(f"teacher_{i}" for i in range(3)),
        "control",
        "student",
        "best_single",
    ]
    weights, table = results["report_items"]
    validation = [row[3] for row in table["rows"][3:]]
    best = validation.index(max(validation))
    assert [row[:2] for row in table["rows"]] == [
        ["control", None],
        ["student", f"the best single teacher, teacher {best} (test_resnet), by kd"],
        ["student", f"all teachers, by {cls.name}"],
        *([f"teacher {i} (test_resnet)", None] for i in range(3)),
    ]
    (single,) = results["variants"]
    measured = [results["control"], single, results["student"], *results["teachers"]]
    assert [row[2] for row in table["rows"]] == [entry["top1_percent"] for entry in measured]
    assert single["label"] == "best single teacher"
    for column in range(2, len(weights["columns"])):
        assert sum(row[column] for row in weights["rows"]) == pytest.approx(1, abs=1e-3)


def test_ca_mkd_shows_both_of_its_weights(tmp_path: Path) -> None:
    weights, _ = run(CAMKD, tmp_path, {"compare_best_single": False})["report_items"]
    assert weights["columns"][2:] == [
        "weight, first epoch",
        "weight, last epoch",
        "feature weight, first epoch",
        "feature weight, last epoch",
    ]


def test_the_comparison_can_be_left_out(tmp_path: Path) -> None:
    results = run(MTAverage, tmp_path, {"compare_best_single": False})
    assert [stage["name"] for stage in results["stages"]][-1] == "student"
    assert (
        results["report_items"][1]["note"] == "The comparison with the best single teacher is off: compare_best_single."
    )
    assert next(row[0] for row in results["report_items"][1]["rows"]) == "student"


def test_without_a_validation_split_no_teacher_is_the_best(tmp_path: Path) -> None:
    results = run(MTAverage, tmp_path, data={"validation": 0}, train={"select": "last"})
    assert [stage["name"] for stage in results["stages"]][-1] == "student"
    told = "Without a validation split there is no best teacher to compare with."
    assert results["report_items"][1]["note"] == told
    assert all(row[3] is None for row in results["report_items"][1]["rows"])
