"""mt_dissimilarity: values worked out by hand, how the vote goes, and what only the order of distances sees."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from kdzoo_multi_teacher.mt_dissimilarity import MTDissimilarity, mt_dissimilarity_loss


def on_a_line(*places: float) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float64)[:, None].requires_grad_()


# Of a, b, c on a line: distances ab 1, bc 2, ac 3, or bc 1, ab 2, ac 3. The mean distance is 2 in both.
NEAR_AB, NEAR_BC = on_a_line(0, 1, 3), on_a_line(0, 2, 3)


def test_value_worked_out_by_hand() -> None:
    # Only b is torn: the teacher puts a closer (1/2 against 1), the student c. The student's gap of 1/2 the wrong way
    # counts for (b, a, c) and (b, c, a), of six triplets.
    assert mt_dissimilarity_loss(NEAR_BC, [NEAR_AB], 0.0).item() == pytest.approx(2 * 0.5 / 6)


def test_a_margin_asks_for_more_than_the_order() -> None:
    # Gaps in the student's own, agreed order: 1 (a: ab 1/2, ac 3/2), 1/2 (b: ab 1/2, bc 1) and 1/2 (c: bc 1, ac 3/2).
    assert mt_dissimilarity_loss(NEAR_AB, [NEAR_AB], 0.5).item() == pytest.approx(0)
    assert mt_dissimilarity_loss(NEAR_AB, [NEAR_AB], 0.75).item() == pytest.approx(2 * (0 + 0.25 + 0.25) / 6)
    assert mt_dissimilarity_loss(NEAR_BC, [NEAR_AB], 0.5).item() == pytest.approx(2 * (0 + 1 + 0) / 6)


def test_the_majority_decides() -> None:
    agreed = mt_dissimilarity_loss(NEAR_BC, [NEAR_AB], 0.0).item()
    assert mt_dissimilarity_loss(NEAR_BC, [NEAR_AB, NEAR_AB, NEAR_BC], 0.0).item() == agreed
    assert mt_dissimilarity_loss(NEAR_BC, [NEAR_AB, NEAR_BC, NEAR_BC], 0.0).item() == 0


def test_a_tied_vote_asks_for_nothing() -> None:
    for student in (NEAR_AB, NEAR_BC):
        assert mt_dissimilarity_loss(student, [NEAR_AB, NEAR_BC], 0.0).item() == 0
    # Not even for a margin: what is left are the triplets on which both agree, whose gaps are 1 and 1/2.
    assert mt_dissimilarity_loss(NEAR_AB, [NEAR_AB, NEAR_BC], 0.5).item() == pytest.approx(0)


def random_maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_student_equal_to_its_teachers_scores_zero() -> None:
    features = random_maps(0, 6, 3, 4, 4)
    assert mt_dissimilarity_loss(features, [features] * 3, 0.0).item() == 0


def test_equals_a_loop_over_all_triplets() -> None:
    student, teachers = random_maps(0, 5, 3, 2, 2), [random_maps(i, 5, 2 + i, 4, 4) for i in (1, 2, 3)]

    def distances(features: torch.Tensor) -> torch.Tensor:
        flat = features.flatten(1)
        found = torch.stack([torch.stack([(x - y).norm() for y in flat]) for x in flat])
        return found / (found.sum() / 20)

    own, taught = distances(student), [distances(teacher) for teacher in teachers]
    terms = []
    for i, j, k in ((i, j, k) for i in range(5) for j in range(5) for k in range(5) if len({i, j, k}) == 3):
        closer = sum(1 if d[i, j] < d[i, k] else -1 for d in taught)
        near, far = (j, k) if closer > 0 else (k, j)
        terms.append(max(0.0, 0.3 + (own[i, near] - own[i, far]).item()))
    assert len(terms) == 60
    assert mt_dissimilarity_loss(student, teachers, 0.3).item() == pytest.approx(sum(terms) / 60)


@pytest.mark.parametrize("change", [lambda x: 1000 * x, lambda x: x + 3, lambda x: x.flip(1), lambda x: -x])
def test_no_scale_shift_or_turn_matters(change) -> None:
    student, teacher = random_maps(0, 5, 3, 2, 2), random_maps(1, 5, 4, 3, 3)
    expected = mt_dissimilarity_loss(student, [teacher], 0.1)
    torch.testing.assert_close(mt_dissimilarity_loss(change(student), [change(teacher)], 0.1), expected)


def test_the_teachers_get_no_gradient_and_the_student_s_mends_the_order() -> None:
    student, teacher = on_a_line(0, 2, 3), on_a_line(0, 1, 3)
    mt_dissimilarity_loss(student, [teacher], 0.0).backward()
    assert teacher.grad is None
    assert student.grad[1].item() > 0  # a step down the gradient takes b towards a


@pytest.mark.parametrize("features", [torch.zeros(4, 3), torch.ones(4, 3), 1e15 * torch.eye(4)])
def test_coinciding_and_far_samples_give_finite_gradients(features: torch.Tensor) -> None:
    student = features.clone().requires_grad_()
    loss = mt_dissimilarity_loss(student, [torch.randn(4, 3)], 0.1)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("samples", [1, 2])
def test_fewer_than_three_samples_make_no_triplet(samples: int) -> None:
    features = random_maps(0, samples, 3)
    assert mt_dissimilarity_loss(features, [random_maps(1, samples, 3)], 0.5).item() == 0
    assert MTDissimilarity.needs.min_batch == 3


@pytest.mark.parametrize("margin", [-0.1, math.inf, math.nan, 1e30])
def test_a_margin_out_of_range_is_refused(margin: float) -> None:
    with pytest.raises(ValidationError, match="margin"):
        MTDissimilarity.Options(margin=margin)
