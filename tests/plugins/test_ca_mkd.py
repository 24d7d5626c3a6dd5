"""ca_mkd: values worked out by hand, whom it trusts, and which teachers it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from kdzoo.api import ModelShapes, NeedsError, Outputs, Shapes
from kdzoo_multi_teacher.ca_mkd import CAMKD, ca_mkd_feature_loss, ca_mkd_logits_loss, ca_mkd_weights

TARGETS = torch.tensor([0])
SURE, UNSURE = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)  # 3/4 and 1/2 for the label
SHAPES = Shapes(ModelShapes((), 5, 4), (ModelShapes((), 6, 4), ModelShapes((), 7, 4)), (), 4, 100, (3, 8, 8))


class Model(nn.Module):
    """As much of a timm model as is asked for."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.fc = classifier

    def get_classifier(self) -> nn.Module:
        return self.fc


def context(*classifiers: nn.Module) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)

    def outputs(width: int) -> Outputs:
        logits, embedding = (torch.randn(3, size, generator=generator).requires_grad_() for size in (4, width))
        return Outputs(logits, (), embedding)

    return SimpleNamespace(
        student=outputs(5),
        teachers=(outputs(6), outputs(7)),
        batch=SimpleNamespace(targets=torch.tensor([0, 1, 3])),
        note=lambda name, value: None,
        modules={f"teacher_{i}": Model(classifier).requires_grad_(False) for i, classifier in enumerate(classifiers)},
    )


def test_weights_worked_out_by_hand() -> None:
    # Cross-entropies ln 4/3 and ln 2: their softmax is (4/3, 2) / (10/3) = (2/5, 3/5), the weights what is left of 1.
    weights = ca_mkd_weights([SURE, UNSURE], TARGETS)
    torch.testing.assert_close(weights, torch.tensor([[3 / 5], [2 / 5]]))
    # With three the rest is shared by two: (4/3, 2, 2) / (16/3) = (1/4, 3/8, 3/8).
    weights = ca_mkd_weights([SURE, UNSURE, UNSURE], TARGETS)
    torch.testing.assert_close(weights, torch.tensor([[3 / 8], [5 / 16], [5 / 16]]))


def test_the_logits_term_worked_out_by_hand() -> None:
    # The student is the unsure teacher: only the divergence from the sure one counts, with its weight, over two.
    divergence = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    loss = ca_mkd_logits_loss(UNSURE, [SURE, UNSURE], TARGETS, 1.0)
    assert loss.item() == pytest.approx(3 / 5 * divergence / 2)


def test_the_feature_term_worked_out_by_hand() -> None:
    # Mean squares 4 and 1, weighed by what the classifiers make of the student's features, over two teachers.
    student = [torch.zeros(1, 2), torch.zeros(1, 3)]
    teacher = [torch.tensor([[2.0, -2.0]]), torch.ones(1, 3)]
    loss = ca_mkd_feature_loss(student, teacher, [SURE, UNSURE], TARGETS)
    assert loss.item() == pytest.approx((3 / 5 * 4 + 2 / 5 * 1) / 2)


def test_a_teacher_that_is_wrong_is_left_out() -> None:
    right, wrong = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    torch.testing.assert_close(ca_mkd_weights([right, wrong], TARGETS), torch.tensor([[1.0], [0.0]]))


def test_weights_of_a_sample_sum_to_one_and_equal_teachers_share() -> None:
    logits = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6) % 5
    torch.testing.assert_close(ca_mkd_weights(logits.unbind(), targets).sum(0), torch.ones(6))
    torch.testing.assert_close(ca_mkd_weights([logits[0]] * 4, targets), torch.full((4, 6), 1 / 4))


def test_a_student_who_answers_as_all_teachers_do_scores_zero() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = ca_mkd_logits_loss(logits, [logits.detach()] * 3, torch.arange(6) % 5, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max().item() < 1e-6


@pytest.mark.parametrize("size", [200.0, 1e4])
def test_extreme_logits_stay_finite_in_float32(size: float) -> None:
    student = torch.tensor([[-size, size, 0.0]]).requires_grad_()
    right, wrong = torch.tensor([[size, -size, 0.0]]), torch.tensor([[-size, size, 0.0]])
    loss = ca_mkd_logits_loss(student, [right, wrong], TARGETS, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2 * size / 2)  # all of the weight on the right one, over two teachers
    assert student.grad.isfinite().all()


def test_gradients_reach_the_student_and_the_projectors_only() -> None:
    ctx = context(nn.Linear(6, 4), nn.Linear(7, 4))
    algorithm = CAMKD(CAMKD.Options(), SHAPES)
    terms = algorithm.losses(ctx)
    assert set(terms) == set(CAMKD.default_weights) - {"task"}
    sum(terms.values()).backward()
    assert all(x.grad is None for teacher in ctx.teachers for x in (teacher.logits, teacher.pre_logits))
    assert all(p.grad is None for model in ctx.modules.values() for p in model.parameters())
    assert ctx.student.logits.grad.abs().max() > 0
    assert ctx.student.pre_logits.grad.abs().max() > 0
    assert all(p.grad is not None for p in algorithm.parameters())


def test_relu_is_optional_and_the_projectors_have_no_running_state() -> None:
    embedding = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    bounded, free = (CAMKD(CAMKD.Options(use_relu=use), SHAPES) for use in (True, False))
    assert [tuple(p(embedding).shape) for p in bounded.projectors] == [(3, 6), (3, 7)]
    assert bounded.projectors[0](embedding).min() == 0
    assert free.projectors[0](embedding).min() < 0
    assert not list(bounded.buffers())


@pytest.mark.parametrize(
    ("classifier", "shown"),
    [
        (nn.Identity(), "Identity()"),
        (nn.Linear(5, 4), "Linear(in_features=5, out_features=4, bias=True)"),
    ],
)
def test_a_teacher_with_another_classifier_is_refused(classifier: nn.Module, shown: str) -> None:
    with pytest.raises(NeedsError) as error:
        CAMKD(CAMKD.Options(), SHAPES).losses(context(nn.Linear(6, 4), classifier))
    assert str(error.value) == (
        "algorithm 'ca_mkd': teacher 1 (Model) must classify by one linear layer over its embedding of 7, got " + shown
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, 1e30])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        CAMKD.Options(temperature=temperature)
