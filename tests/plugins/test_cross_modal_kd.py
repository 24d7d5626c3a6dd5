"""Soft labels by hand, and the two stages of both algorithms of the family."""

from __future__ import annotations

import math

import pytest
import torch

from kdzoo.api import AlgorithmChoice, ModelSpec, Stage, StagePlan, StageResult
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


@pytest.mark.parametrize("cls", [CrossModalKD, SupervisionTransfer])
@pytest.mark.parametrize("epochs", [None, 7])
def test_pairs_come_first_and_labels_after(cls: type, epochs: int | None) -> None:
    student, own = ModelSpec("student"), AlgorithmChoice(cls.name)
    teacher = StageResult("teacher", "key", ModelSpec("teacher"), {}, {})
    options = cls.Options(transfer_epochs=epochs)
    stages = cls.stages(StagePlan(student, (teacher,), (), (), own, None, options))
    first = next(stages)
    assert first == Stage("transfer", student, own, (teacher,), train={} if epochs is None else {"epochs": 7})
    done = StageResult("transfer", "key 2", student, {}, {})
    second = stages.send(done)
    assert second == Stage("student", student, start=done)
    with pytest.raises(StopIteration) as ended:
        stages.send(done)
    assert ended.value.value is done
