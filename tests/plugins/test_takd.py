"""The chain of stages: who teaches whom, and by which algorithm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kdzoo.api import AlgorithmChoice, ModelSpec, NeedsError, Stage, StagePlan, StageResult
from kdzoo.testing import tiny as testing
from kdzoo.zoo.loading import load_zoo
from kdzoo_assistant.dgkd import DGKD
from kdzoo_assistant.takd import TAKD

KD = AlgorithmChoice("kd", {"temperature": 4.0}, {"task": 0.1, "kd": 0.9})


def result(name: str, model: ModelSpec, **metrics: float) -> StageResult:
    return StageResult(name, f"key of {name}", model, {}, metrics)


def run(plan: StagePlan, **accuracies: float) -> tuple[list[list[Stage]], StageResult]:
    """Drive the generator as the runner does; return the stages, those that may run side by side together."""
    generator = TAKD.stages(plan)
    done: list[list[Stage]] = []
    answer: Any = None
    while True:
        try:
            wanted = generator.send(answer)
        except StopIteration as end:
            return done, end.value
        done.append(wanted if isinstance(wanted, list) else [wanted])
        results = [result(one.name, one.model, top1_percent=accuracies.get(one.name, 50.0)) for one in done[-1]]
        answer = results if isinstance(wanted, list) else results[0]


def flat(groups: list[list[Stage]]) -> Iterator[Stage]:
    for group in groups:
        yield from group


def plan(*assistants: str, **options: Any) -> StagePlan:
    return StagePlan(
        student=ModelSpec("resnet8"),
        teachers=(result("teacher", ModelSpec("resnet110"), top1_percent=90.0),),
        assistants=tuple(ModelSpec(name) for name in assistants),
        peers=(),
        own=AlgorithmChoice("takd", {"via": "kd", "temperature": 4.0}, {"task": 0.1, "kd": 0.9}),
        delegate=KD,
        options=TAKD.Options(**{"compare_direct": False, **options}),
    )


def test_one_assistant_stands_between_teacher_and_student() -> None:
    stages, final = run(plan("resnet20"))
    assert [(stage.model.name, [teacher.model.name for teacher in stage.teachers]) for stage in flat(stages)] == [
        ("resnet20", ["resnet110"]),
        ("resnet8", ["resnet20"]),
    ]
    assert final == result("student", ModelSpec("resnet8"), top1_percent=50.0)


def test_each_of_many_assistants_is_taught_by_the_one_before() -> None:
    stages, _ = run(plan("resnet56", "resnet20", "resnet14"))
    assert [stage.name for stage in flat(stages)] == ["assistant_0", "assistant_1", "assistant_2", "student"]
    assert [[teacher.name for teacher in stage.teachers] for stage in flat(stages)] == [
        ["teacher"],
        ["assistant_0"],
        ["assistant_1"],
        ["assistant_2"],
    ]


def test_every_step_runs_the_delegate_with_the_recipe_s_options_and_weights() -> None:
    stages, _ = run(plan("resnet56", "resnet20"))
    assert [stage.algorithm for stage in flat(stages)] == [KD, KD, KD]


def test_every_network_of_the_chain_starts_fresh() -> None:
    stages, _ = run(plan("resnet56", "resnet20"))
    assert [stage.start for stage in flat(stages)] == [None, None, None]


def test_the_chain_runs_kd_unless_told_otherwise() -> None:
    assert TAKD.delegate == "via"
    assert TAKD.Options().via == "kd"
    assert TAKD.Options(via="dkd").via == "dkd"


@pytest.mark.parametrize("via", ["", "KD", "../kd", "k" * 65])
def test_a_delegate_is_a_registry_name(via: str) -> None:
    with pytest.raises(ValidationError, match="String should match pattern"):
        TAKD.Options(via=via)


def test_the_teacher_itself_teaches_a_student_too() -> None:
    stages, final = run(plan("resnet56", "resnet20", compare_direct=True))
    assert [[stage.name for stage in group] for group in stages] == [
        ["assistant_0"],
        ["assistant_1"],
        ["student", "baseline"],
    ]
    *_, (student, baseline) = stages
    assert [teacher.name for teacher in baseline.teachers] == ["teacher"]
    assert (baseline.model, baseline.algorithm, baseline.train) == (student.model, KD, student.train)
    assert final.name == "student"


def test_assistants_of_several_sizes_are_tried_one_by_one() -> None:
    stages, final = run(
        plan("resnet56", "resnet20", "resnet14", assistants="each", compare_direct=True), student_1=70.0, student_2=60.0
    )
    assert [[stage.name for stage in group] for group in stages] == [
        ["assistant_0", "assistant_1", "assistant_2"],
        ["student_0", "student_1", "student_2", "baseline"],
    ]
    assert [[teacher.name for teacher in stage.teachers] for stage in flat(stages)] == [
        *[["teacher"]] * 3,
        ["assistant_0"],
        ["assistant_1"],
        ["assistant_2"],
        ["teacher"],
    ]
    assert final.name == "student_1"  # the best on the validation split


def test_to_choose_among_them_takes_a_validation_split(tmp_path: Path) -> None:
    changes = {"models": {"assistants": [{"name": testing.TINY, "args": testing.STUDENT}] * 2}}
    changes |= {"data": {"validation": 0}, "train": {"select": "last"}}
    runner = testing.tiny_runner(TAKD, load_zoo(), tmp_path, changes, options={"assistants": "each"})
    with pytest.raises(NeedsError) as error:
        runner.run()
    assert str(error.value) == (
        "algorithm 'takd': assistants: each chooses the student that is best on the validation split, and "
        "data.validation leaves none"
    )


@pytest.mark.parametrize("cls", [TAKD, DGKD])
def test_a_run_shows_the_student_without_with_and_over_assistants(cls: type, tmp_path: Path) -> None:
    changes = {"control": True, "models": {"assistants": [{"name": testing.TINY, "args": testing.STUDENT}] * 2}}
    results = json.loads(json.dumps(testing.tiny_runner(cls, load_zoo(), tmp_path, changes).run()))
    table, assistants = results["report_items"]
    assert table["title"] == "test_resnet without a teacher, from the teacher, and over assistants"
    taught = [
        "none (NOKD)",
        "the teacher (BLKD)",
        f"the teacher over test_resnet (14,076), test_resnet (14,076) ({cls.name.upper()})",
    ]
    assert [row[0] for row in table["rows"]] == taught
    assert [row[1] for row in table["rows"]] == [None, None, 2]
    (baseline,) = results["variants"]
    measured = [results["control"]["top1_percent"], baseline["top1_percent"], results["student"]["top1_percent"]]
    assert [row[2] for row in table["rows"]] == measured
    assert len(assistants["rows"]) == 2


def test_a_run_over_several_sizes_plots_them(tmp_path: Path) -> None:
    small = {**testing.STUDENT, "channels": [8, 8, 8, 8]}
    changes = {"models": {"assistants": [{"name": testing.TINY, "args": a} for a in (testing.STUDENT, small)]}}
    results = testing.tiny_runner(TAKD, load_zoo(), tmp_path, changes, options={"assistants": "each"}).run()
    table, assistants, scatter = results["report_items"]
    assert [row[0].split(" (")[0] for row in table["rows"]] == ["the teacher", *["the teacher over test_resnet"] * 2]
    sizes = [row[1] / 1e3 for row in assistants["rows"]]
    points = {point["x"]: point for point in scatter["points"]}
    assert scatter["front"] == "over an assistant"
    assert [points[size]["y"] for size in sizes] == [row[2] for row in table["rows"][1:]]
    (teacher,) = set(points) - set(sizes)
    assert teacher == max(points)
    assert points[teacher]["group"] == "the teacher itself"
