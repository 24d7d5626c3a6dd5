"""kd: a value worked out by hand, what the paper claims, and numbers at the edge."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from kdzoo_response.kd import KD, kd_loss


def test_value_worked_out_by_hand() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_loss(student, teacher, 1.0).item() == pytest.approx(expected, abs=1e-7)


def test_temperature_divides_the_logits_and_scales_the_loss() -> None:
    # At T=2 logits of twice the size give the same probabilities, and the loss is four times as large.
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    assert kd_loss(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 * kd_loss(student, teacher, 1.0).item())


def test_mean_over_samples_and_sum_over_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    alone = torch.stack([kd_loss(s[None], t[None], 3.0) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(kd_loss(student, teacher, 3.0), alone.mean())


def test_ignores_a_constant_added_to_the_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(kd_loss(student + 5, teacher - 9, 4.0), kd_loss(student, teacher, 4.0))


def test_a_perfect_student_scores_zero_with_zero_gradient() -> None:
    student = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = kd_loss(student, student.detach().clone(), 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert student.grad.abs().max().item() < 1e-6


def test_gradient_is_that_of_the_cross_entropy_with_soft_targets() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    (ours,) = torch.autograd.grad(kd_loss(student, teacher, 4.0), student)
    (soft_targets,) = torch.autograd.grad(16 * F.cross_entropy(student / 4, F.softmax(teacher / 4, dim=1)), student)
    torch.testing.assert_close(ours, soft_targets)


def test_at_high_temperature_it_matches_centred_logits() -> None:
    # Section 2.1 of the paper: for large T the loss becomes half the squared distance of centred logits over K.
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = difference.square().sum(1).mean() / (2 * 6)
    torch.testing.assert_close(kd_loss(student, teacher, 1e4), expected, rtol=1e-3, atol=0)


def test_the_teacher_gets_no_gradient_and_inputs_stay_as_they_were() -> None:
    student = torch.randn(3, 4).requires_grad_()
    teacher = torch.randn(3, 4).requires_grad_()
    before = student.detach().clone(), teacher.detach().clone()
    kd_loss(student, teacher, 4.0).backward()
    assert teacher.grad is None
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize("size", [200.0, 1e4])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_extreme_logits_stay_finite_and_exact_in_float32(size: float, temperature: float) -> None:
    # The teacher is sure of class 0, the student of class 1: the loss is T^2 * 2 * size / T.
    teacher, student = torch.tensor([[size, -size, 0.0]]), torch.tensor([[-size, size, 0.0]]).requires_grad_()
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(2 * size * temperature, rel=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor([[-temperature, temperature, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, 1e30])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        KD.Options(temperature=temperature)
