"""The plan of generations: who teaches whom, and from which start."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from kdzoo.api import AlgorithmChoice, ModelSpec, Stage, StageResult
from kdzoo.testing.tiny import STUDENT as STUDENT_ARGS
from kdzoo.testing.tiny import bare_plan, tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_self.born_again import BornAgain

KD = AlgorithmChoice("kd", {"temperature": 1.0}, {"task": 1.0, "kd": 1.0})
STUDENT = ModelSpec("resnet20")


def result(name: str, model: ModelSpec) -> StageResult:
    return StageResult(name, f"key of {name}", model, {}, {})


def run(options: dict[str, object], *teachers: StageResult) -> tuple[list[Stage], StageResult]:
    """Drive the generator as the runner does and return the stages in order."""
    choice = AlgorithmChoice("born_again", options)
    plan = bare_plan(STUDENT, choice, BornAgain.Options(**options), teachers=teachers, delegate=KD)
    generator = BornAgain.stages(plan)
    done: list[Stage] = []
    answer = None
    while True:
        try:
            stage = generator.send(answer)
        except StopIteration as end:
            return done, end.value
        done.append(stage)
        answer = result(stage.name, stage.model)


def names(stages: list[Stage]) -> list[tuple[str, list[str]]]:
    return [(stage.name, [teacher.name for teacher in stage.teachers]) for stage in stages]


def test_without_a_teacher_generation_0_is_trained_on_the_task_alone() -> None:
    stages, final = run({})
    assert names(stages) == [("generation_0", []), ("student", ["generation_0"])]
    assert [stage.algorithm for stage in stages] == [None, KD]
    assert final == result("student", STUDENT)


def test_generation_0_is_the_very_stage_of_the_control_run() -> None:
    stages, _ = run({})
    control = Stage("control", STUDENT)
    assert (stages[0].model, stages[0].algorithm, stages[0].salt) == (control.model, control.algorithm, control.salt)


def test_a_teacher_of_the_recipe_is_generation_0() -> None:
    stages, _ = run({"generations": 1}, result("teacher", ModelSpec("wrn_40_2")))
    assert names(stages) == [("student", ["teacher"])]


def test_each_generation_is_taught_by_the_one_before() -> None:
    stages, _ = run({"generations": 3, "via": "kd"})
    assert names(stages) == [
        ("generation_0", []),
        ("generation_1", ["generation_0"]),
        ("generation_2", ["generation_1"]),
        ("student", ["generation_2"]),
    ]
    assert [stage.model for stage in stages] == [STUDENT] * 4
    assert [stage.algorithm for stage in stages] == [None, KD, KD, KD]


def test_every_generation_starts_fresh_from_weights_of_its_own() -> None:
    stages, _ = run({"generations": 3})
    assert [stage.start for stage in stages] == [None] * 4
    assert len({stage.salt for stage in stages}) == 4


def test_generations_before_the_last_do_not_depend_on_their_number() -> None:
    two, three = run({"generations": 2})[0], run({"generations": 3})[0]
    assert two[:2] == three[:2]


@pytest.mark.parametrize("generations", [0, -1, 101, 2.5])
def test_generations_are_a_whole_number_from_1_to_100(generations: object) -> None:
    with pytest.raises(ValidationError, match="generations"):
        BornAgain.Options(generations=generations)


def test_every_generation_and_their_ensemble_are_shown(tmp_path: Path) -> None:
    models = {"teachers": [{"name": "test_resnet", "args": STUDENT_ARGS}]}
    results = tiny_runner(BornAgain, load_zoo(), tmp_path, {"models": models}, {"generations": 2}).run()
    (table,) = results["report_items"]
    assert [row[0] for row in table["rows"]] == ["generation 0", "generation 1", "generation 2", "ensemble"]
    entries = (results["teacher"], results["student"], results["variants"][0])
    assert [table["rows"][i][1] for i in (0, 2, 3)] == [round(entry["top1_percent"], 2) for entry in entries]
    # the student is of the same kind as its teacher
    assert results["student"]["params_m"] == results["teacher"]["params_m"]
