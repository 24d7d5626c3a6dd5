"""The chain of stages: who teaches whom, and by which algorithm."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kdzoo.api import AlgorithmChoice, ModelSpec, Stage, StagePlan, StageResult
from kdzoo.testing import bare_plan
from kdzoo_assistant.takd import TAKD

KD = AlgorithmChoice("kd", {"temperature": 4.0}, {"task": 0.1, "kd": 0.9})


def result(name: str, model: ModelSpec) -> StageResult:
    return StageResult(name, f"key of {name}", model, {}, {})


def run(plan: StagePlan) -> tuple[list[Stage], StageResult]:
    """Drive the generator as the runner does and return the stages in order."""
    generator = TAKD.stages(plan)
    done: list[Stage] = []
    answer = None
    while True:
        try:
            stage = generator.send(answer)
        except StopIteration as end:
            return done, end.value
        done.append(stage)
        answer = result(stage.name, stage.model)


def plan(*assistants: str) -> StagePlan:
    return bare_plan(
        student=ModelSpec("resnet8"),
        teachers=(result("teacher", ModelSpec("resnet110")),),
        assistants=tuple(ModelSpec(name) for name in assistants),
        own=AlgorithmChoice("takd", {"via": "kd", "temperature": 4.0}, {"task": 0.1, "kd": 0.9}),
        delegate=KD,
        options=TAKD.Options(),
    )


def test_one_assistant_stands_between_teacher_and_student() -> None:
    stages, final = run(plan("resnet20"))
    assert [(stage.model.name, [teacher.model.name for teacher in stage.teachers]) for stage in stages] == [
        ("resnet20", ["resnet110"]),
        ("resnet8", ["resnet20"]),
    ]
    assert final == result("student", ModelSpec("resnet8"))


def test_each_of_many_assistants_is_taught_by_the_one_before() -> None:
    stages, _ = run(plan("resnet56", "resnet20", "resnet14"))
    assert [stage.name for stage in stages] == ["assistant_0", "assistant_1", "assistant_2", "student"]
    assert [[teacher.name for teacher in stage.teachers] for stage in stages] == [
        ["teacher"],
        ["assistant_0"],
        ["assistant_1"],
        ["assistant_2"],
    ]


def test_every_step_runs_the_delegate_with_the_recipe_s_options_and_weights() -> None:
    stages, _ = run(plan("resnet56", "resnet20"))
    assert [stage.algorithm for stage in stages] == [KD, KD, KD]


def test_every_network_of_the_chain_starts_fresh() -> None:
    stages, _ = run(plan("resnet56", "resnet20"))
    assert [stage.start for stage in stages] == [None, None, None]


def test_the_chain_runs_kd_unless_told_otherwise() -> None:
    assert TAKD.delegate == "via"
    assert TAKD.Options().via == "kd"
    assert TAKD.Options(via="dkd").via == "dkd"


@pytest.mark.parametrize("via", ["", "KD", "../kd", "k" * 65])
def test_a_delegate_is_a_registry_name(via: str) -> None:
    with pytest.raises(ValidationError, match="String should match pattern"):
        TAKD.Options(via=via)
