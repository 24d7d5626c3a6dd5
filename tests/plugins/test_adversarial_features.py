"""Values worked out by hand, and who moves when, against whom."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from kdzoo.api import ModelShapes, Outputs, Shapes, StepContext
from kdzoo.contract.step import Batch, Clock
from kdzoo_adversarial.adversarial_features import (
    AdversarialFeatures,
    adversarial_features_discriminator_loss,
    adversarial_features_student_loss,
)

LN2 = math.log(2)


def test_the_discriminator_s_loss_by_hand() -> None:
    # odds of 3 to 1 for the teacher on the teacher's sample, of 1 to 3 on the student's: each costs ln 4/3
    odds = torch.tensor([math.log(3)])
    assert adversarial_features_discriminator_loss(-odds, odds, 0.0).item() == pytest.approx(2 * math.log(4 / 3))
    # called the teacher's as well, the student's sample costs ln 4
    expected = 2 * math.log(4 / 3) + 0.5 * math.log(4)
    assert adversarial_features_discriminator_loss(-odds, odds, 0.5).item() == pytest.approx(expected)
    assert adversarial_features_discriminator_loss(torch.zeros(3), torch.zeros(2), 0.5).item() == pytest.approx(
        2.5 * LN2
    )


def test_flipped_samples_keep_it_from_being_sure() -> None:
    score = torch.tensor([-math.log(2)], requires_grad=True)  # with mu = 1/2 odds of 1 to 2 are the best there are
    adversarial_features_discriminator_loss(score, torch.tensor([50.0]), 0.5).backward()
    assert score.grad.item() == pytest.approx(0, abs=1e-6)


def test_the_student_s_loss_by_hand() -> None:
    score = torch.tensor([0.0, -math.log(3)], requires_grad=True)
    loss = adversarial_features_student_loss(score)
    loss.backward()
    assert loss.item() == pytest.approx((LN2 + math.log(4)) / 2)
    assert score.grad.tolist() == pytest.approx([-0.25, -0.375])


def test_scores_of_ten_thousand_stay_finite() -> None:
    score = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = adversarial_features_discriminator_loss(score, -score, 0.5) + adversarial_features_student_loss(score)
    loss.backward()
    assert loss.isfinite()
    assert score.grad.isfinite().all()


def game(width: int = 6) -> tuple[AdversarialFeatures, nn.Module, StepContext, dict[str, Any]]:
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 5), torch.randn(8, width)
    embedding = student(torch.randn(8, 4))
    noted: dict[str, Any] = {}
    ctx = StepContext(
        batch=Batch(torch.rand(8, 1, 2, 2), torch.full((8,), -1), torch.arange(8)),
        student=Outputs(embedding[:, :3], (), embedding),
        teachers=(Outputs(torch.randn(8, 3), (), teacher),),
        peers=(),
        clock=Clock(0, 1, 0, 1),
        networks={},
        task_loss=lambda logits: pytest.fail("no labels are read"),
        random=lambda name: torch.Generator().manual_seed(7),
        device=torch.device("cpu"),
        batch_size=8,
        note=noted.__setitem__,
    )
    shapes = Shapes(ModelShapes((), 5, 3), (ModelShapes((), width, 3),), (), 3, 8, (1, 2, 2))
    return AdversarialFeatures(AdversarialFeatures.Options(), shapes), student, ctx, noted


def test_the_discriminator_moves_first_and_alone_then_student_and_projector() -> None:
    algorithm, student, ctx, noted = game()
    updates = algorithm.step(ctx)
    first = next(updates)
    assert (first.network, set(first.loss)) == ("discriminator", {"discriminator"})
    first.loss["discriminator"].backward()
    assert student.weight.grad is None
    assert algorithm.projector.weight.grad is None
    assert all(parameter.grad is not None for parameter in algorithm.discriminator.parameters())
    second = next(updates)
    assert (second.network, set(second.loss)) == ("student", {"logits", "adversarial"})
    second.loss["adversarial"].backward()
    assert student.weight.grad.abs().max() > 0
    assert algorithm.projector.weight.grad.abs().max() > 0
    assert next(updates, None) is None
    assert set(noted) == {"discriminator_accuracy", "discriminator_spread"}


def test_the_student_meets_the_updated_discriminator() -> None:
    algorithm, _, ctx, _ = game()
    updates = algorithm.step(ctx)
    next(updates)
    with torch.no_grad():
        algorithm.discriminator[-1].bias.add_(5.0)
        score = algorithm.discriminator(algorithm.projector(ctx.student.pre_logits))
    assert next(updates).loss["adversarial"].item() == pytest.approx(adversarial_features_student_loss(score).item())


def test_embeddings_of_one_width_need_no_projector() -> None:
    algorithm, _, ctx, _ = game(width=5)
    assert not list(algorithm.projector.parameters())
    assert [update.network for update in algorithm.step(ctx)] == ["discriminator", "student"]


@pytest.mark.parametrize(("key", "value"), [("width", 0), ("layers", 0), ("discriminator_lr", 0.0), ("flipped", -1.0)])
def test_options_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        AdversarialFeatures.Options(**{key: value})
