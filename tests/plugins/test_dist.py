"""dist: values worked out by hand, what a correlation does not see, and numbers at the edge."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from kdzoo_response.dist import DIST, dist_inter_loss, dist_intra_loss


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_inter_worked_out_by_hand() -> None:
    # Centred: student (1, 0, -1) / 6, teacher (1, -1, 0) / 6; their correlation is (1 / 36) / (2 / 36) = 1/2.
    student, teacher = logits_of([[1 / 2, 1 / 3, 1 / 6]]), logits_of([[1 / 2, 1 / 6, 1 / 3]])
    assert dist_inter_loss(student, teacher, 1.0).item() == pytest.approx(1 / 2, abs=1e-6)


def test_intra_worked_out_by_hand() -> None:
    # Over three samples class 0 of the student has (.2, .3, .4), of the teacher (.4, .3, .2): correlation -1.
    # Class 1 is (.1, .1, .1) for the student: it does not vary, correlation 0. Class 2 is 1 minus the rest: -1.
    student = logits_of([[0.2, 0.1, 0.7], [0.3, 0.1, 0.6], [0.4, 0.1, 0.5]])
    teacher = logits_of([[0.4, 0.2, 0.4], [0.3, 0.2, 0.5], [0.2, 0.2, 0.6]])
    assert dist_intra_loss(student, teacher, 1.0).item() == pytest.approx(1 + 2 / 3, abs=1e-5)


@pytest.mark.parametrize("loss", [dist_inter_loss, dist_intra_loss])
def test_a_student_equal_to_its_teacher_scores_zero_without_gradient(loss) -> None:
    student = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(student, student.detach().clone(), 1.0)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert student.grad.abs().max().item() < 1e-4


def test_inter_sees_no_scale_and_no_shift_of_the_probabilities() -> None:
    # The paper's argument for a correlation: y and a y + b are the same to it. Half way to the uniform distribution.
    generator = torch.Generator().manual_seed(1)
    teacher = torch.softmax(torch.randn(5, 4, generator=generator, dtype=torch.float64), dim=1)
    assert dist_inter_loss((0.5 * teacher + 0.125).log(), teacher.log(), 1.0).item() == pytest.approx(0, abs=1e-5)


def test_the_temperature_softens_both_and_scales_the_loss_by_its_square() -> None:
    student, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for loss in (dist_inter_loss, dist_intra_loss):
        torch.testing.assert_close(loss(student, teacher, 4.0), 16 * loss(student / 4, teacher / 4, 1.0))


def test_two_classes_or_two_samples_leave_nothing_to_learn() -> None:
    # Why fewer than three are refused: the correlations are 1 or -1 and have no gradient.
    student, teacher = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for loss, first, second in ((dist_inter_loss, student, teacher), (dist_intra_loss, student.T, teacher.T)):
        first = first.clone().requires_grad_()
        loss(first, second, 1.0).backward()
        assert first.grad.abs().max().item() < 1e-5
    assert (DIST.needs.min_classes, DIST.needs.min_batch) == (3, 3)


def test_the_teacher_gets_no_gradient_and_inputs_stay_as_they_were() -> None:
    student, teacher = torch.randn(5, 4).requires_grad_(), torch.randn(5, 4).requires_grad_()
    before = student.detach().clone(), teacher.detach().clone()
    (dist_inter_loss(student, teacher, 1.0) + dist_intra_loss(student, teacher, 1.0)).backward()
    assert teacher.grad is None
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize("size", [200.0, 1e4])
def test_extreme_logits_stay_finite_in_float32(size: float) -> None:
    # Student and teacher are sure of one class each, the same for the first sample only. Two different sure answers of
    # three classes correlate by -1/2.
    teacher = size * torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    student = teacher[[0, 2, 1]].clone().requires_grad_()
    inter, intra = dist_inter_loss(student, teacher, 1.0), dist_intra_loss(student, teacher, 1.0)
    (inter + intra).backward()
    assert inter.item() == pytest.approx((0 + 1.5 + 1.5) / 3, rel=1e-5)
    assert intra.item() == pytest.approx((0 + 1.5 + 1.5) / 3, rel=1e-5)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("size", "at_most"), [(1.0, 1.0), (1e-4, 1e3), (1e-8, 1e7), (1e-12, 1e7)])
def test_gradients_grow_where_probabilities_hardly_vary_up_to_the_guard(size: float, at_most: float) -> None:
    student = (size * torch.randn(6, 4, generator=torch.Generator().manual_seed(4))).requires_grad_()
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    (dist_inter_loss(student, teacher, 1.0) + dist_intra_loss(student, teacher, 1.0)).backward()
    assert 0 < student.grad.abs().max().item() < at_most


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, 1e30])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        DIST.Options(temperature=temperature)
