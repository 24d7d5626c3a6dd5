"""Values worked out by hand, the networks of the GAN, and who learns what from whom."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import ModelShapes, Outputs, Shapes, StepContext, soft_target_loss
from kdzoo.contract.step import Batch, Clock
from kdzoo.testing import tiny as testing
from kdzoo.zoo.loading import load_zoo
from kdzoo_adversarial.gan_augment import (
    ClassDiscriminator,
    ClassGenerator,
    GANAugment,
    gan_augment_discriminator_loss,
    gan_augment_generator_loss,
    statistics_kept,
)

LN2 = math.log(2)
IMAGES = pytest.mark.parametrize("image", [(1, 8, 8), (3, 32, 32), (3, 19, 23), (2, 3, 5), (1, 1, 1)])


def test_the_scores_by_hand() -> None:
    odds = torch.tensor([math.log(3)])  # 3 to 1 for real
    assert gan_augment_discriminator_loss(odds, -odds).item() == pytest.approx(2 * math.log(4 / 3))
    assert gan_augment_discriminator_loss(torch.zeros(2), torch.zeros(3)).item() == pytest.approx(2 * LN2)
    assert gan_augment_generator_loss(-odds).item() == pytest.approx(math.log(4))


@IMAGES
@pytest.mark.parametrize("samples", [1, 3])
def test_the_generator_makes_images_of_the_data_s_shape(image: tuple[int, int, int], samples: int) -> None:
    images = ClassGenerator(4, 6, 5, image)(torch.randn(samples, 4), torch.arange(samples))
    assert images.shape == (samples, *image)
    assert 0 <= images.min() <= images.max() <= 1


@IMAGES
def test_the_discriminator_reads_images_of_any_shape(image: tuple[int, int, int]) -> None:
    score, label = ClassDiscriminator(4, 5, image)(torch.rand(3, *image))
    assert (score.shape, label.shape) == ((3,), (3, 5))


def test_the_class_that_is_asked_for_makes_a_difference() -> None:
    generator = ClassGenerator(4, 6, 5, (1, 8, 8)).eval()
    latent = torch.randn(1, 4).expand(2, 4)
    first, second = generator(latent, torch.tensor([0, 1]))
    assert not torch.equal(first, second)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Outputs:
        return Outputs(self.head(self.norm(inputs).flatten(1)))


def game(step: int = 0, **options: Any) -> tuple[GANAugment, Net, StepContext, dict[str, Any]]:
    torch.manual_seed(0)
    student, teacher, noted = Net(), Net().requires_grad_(False).eval(), {}
    inputs, targets = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    ctx = StepContext(
        batch=Batch(inputs, targets, torch.arange(6)),
        student=student(inputs),
        teachers=(teacher(inputs),),
        peers=(),
        clock=Clock(0, 10, step, 4),
        networks={"student": student, "teacher": teacher},
        task_loss=lambda logits: F.cross_entropy(logits, targets),
        random=lambda name: torch.Generator().manual_seed(7),
        device=torch.device("cpu"),
        batch_size=6,
        modules={"student": student, "teacher": teacher},
        note=noted.__setitem__,
    )
    width = ModelShapes((), 16, 3)
    shapes = Shapes(width, (width,), (), 3, 6, (1, 4, 4))
    return GANAugment(GANAugment.Options(**options), shapes), student, ctx, noted


def test_the_discriminator_moves_first_then_the_generator_then_the_student() -> None:
    algorithm, student, ctx, noted = game()
    modules = {"discriminator": algorithm.discriminator, "generator": algorithm.generator, "student": student}
    allowed = {"discriminator": set(), "generator": {"discriminator"}, "student": set()}
    order, terms = [], set()
    for update in algorithm.step(ctx):
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        sum(update.loss.values()).backward()
        reached = {name for name, module in modules.items() if any(p.grad is not None for p in module.parameters())}
        assert reached - allowed[update.network] == {update.network}
        order.append(update.network)
        terms |= set(update.loss)
    assert order == list(modules)
    assert terms == set(GANAugment.default_weights)
    assert set(noted) == {"discriminator_accuracy", "discriminator_spread", "generated_class_accuracy"}


def test_the_student_learns_the_softened_answers_on_real_samples() -> None:
    algorithm, _, ctx, _ = game(temperature=2.0)
    terms = [update.loss for update in algorithm.step(ctx)][-1]
    torch.testing.assert_close(terms["kd"], soft_target_loss(ctx.student.logits, ctx.teacher.logits, temperature=2.0))


def test_generated_samples_count_more_and_more_and_then_in_full() -> None:
    def term(step: int, warmup_epochs: int) -> float:
        algorithm, _, ctx, _ = game(step, warmup_epochs=warmup_epochs)
        return [update.loss for update in algorithm.step(ctx)][-1]["kd_generated"].item()

    full = term(0, 0)
    assert term(0, 2) == pytest.approx(full / 8)
    assert term(3, 2) == pytest.approx(full / 2)
    assert term(7, 2) == term(30, 2) == pytest.approx(full)


@pytest.mark.parametrize(("generated", "samples"), [(0.01, 1), (0.5, 3), (2.0, 12)])
def test_as_many_samples_are_generated_as_asked_for(generated: float, samples: int) -> None:
    algorithm, _, ctx, _ = game(generated=generated)
    images, classes = algorithm.generate(ctx)
    assert (len(images), len(classes)) == (samples, samples)


def test_generated_samples_leave_the_student_s_statistics_alone() -> None:
    algorithm, student, ctx, _ = game()
    before = student.norm.running_mean.clone(), student.norm.momentum
    list(algorithm.step(ctx))
    assert torch.equal(student.norm.running_mean, before[0])
    assert student.norm.momentum == before[1]


def test_statistics_are_kept_even_if_the_forward_fails() -> None:
    net = Net()
    with pytest.raises(ValueError, match="expected 4D input"), statistics_kept(net):
        net(torch.rand(2, 5))
    assert net.norm.momentum == 0.1


def test_the_report_shows_what_was_generated(tmp_path: Path) -> None:
    results = json.loads(json.dumps(testing.tiny_runner(GANAugment, load_zoo(), tmp_path).run()))
    (images,) = results["report_items"]
    assert (images["kind"], len(images["images"])) == ("images", 4 * 6)
    assert images["captions"] == [f"stripe {k}" for k in range(4) for _ in range(6)]


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", 0.0), ("generated", 0.0), ("warmup_epochs", -1), ("width", 1), ("latent_dim", 0)]
)
def test_options_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        GANAugment.Options(**{key: value})
