"""Values worked out by hand, and the game: who moves when, against whom."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import ModelShapes, Outputs, Shapes, StepContext
from kdzoo.contract.step import Batch, Clock
from kdzoo_adversarial.adversarial_logits import (
    AdversarialLogits,
    Discriminator,
    adversarial_logits_discriminator_loss,
    adversarial_logits_penalty_loss,
    adversarial_logits_student_loss,
)


def test_hinge_by_hand() -> None:
    # teacher: relu(1 - 3), relu(1 - 0.5) -> mean 0.25; student: relu(1 - 2), relu(1 + 1) -> mean 1
    assert adversarial_logits_discriminator_loss(torch.tensor([-2.0, 1.0]), torch.tensor([3.0, 0.5])).item() == 1.25
    assert adversarial_logits_discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == 2.0
    assert adversarial_logits_discriminator_loss(torch.tensor([-5.0]), torch.tensor([5.0])).item() == 0.0


def test_wgan_by_hand() -> None:
    assert (
        adversarial_logits_discriminator_loss(torch.tensor([-2.0, 1.0]), torch.tensor([3.0, 0.5]), "wgan").item()
        == -2.25
    )


def test_student_wants_high_scores() -> None:
    score = torch.tensor([-2.0, 1.0], requires_grad=True)
    loss = adversarial_logits_student_loss(score)
    loss.backward()
    assert loss.item() == 0.5
    assert score.grad.tolist() == [-0.5, -0.5]


class Slope(nn.Module):
    """A score of slope 3 everywhere."""

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return 3 * logits[:, 0], logits


def test_gradient_penalty_by_hand() -> None:
    real, fake = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert adversarial_logits_penalty_loss(Slope(), real, fake, torch.full((5, 1), 0.3)).item() == pytest.approx(4.0)


def shapes() -> Shapes:
    width = ModelShapes((), 4, 3)
    return Shapes(width, (width,), (), 3, 6, (1, 2, 2))


def game(objective: str = "hinge", samples: int = 6) -> tuple[AdversarialLogits, nn.Module, StepContext]:
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    inputs, targets = torch.randn(samples, 4), torch.arange(samples) % 3
    with torch.no_grad():
        answers = Outputs(teacher(inputs))
    ctx = StepContext(
        batch=Batch(inputs, targets, torch.arange(samples)),
        student=Outputs(student(inputs)),
        teachers=(answers,),
        peers=(),
        clock=Clock(0, 1, 0, 1),
        networks={},
        task_loss=lambda logits: F.cross_entropy(logits, targets),
        random=lambda name: torch.Generator().manual_seed(7),
        device=inputs.device,
        batch_size=samples,
    )
    return AdversarialLogits(AdversarialLogits.Options(objective=objective), shapes()), student, ctx


@pytest.mark.parametrize("objective", ["hinge", "wgan"])
def test_the_discriminator_moves_first_and_alone_then_the_student(objective: str) -> None:
    algorithm, student, ctx = game(objective)
    own = algorithm.networks()["discriminator"].module
    optimizers = {
        "discriminator": torch.optim.Adam(own.parameters(), lr=1e-2),
        "student": torch.optim.SGD(student.parameters(), lr=0.1),
    }
    weights = {"discriminator": own.stem.weight, "student": student.weight}
    order, terms = [], set()
    for update in algorithm.step(ctx):
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizers[update.network].zero_grad()
        total = sum(AdversarialLogits.default_weights[name] * term for name, term in update.loss.items())
        if update.network == "discriminator":
            student.weight.grad = None
        total.backward()
        if update.network == "discriminator":
            assert student.weight.grad is None, "the discriminator's loss reached the student"
            assert all(parameter.grad is not None for parameter in own.parameters())
        optimizers[update.network].step()
        moved = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
        assert moved == {update.network}
        order.append(update.network)
        terms |= set(update.loss)
    assert order == ["discriminator", "student"]
    assert terms == set(AdversarialLogits.default_weights)


def test_the_student_meets_the_updated_discriminator() -> None:
    algorithm, _, ctx = game()
    updates = algorithm.step(ctx)
    next(updates)
    with torch.no_grad():
        algorithm.discriminator.score.bias.add_(5.0)
        expected = adversarial_logits_student_loss(algorithm.discriminator(ctx.student.logits)[0])
    assert next(updates).loss["adversarial"].item() == pytest.approx(expected.item())


def test_equal_logits_leave_no_l1() -> None:
    algorithm, _, ctx = game()
    same = Outputs(ctx.teacher.logits.clone().requires_grad_())
    *_, update = algorithm.step(StepContext(**{**ctx.__dict__, "student": same}))
    assert update.loss["l1"].item() == 0.0


def test_a_batch_of_one_and_logits_of_ten_thousand_stay_finite() -> None:
    algorithm, _, ctx = game("wgan", samples=1)
    far = Outputs(torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True))
    for update in algorithm.step(StepContext(**{**ctx.__dict__, "student": far})):
        assert all(torch.isfinite(term) for term in update.loss.values())


def test_the_discriminator_learns_to_tell_two_sources_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = Discriminator(3, 16, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        teacher = torch.randn(32, 3, generator=generator) + 2
        student = torch.randn(32, 3, generator=generator) - 2
        loss = adversarial_logits_discriminator_loss(network(student)[0], network(teacher)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 1.5 < losses[0]


@pytest.mark.parametrize(
    ("key", "value"), [("objective", "log"), ("width", 0), ("blocks", -1), ("discriminator_lr", 0)]
)
def test_options_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        AdversarialLogits.Options(**{key: value})
