"""Values worked out by hand, the images, and who learns what from whom."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdzoo.api import ModelShapes, Outputs, Shapes, StepContext
from kdzoo.contract.step import Clock
from kdzoo.testing import tiny as testing
from kdzoo.zoo.loading import load_zoo
from kdzoo_data_free.dafl import (
    DAFL,
    dafl_activation_loss,
    dafl_balance_loss,
    dafl_one_hot_loss,
)
from kdzoo_data_free.generator import Generator, by_channel, pictures


def log(*rows: tuple[float, ...]) -> Tensor:
    """Logits whose softmax is exactly these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_one_hot_by_hand() -> None:
    assert dafl_one_hot_loss(log((0.8, 0.2), (0.25, 0.75))).item() == pytest.approx(-math.log(0.8 * 0.75) / 2)


def test_activation_by_hand() -> None:
    assert dafl_activation_loss(torch.tensor([[1.0, -2.0], [0.0, 5.0]])).item() == -2.0


def test_balance_by_hand() -> None:
    # the mean prediction is (1/2, 1/2), then (3/4, 1/4)
    assert dafl_balance_loss(log((0.8, 0.2), (0.2, 0.8))).item() == pytest.approx(-math.log(2))
    expected = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert dafl_balance_loss(log((0.9, 0.1), (0.6, 0.4))).item() == pytest.approx(expected)


def test_a_batch_of_one_class_only_has_balance_0_and_finite_gradients() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]] * 3, requires_grad=True)
    loss = dafl_balance_loss(logits) + dafl_one_hot_loss(logits)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("image", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 19, 23), (2, 3, 5), (1, 1, 1)])
@pytest.mark.parametrize("samples", [1, 5])
def test_images_have_the_data_s_shape_and_range(image: tuple[int, int, int], samples: int) -> None:
    torch.manual_seed(0)
    images = Generator(10, 8, image, ModelShapes((), 8, 3))(torch.randn(samples, 10))
    assert images.shape == (samples, *image)
    assert images.min() >= 0
    assert images.max() <= 1


def test_images_are_spread_as_the_teacher_normalises() -> None:
    torch.manual_seed(0)
    teacher = ModelShapes((), 8, 3, mean=(0.4, 0.5, 0.6), std=(0.05, 0.1, 0.15))
    images = Generator(10, 32, (3, 16, 16), teacher)(torch.randn(64, 10))
    assert images.mean(dim=(0, 2, 3)).tolist() == pytest.approx(teacher.mean, abs=0.01)
    assert images.std(dim=(0, 2, 3)).tolist() == pytest.approx(teacher.std, abs=0.01)


def test_grey_data_of_a_teacher_of_colours_takes_the_average() -> None:
    assert by_channel((0.2, 0.4, 0.9), 1).flatten().tolist() == pytest.approx([0.5])
    assert by_channel((0.2, 0.4), 2).shape == (1, 2, 1, 1)


def test_pictures_say_what_the_teacher_takes_them_for() -> None:
    class Bright(nn.Module):
        def forward(self, images: Tensor) -> Outputs:
            bright = images.mean(dim=(1, 2, 3))
            return Outputs(torch.stack([bright, 1 - bright], dim=1).log())

    images = torch.tensor([0.9, 0.2]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    shown = pictures(images, Bright(), ("day", "night"))
    assert shown.captions == ("day (90%)", "night (80%)")
    assert torch.equal(shown.images, images)


def test_a_generator_of_few_classes_is_warned_about() -> None:
    width = ModelShapes((), 64, 4)
    algorithm = DAFL(DAFL.Options(latent_dim=5, width=8), Shapes(width, (width,), (), 4, 0, (1, 8, 8)))
    assert list(algorithm.warnings({"balance": -1.2})) == []
    assert list(algorithm.warnings({"balance": -0.3})) == [
        "the generator makes few classes: balance is -0.30, -1.39 were all alike; raise its weight or data.batch_size"
    ]


class Classifier(nn.Module):
    """A linear network that reports its pixels as embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Outputs:
        pixels = images.flatten(1)
        return Outputs(self.head(pixels), pre_logits=pixels)


def setting() -> tuple[DAFL, Classifier, Classifier, StepContext, list[Tensor]]:
    torch.manual_seed(0)
    student, teacher = Classifier(), Classifier().requires_grad_(False)
    width = ModelShapes((), 64, 3)
    algorithm = DAFL(DAFL.Options(latent_dim=5, width=8), Shapes(width, (width,), (), 3, 0, (1, 8, 8)))
    seen: list[Tensor] = []

    def run_student(images: Tensor) -> Outputs:
        seen.append(images)
        return student(images)

    def no_labels(logits: Tensor) -> Tensor:
        raise AssertionError("a data-free algorithm asked for labels")

    ctx = StepContext(
        batch=None,
        student=None,
        teachers=(),
        peers=(),
        clock=Clock(0, 1, 0, 1),
        networks={"student": run_student, "teacher": teacher},
        task_loss=no_labels,
        random=lambda name: torch.Generator().manual_seed(len(name)),
        device=torch.device("cpu"),
        batch_size=7,
        modules={"teacher": teacher},
    )
    return algorithm, student, teacher, ctx, seen


def test_the_generator_moves_first_then_the_student_on_the_same_images() -> None:
    algorithm, student, teacher, ctx, seen = setting()
    own = algorithm.networks()["generator"].module
    optimizers = {
        "generator": torch.optim.Adam(own.parameters(), lr=1e-2),
        "student": torch.optim.SGD(student.parameters(), lr=0.1),
    }
    weights = {"generator": own.stem.weight, "student": student.head.weight, "teacher": teacher.head.weight}
    order, terms = [], set()
    for update in algorithm.step(ctx):
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizers[update.network].zero_grad()
        sum(update.loss.values()).backward()
        if update.network == "generator":
            assert student.head.weight.grad is None
            assert all(parameter.grad is not None for parameter in own.parameters())
            generator_gradient = own.stem.weight.grad.clone()
        else:
            assert torch.equal(own.stem.weight.grad, generator_gradient), "the student's loss reached the generator"
        optimizers[update.network].step()
        assert {name for name, weight in weights.items() if not torch.equal(weight, before[name])} == {update.network}
        order.append(update.network)
        terms |= set(update.loss)
    assert order == ["generator", "student"]
    assert terms == set(DAFL.default_weights)
    assert [images.shape for images in seen] == [(7, 1, 8, 8)]
    assert not seen[0].requires_grad


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    algorithm, student, teacher, ctx, _ = setting()
    student.load_state_dict(teacher.state_dict())
    *_, update = algorithm.step(ctx)
    assert update.loss["kd"].item() == pytest.approx(0.0, abs=1e-6)


def test_the_generator_learns_to_please_the_teacher() -> None:
    algorithm, _, teacher, *_ = setting()
    teacher.head.weight.mul_(10)
    optimizer = torch.optim.Adam(algorithm.generator.parameters(), lr=1e-2)
    noise = torch.randn(32, 5)

    def cost() -> Tensor:
        answer = teacher(algorithm.generator(noise))
        return dafl_one_hot_loss(answer.logits) + dafl_balance_loss(answer.logits)

    before = cost().item()
    for _ in range(30):
        optimizer.zero_grad()
        cost().backward()
        optimizer.step()
    assert cost().item() < before - 0.4


@pytest.mark.slow
def test_a_student_learns_a_task_without_a_sample_of_it(tmp_path: Path) -> None:
    teacher = {"name": testing.TINY, "args": testing.TEACHER, "train": {"epochs": 16, "steps_per_epoch": 12}}
    changes = {
        "models": {"teachers": [teacher]},
        "data": {"batch_size": 32, "options": {"samples": 128}},
        "train": {"epochs": 8, "steps_per_epoch": 50, "optimizer": {"lr": 0.05}},
    }
    runner = testing.tiny_runner(DAFL, load_zoo(), tmp_path, changes, {"width": 32, "generator_lr": 3e-4})
    results = runner.run()
    assert results["teacher"]["top1_percent"] > 90
    assert results["student"]["top1_percent"] > 50, "chance is 25"


@pytest.mark.parametrize(("key", "value"), [("latent_dim", 0), ("width", 1), ("generator_lr", 0)])
def test_options_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        DAFL.Options(**{key: value})
