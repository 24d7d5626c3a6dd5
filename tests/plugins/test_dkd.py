"""dkd: values worked out by hand, the split of kd that the paper proves, and numbers at the edge."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdzoo.api import ModelShapes, Outputs, Shapes, StepContext, soft_target_loss
from kdzoo.contract.step import Batch, Clock
from kdzoo_response.dkd import DKD, dkd_non_target_loss, dkd_target_loss


def logits(seed: int, samples: int = 5, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, samples, classes, generator=generator, dtype=torch.float64) * 3
    return student, teacher, torch.randint(classes, (samples,), generator=generator)


def test_values_worked_out_by_hand() -> None:
    # Teacher (1/2, 3/8, 1/8), student uniform, label 0. Target: (1/2, 1/2) against (1/3, 2/3). Others: (3/4, 1/4)
    # against (1/2, 1/2).
    teacher = torch.tensor([[4.0, 3.0, 1.0]]).log()
    student, targets = torch.zeros(1, 3), torch.tensor([0])
    target = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
    non_target = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
    assert dkd_target_loss(student, teacher, targets, 1.0).item() == pytest.approx(target, abs=1e-7)
    assert dkd_non_target_loss(student, teacher, targets, 1.0).item() == pytest.approx(non_target, abs=1e-7)


def test_kd_is_the_target_term_plus_the_non_target_term_weighed_by_what_the_teacher_leaves() -> None:
    # The paper's reformulation of kd, sample by sample: KD = TCKD + (1 - p_teacher(label)) * NCKD.
    for temperature in (1.0, 4.0):
        student, teacher, targets = logits(0)
        for i in range(len(targets)):
            row = student[i : i + 1], teacher[i : i + 1], targets[i : i + 1]
            left = 1 - F.softmax(row[1] / temperature, dim=1)[0, row[2].item()]
            both = dkd_target_loss(*row, temperature) + left * dkd_non_target_loss(*row, temperature)
            torch.testing.assert_close(soft_target_loss(row[0], row[1], temperature=temperature), both)


def test_a_perfect_student_scores_zero() -> None:
    student, _, targets = logits(1)
    for loss in (dkd_target_loss, dkd_non_target_loss):
        assert loss(student, student.clone(), targets, 4.0).item() == pytest.approx(0, abs=1e-12)


def test_the_terms_ignore_a_constant_added_to_the_logits() -> None:
    student, teacher, targets = logits(2)
    for loss in (dkd_target_loss, dkd_non_target_loss):
        torch.testing.assert_close(loss(student + 7, teacher - 3, targets, 4.0), loss(student, teacher, targets, 4.0))


def test_the_non_target_term_does_not_look_at_the_label() -> None:
    student, teacher, targets = logits(3)
    moved = student.scatter_add(1, targets[:, None], torch.full((5, 1), 9.0, dtype=torch.float64))
    got = dkd_non_target_loss(moved, teacher, targets, 4.0)
    torch.testing.assert_close(got, dkd_non_target_loss(student, teacher, targets, 4.0))


def test_with_two_classes_the_non_target_term_is_zero_and_three_are_demanded() -> None:
    student, teacher, targets = logits(4, classes=2)
    assert dkd_non_target_loss(student, teacher, targets, 4.0).item() == 0
    assert DKD.needs.min_classes == 3


@pytest.mark.parametrize("size", [200.0, 1e4])
def test_extreme_logits_stay_finite_and_exact_in_float32(size: float) -> None:
    # The teacher is sure of the label, the student of another class: the chance of the label is exp(-2 * size).
    teacher, student = torch.tensor([[size, -size, 0.0]]), torch.tensor([[-size, size, 0.0]]).requires_grad_()
    targets = torch.tensor([0])
    target = dkd_target_loss(student, teacher, targets, 1.0)
    non_target = dkd_non_target_loss(student, teacher, targets, 1.0)
    assert target.item() == pytest.approx(2 * size, rel=1e-6)
    assert non_target.item() == pytest.approx(size, rel=1e-6)
    (gradient,) = torch.autograd.grad(target + non_target, student)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 2.0, -1.0]]))


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher, targets = logits(5)
    student.requires_grad_()
    teacher.requires_grad_()
    (dkd_target_loss(student, teacher, targets, 2.0) + dkd_non_target_loss(student, teacher, targets, 2.0)).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def context(epoch: int) -> StepContext:
    student, teacher, targets = (value.float() if value.is_floating_point() else value for value in logits(6))
    return StepContext(
        batch=Batch(torch.zeros(5, 3, 4, 4), targets, torch.arange(5)),
        student=Outputs(student),
        teachers=(Outputs(teacher),),
        peers=(),
        clock=Clock(epoch, 240, epoch, 1),
        networks={},
        task_loss=lambda logits: F.cross_entropy(logits, targets),
        random=lambda name: torch.Generator(),
        device=torch.device("cpu"),
        batch_size=5,
    )


def test_both_terms_warm_up_linearly_from_the_first_epoch_on() -> None:
    shapes = ModelShapes((), 8, 7)
    dkd = DKD(DKD.Options(warmup_epochs=4), Shapes(shapes, (shapes,), (), 7, 5, (3, 4, 4)))
    full = dkd.losses(replace(context(0), clock=Clock(100, 240, 100, 1)))
    for epoch, share in ((0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (50, 1.0)):
        terms = dkd.losses(context(epoch))
        for name in ("target", "non_target"):
            torch.testing.assert_close(terms[name], share * full[name])
    without = DKD(DKD.Options(warmup_epochs=0), dkd.shapes)
    torch.testing.assert_close(without.losses(context(0)), full)
