"""rkd: values worked out by hand, the motions that leave relations alone, and degenerate batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdzoo.api import NeedsError
from kdzoo.testing import tiny as testing
from kdzoo.zoo.loading import load_zoo
from kdzoo_relation.rkd import RKD, rkd_angle_loss, rkd_distance_loss

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: list[Loss] = [rkd_distance_loss, rkd_angle_loss]


def embeddings(seed: int, samples: int = 6, width: int = 5) -> torch.Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# A right triangle with legs 3 and 4, and three points in a row at distances 1, 1 and 2.
TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
ROW = torch.tensor([[0.0], [1.0], [2.0]])


def test_distance_worked_out_by_hand() -> None:
    # In units of their means: 3/4, 4/4, 5/4 for pairs 01, 02, 12 against 3/4, 6/4, 3/4. Each pair counts twice of 9.
    expected = 2 * (0.5 * 0.0**2 + 0.5 * 0.5**2 + 0.5 * 0.5**2) / 9
    assert rkd_distance_loss(TRIANGLE, ROW).item() == pytest.approx(expected, rel=1e-6)


def test_angle_worked_out_by_hand() -> None:
    # Cosines at corners 0, 1, 2: triangle 0, 3/5, 4/5; row 1, -1, 1. Each corner counts twice of 27.
    expected = 2 * (0.5 * 1.0**2 + (1.6 - 0.5) + 0.5 * 0.2**2) / 27
    assert rkd_angle_loss(TRIANGLE, ROW).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_turning_shifting_and_scaling_change_nothing(loss: Loss) -> None:
    student, teacher = embeddings(0), embeddings(1, width=8)
    turned, _ = torch.linalg.qr(embeddings(2, 5, 5))
    torch.testing.assert_close(loss(7 * student @ turned + 3, teacher), loss(student, teacher))
    assert loss(7 * student @ turned + 3, student).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_samples_does_not_matter(loss: Loss) -> None:
    student, teacher = embeddings(3), embeddings(4)
    torch.testing.assert_close(loss(student.flip(0), teacher.flip(0)), loss(student, teacher))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_perfect_student_scores_zero_with_zero_gradient(loss: Loss) -> None:
    student = embeddings(5).float().requires_grad_()
    value = loss(student, student.detach().clone())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-10)
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("samples", [1, 2])
def test_fewer_than_three_samples_teach_nothing_and_are_refused(loss: Loss, samples: int) -> None:
    student = embeddings(6, samples).requires_grad_()
    value = loss(student, embeddings(7, samples))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12
    assert RKD.needs.min_batch == 3


@pytest.mark.parametrize("loss", LOSSES)
def test_close_samples_far_from_the_origin_keep_their_relations_in_float32(loss: Loss) -> None:
    student, teacher = embeddings(8), embeddings(9)
    far = (student + 1000).float()
    torch.testing.assert_close(loss(far, teacher.float()).double(), loss(student, teacher), rtol=1e-3, atol=1e-6)


def test_coinciding_embeddings_have_a_bounded_gradient_in_training() -> None:
    student = embeddings(10).float()
    student[3] = student[1]
    student.requires_grad_()
    teacher = embeddings(11).float()
    terms = rkd_distance_loss(student, teacher), rkd_angle_loss(student, teacher, shortest=1e-4)
    (gradient,) = torch.autograd.grad(25 * terms[0] + 50 * terms[1], student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e6
    # Where nothing is closer than that, the bound has no effect.
    torch.testing.assert_close(
        rkd_angle_loss(teacher, embeddings(12).float(), shortest=1e-4), rkd_angle_loss(teacher, embeddings(12).float())
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_collapsed_embeddings_stay_finite(loss: Loss) -> None:
    student = torch.zeros(4, 3).requires_grad_()
    value = loss(student, embeddings(13, 4).float())
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_teacher_gets_no_gradient(loss: Loss) -> None:
    student, teacher = embeddings(14).requires_grad_(), embeddings(15).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None


def test_a_batch_of_two_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(NeedsError) as error:
        testing.tiny_runner(RKD, load_zoo(), tmp_path, {"data": {"batch_size": 2}}).run()
    assert str(error.value).startswith("algorithm 'rkd': needs at least 3 samples at a time, got 2 ")
