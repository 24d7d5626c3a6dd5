"""dgkd: who guides whom, which guides a step leaves out, and a value worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdzoo.api import AlgorithmChoice, ModelShapes, ModelSpec, Outputs, Shapes, Stage, StageResult
from kdzoo.testing.tiny import bare_plan
from kdzoo_assistant.dgkd import DGKD

OWN = AlgorithmChoice("dgkd", {"temperature": 5.0, "drop": 1}, {"task": 0.1, "kd": 0.9})
SHAPES = Shapes(ModelShapes((), 4, 3), (ModelShapes((), 4, 3),), (), 3, 100, (3, 8, 8))


def result(name: str, model: ModelSpec) -> StageResult:
    return StageResult(name, f"key of {name}", model, {}, {})


def run(*assistants: str) -> tuple[list[Stage], StageResult]:
    """Drive the generator as the runner does and return the stages in order."""
    plan = bare_plan(
        student=ModelSpec("plain_cnn2"),
        teachers=(result("teacher", ModelSpec("plain_cnn10")),),
        assistants=tuple(ModelSpec(name) for name in assistants),
        own=OWN,
        options=DGKD.Options(compare_direct=False),
    )
    generator = DGKD.stages(plan)
    done: list[Stage] = []
    answer = None
    while True:
        try:
            stage = generator.send(answer)
        except StopIteration as end:
            return done, end.value
        done.append(stage)
        answer = result(stage.name, stage.model)


def context(guides: int, step: int = 0) -> SimpleNamespace:
    teachers = tuple(Outputs(torch.full((2, 3), float(i))) for i in range(guides))
    return SimpleNamespace(
        student=Outputs(torch.zeros(2, 3)),
        teachers=teachers,
        random=lambda name: torch.Generator().manual_seed(step),
    )


def kept(drop: int, guides: int, step: int = 0) -> list[int]:
    algorithm = DGKD(DGKD.Options(drop=drop), SHAPES)
    return [int(guide.logits[0, 0]) for guide in algorithm.guides_of_step(context(guides, step))]


def loss(student: Tensor, guides: Sequence[Tensor], temperature: float) -> Tensor:
    teachers = [Outputs(logits) for logits in guides]
    ctx = SimpleNamespace(student=Outputs(student), teachers=teachers, random=lambda name: torch.Generator())
    return DGKD(DGKD.Options(temperature=temperature, drop=0), SHAPES).losses(ctx)["kd"]


def test_value_worked_out_by_hand() -> None:
    # At T = 1 the student (1/2, 1/2) is 3/4 ln 3/2 + 1/4 ln 1/2 away from a guide (3/4, 1/4), and 0 from its like.
    student, guide = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    divergence = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert loss(student, [guide], 1.0).item() == pytest.approx(divergence)
    assert loss(student, [guide, guide, student], 1.0).item() == pytest.approx(2 * divergence)
    assert loss(student, [2 * guide], 2.0).item() == pytest.approx(4 * divergence)


def test_the_guides_get_no_gradient_and_inputs_stay_as_they_were() -> None:
    student, *guides = (torch.randn(4, 3).requires_grad_() for _ in range(3))
    before = [x.detach().clone() for x in (student, *guides)]
    loss(student, guides, 5.0).backward()
    assert all(guide.grad is None for guide in guides)
    assert all(torch.equal(x, y) for x, y in zip((student, *guides), before, strict=True))


@pytest.mark.parametrize("size", [200.0, 1e4])
def test_extreme_logits_stay_finite_and_exact_in_float32(size: float) -> None:
    guide, student = torch.tensor([[size, -size, 0.0]]), torch.tensor([[-size, size, 0.0]]).requires_grad_()
    term = loss(student, [guide, guide], 1.0)
    term.backward()
    assert term.item() == pytest.approx(2 * 2 * size, rel=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor([[-2.0, 2.0, 0.0]]))


def test_each_network_is_guided_by_all_larger_ones() -> None:
    stages, final = run("plain_cnn8", "plain_cnn6", "plain_cnn4")
    assert [stage.name for stage in stages] == ["assistant_0", "assistant_1", "assistant_2", "student"]
    assert [[guide.name for guide in stage.teachers] for stage in stages] == [
        ["teacher"],
        ["teacher", "assistant_0"],
        ["teacher", "assistant_0", "assistant_1"],
        ["teacher", "assistant_0", "assistant_1", "assistant_2"],
    ]
    assert [stage.model.name for stage in stages] == ["plain_cnn8", "plain_cnn6", "plain_cnn4", "plain_cnn2"]
    assert final == result("student", ModelSpec("plain_cnn2"))


def test_every_stage_runs_dgkd_itself_from_fresh_weights() -> None:
    stages, _ = run("plain_cnn8", "plain_cnn6")
    assert [(stage.algorithm, stage.start) for stage in stages] == [(OWN, None)] * 3


def test_as_many_guides_are_left_out_as_asked_for_and_one_always_stays() -> None:
    assert kept(drop=0, guides=4) == [0, 1, 2, 3]
    assert [len(kept(drop, 4)) for drop in (1, 2, 3, 4, 100)] == [3, 2, 1, 1, 1]
    assert kept(drop=1, guides=1) == [0]


def test_over_many_steps_every_guide_is_left_out_equally_often() -> None:
    counts = torch.zeros(3)
    for step in range(600):
        counts[kept(drop=1, guides=3, step=step)] += 1
    assert counts.sum() == 1200
    assert counts.min() > 350


def test_the_draw_is_the_same_for_the_same_step() -> None:
    assert [kept(1, 3, step) for step in range(20)] == [kept(1, 3, step) for step in range(20)]


@pytest.mark.parametrize(("option", "value"), [("temperature", 0.0), ("temperature", math.nan), ("drop", -1)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValidationError, match=option):
        DGKD.Options(**{option: value})
