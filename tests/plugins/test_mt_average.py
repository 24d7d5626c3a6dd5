"""mt_average: values worked out by hand, how the two averages are related, and numbers at the edge."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from kdzoo_multi_teacher.mt_average import MTAverage, mt_average_losses_loss, mt_average_outputs_loss

LOSSES = pytest.mark.parametrize("loss", [mt_average_outputs_loss, mt_average_losses_loss])


def random_logits(seed: int, teachers: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    student, *others = torch.randn(
        1 + teachers, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return student.clone().requires_grad_(), others


def test_values_worked_out_by_hand() -> None:
    # Teachers (3/4, 1/4) and (1/4, 3/4): their mean is (1/2, 1/2), the student's answer. Each alone: 3/4 ln 3/2 +
    # 1/4 ln 1/2 away.
    student = torch.zeros(1, 2)
    teachers = [torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, math.log(3.0)]])]
    assert mt_average_outputs_loss(student, teachers, 1.0).item() == pytest.approx(0, abs=1e-7)
    expected = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert mt_average_losses_loss(student, teachers, 1.0).item() == pytest.approx(expected)


def test_the_mean_is_that_of_probabilities_not_of_logits() -> None:
    # The mean of the logits of (9/10, 1/10) and (1/2, 1/2) is (3/4, 1/4), that of the probabilities (7/10, 3/10).
    teachers = [torch.tensor([[math.log(9.0), 0.0]]), torch.zeros(1, 2)]
    student = torch.tensor([[math.log(7 / 3), 0.0]])
    assert mt_average_outputs_loss(student, teachers, 1.0).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_averages_have_the_same_gradient(temperature: float) -> None:
    student, teachers = random_logits(0)
    (outputs,) = torch.autograd.grad(mt_average_outputs_loss(student, teachers, temperature), student)
    (losses,) = torch.autograd.grad(mt_average_losses_loss(student, teachers, temperature), student)
    torch.testing.assert_close(outputs, losses)


def test_the_values_differ_by_what_the_teachers_disagree() -> None:
    # The generalised Jensen-Shannon divergence: the entropy of the mean minus the mean of the entropies.
    student, teachers = random_logits(1)
    probabilities = torch.stack([teacher.softmax(dim=1) for teacher in teachers])
    entropies = torch.special.entr(probabilities).sum(2).mean()
    disagreement = torch.special.entr(probabilities.mean(0)).sum(1).mean() - entropies
    difference = mt_average_losses_loss(student, teachers, 1.0) - mt_average_outputs_loss(student, teachers, 1.0)
    torch.testing.assert_close(difference, disagreement)


@LOSSES
def test_the_order_of_the_teachers_makes_no_difference(loss) -> None:
    student, teachers = random_logits(2)
    torch.testing.assert_close(loss(student, teachers, 4.0), loss(student, teachers[::-1], 4.0))


@LOSSES
def test_teachers_who_all_agree_with_the_student_leave_nothing_to_learn(loss) -> None:
    student, _ = random_logits(3)
    value = loss(student, [student.detach()] * 3, 4.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max().item() < 1e-12


@LOSSES
def test_the_teachers_get_no_gradient_and_inputs_stay_as_they_were(loss) -> None:
    student, teachers = random_logits(4)
    teachers = [teacher.clone().requires_grad_() for teacher in teachers]
    before = [x.detach().clone() for x in (student, *teachers)]
    loss(student, teachers, 4.0).backward()
    assert all(teacher.grad is None for teacher in teachers)
    assert all(torch.equal(x, y) for x, y in zip((student, *teachers), before, strict=True))


@LOSSES
@pytest.mark.parametrize("size", [200.0, 1e4])
def test_extreme_logits_stay_finite_in_float32(loss, size: float) -> None:
    # Both teachers are sure of class 0, the student of class 1: at T = 1 the loss is 2 * size.
    teacher, student = torch.tensor([[size, -size, 0.0]]), torch.tensor([[-size, size, 0.0]]).requires_grad_()
    value = loss(student, [teacher, teacher], 1.0)
    value.backward()
    assert value.item() == pytest.approx(2 * size, rel=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 1.0, 0.0]]))


@pytest.mark.parametrize(("option", "value"), [("temperature", 0.0), ("temperature", math.nan), ("average", "logits")])
def test_options_out_of_range_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValidationError, match=option):
        MTAverage.Options(**{option: value})
