"""Soft labels by hand, and the two stages of both algorithms of the family."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdzoo.api import AlgorithmChoice, ModelSpec, NeedsError, Stage, StageResult
from kdzoo.testing import bare_plan
from kdzoo_cross_modal.cross_modal_kd import CrossModalKD, soft_label_loss
from kdzoo_cross_modal.supervision_transfer import SupervisionTransfer


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_soft_labels_by_hand() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln (2/3)
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert soft_label_loss(log(0.25, 0.75), log(0.5, 0.5), 1.0).item() == pytest.approx(expected)
    # at temperature 2 the same logits, doubled, give the same softened probabilities
    assert soft_label_loss(2 * log(0.25, 0.75), 2 * log(0.5, 0.5), 2.0).item() == pytest.approx(4 * expected)


def test_agreement_costs_nothing_and_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    assert soft_label_loss(student, student, 3.0).item() == pytest.approx(0.0, abs=1e-6)
    soft_label_loss(student, teacher, 3.0).backward()
    assert teacher.grad is None


def test_extreme_logits_stay_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        student = torch.tensor([[80.0, -80.0]], dtype=dtype, requires_grad=True)
        loss = soft_label_loss(student, torch.tensor([[-80.0, 80.0]], dtype=dtype), 1.0)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()


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
