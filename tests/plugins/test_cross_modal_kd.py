"""Soft labels by hand, and the two stages of both algorithms of the family."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdzoo.api import AlgorithmChoice, ModelShapes, ModelSpec, NeedsError, Outputs, Shapes, Stage, StageResult
from kdzoo.testing.tiny import bare_plan
from kdzoo_cross_modal.cross_modal_kd import CrossModalKD
from kdzoo_cross_modal.supervision_transfer import SupervisionTransfer


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def loss_of(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    shapes = Shapes(ModelShapes((), 4, 2), (ModelShapes((), 4, 2),), (), 2, 100, (12, 1, 50))
    algorithm = CrossModalKD(CrossModalKD.Options(temperature=temperature), shapes)
    ctx: Any = SimpleNamespace(student=Outputs(student), teacher=Outputs(teacher))
    (update,) = algorithm.step(ctx)
    assert set(update.loss) == {"soft_labels"}
    return update.loss["soft_labels"]


def test_soft_labels_by_hand() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln (2/3)
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert loss_of(log(0.25, 0.75), log(0.5, 0.5), 1.0).item() == pytest.approx(expected)
    # at temperature 2 the same logits, doubled, give the same softened probabilities
    assert loss_of(2 * log(0.25, 0.75), 2 * log(0.5, 0.5), 2.0).item() == pytest.approx(4 * expected)


def test_agreement_costs_nothing_and_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    assert loss_of(student, student, 3.0).item() == pytest.approx(0.0, abs=1e-6)
    loss_of(student, teacher, 3.0).backward()
    assert teacher.grad is None


def plan(cls: Any, epochs: int, **options: Any) -> Any:
    teacher = StageResult("teacher", "key", ModelSpec("teacher"), {}, {})
    own, given = AlgorithmChoice(cls.name), cls.Options(**options)
    return bare_plan(ModelSpec("student"), own, given, teachers=(teacher,), train={"epochs": epochs})


@pytest.mark.parametrize("cls", [CrossModalKD, SupervisionTransfer])
@pytest.mark.parametrize(("share", "epochs", "pairs"), [(0.5, 30, 15), (0.9, 2, 1), (0.01, 10, 1), (0.7, 10, 7)])
def test_pairs_come_first_and_labels_after_within_the_budget(cls: Any, share: float, epochs: int, pairs: int) -> None:
    given = plan(cls, epochs, share=share)
    stages = cls.stages(given)
    first = next(stages)
    assert first == Stage("transfer", given.student, given.own, given.teachers, train={"epochs": pairs})
    done = StageResult("transfer", "key 2", given.student, {}, {})
    second = stages.send(done)
    assert second == Stage("student", given.student, start=done, train={"epochs": epochs - pairs})
    with pytest.raises(StopIteration) as ended:
        stages.send(done)
    assert ended.value.value is done


def test_one_epoch_is_too_few() -> None:
    with pytest.raises(NeedsError) as caught:
        next(CrossModalKD.stages(plan(CrossModalKD, 1)))
    assert str(caught.value) == (
        "algorithm 'cross_modal_kd': train.epochs is 1; at least 2 would be right, one over the pairs and one over the "
        "labels"
    )
