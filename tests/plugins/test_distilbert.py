"""distilbert: values worked out by hand, and what does not count."""

from __future__ import annotations

import math

import pytest
import torch

from kdzoo.api import soft_target_loss
from kdzoo_text.distilbert import distilbert_cosine_loss


def test_the_cosine_worked_out_by_hand() -> None:
    # Two tokens: (1, 0) against (1, 1), 45 degrees; (0, 2) against (0, 5), none. Mean of 1 - sqrt(1/2) and 0.
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).T.reshape(1, 2, 2, 1)
    teacher = torch.tensor([[1.0, 1.0], [0.0, 5.0]]).T.reshape(1, 2, 2, 1)
    assert distilbert_cosine_loss(student, teacher).item() == pytest.approx((1 - math.sqrt(0.5)) / 2, abs=1e-6)


def test_opposite_vectors_score_two() -> None:
    student = torch.randn(3, 4, 5, 1, generator=torch.Generator().manual_seed(0))
    assert distilbert_cosine_loss(student, -student).item() == pytest.approx(2.0, abs=1e-5)


def test_fill_does_not_count() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 3, 4, 5, 1, generator=generator)
    student[2, :, 3:] = teacher[2, :, 3:] = 0  # a shorter text
    wide = torch.zeros(2, 3, 4, 9, 1)
    wide[0, :, :, :5], wide[1, :, :, :5] = student, teacher
    assert distilbert_cosine_loss(wide[0], wide[1]).item() == pytest.approx(
        distilbert_cosine_loss(student, teacher).item(), abs=1e-6
    )
    shorter = [
        distilbert_cosine_loss(student[i : i + 1, :, :n], teacher[i : i + 1, :, :n]) for i, n in enumerate((5, 5, 3))
    ]
    by_tokens = (5 * shorter[0] + 5 * shorter[1] + 3 * shorter[2]) / 13
    assert distilbert_cosine_loss(student, teacher).item() == pytest.approx(by_tokens.item(), abs=1e-6)


def test_fill_gets_no_gradient() -> None:
    student, teacher = torch.randn(2, 2, 4, 5, 1, generator=torch.Generator().manual_seed(2))
    teacher[0, :, 2:] = 0
    student.requires_grad_()
    distilbert_cosine_loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad[0, :, 2:].abs().max() == 0
    assert student.grad[0, :, :2].abs().min() > 0


def test_a_teacher_without_any_vector_teaches_nothing() -> None:
    assert distilbert_cosine_loss(torch.ones(1, 2, 3, 1), torch.zeros(1, 2, 3, 1)).item() == 0


def test_soft_targets_worked_out_by_hand() -> None:
    # At temperature 2, logits 2 log p soften to p. KL((1/2, 1/2) || (1/4, 3/4)) = log(2 / sqrt 3); times 4.
    student, teacher = (2 * torch.tensor([row]).log() for row in ([0.25, 0.75], [0.5, 0.5]))
    assert soft_target_loss(student, teacher, temperature=2.0).item() == pytest.approx(
        4 * math.log(2 / math.sqrt(3)), abs=1e-6
    )


@pytest.mark.parametrize(
    "loss", [distilbert_cosine_loss, lambda s, t: soft_target_loss(s.flatten(1), t.flatten(1), temperature=3.0)]
)
def test_only_the_student_gets_a_gradient(loss) -> None:
    student, teacher = (torch.randn(2, 3, 4, 1).requires_grad_() for _ in range(2))
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
