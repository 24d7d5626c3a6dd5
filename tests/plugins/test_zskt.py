"""Values worked out by hand, and who is trained on which images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdzoo.api import Level, ModelShapes, Outputs, Shapes, StepContext
from kdzoo.contract.step import Clock
from kdzoo.testing import tiny as testing
from kdzoo.zoo.loading import load_zoo
from kdzoo_data_free.zskt import ZSKT, zskt_attention_loss, zskt_divergence_loss


def log(*rows: tuple[float, ...]) -> Tensor:
    """Logits whose softmax is exactly these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_divergence_by_hand() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) and 0, over 2 samples and 2 classes
    loss = zskt_divergence_loss(log((0.25, 0.75), (0.1, 0.9)), log((0.5, 0.5), (0.1, 0.9)), 1.0)
    assert loss.item() == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 4)


def test_a_temperature_softens_both() -> None:
    # at temperature 2 logits (ln 9, 0) are (3/4, 1/4)
    loss = zskt_divergence_loss(log((0.5, 0.5)), log((0.9, 0.1)), 2.0)
    assert loss.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)


def test_attention_by_hand() -> None:
    # mean squares (9, 16) and (1, 0) at two places; unit vectors (9, 16)/sqrt(337) and (1, 0)
    student = torch.tensor([[[[3.0, 4.0]], [[3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0]]]])
    expected = ((9 / math.sqrt(337) - 1) ** 2 + (16 / math.sqrt(337)) ** 2) / 2
    assert zskt_attention_loss([student, student], [teacher, student * 5]).item() == pytest.approx(expected)


def test_extreme_logits_have_finite_gradients() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    zskt_divergence_loss(logits, -logits.detach(), 1.0).backward()
    assert torch.isfinite(logits.grad).all()


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.head = nn.Linear(128, 3)

    def forward(self, images: Tensor) -> Outputs:
        features = self.conv(images)
        return Outputs(self.head(features.flatten(1)), (features,))


def test_the_generator_moves_once_then_the_student_often_on_the_same_images() -> None:
    torch.manual_seed(0)
    student, teacher = Classifier(), Classifier().requires_grad_(False)
    shapes = ModelShapes((Level("conv", 2, 8, 8, 1),), 128, 3)
    options = ZSKT.Options(latent_dim=5, width=8, student_updates=3)
    algorithm = ZSKT(options, Shapes(shapes, (shapes,), (), 3, 0, (1, 8, 8)))
    seen: list[Tensor] = []

    def run_student(images: Tensor) -> Outputs:
        seen.append(images.detach().clone())
        return student(images)

    ctx = StepContext(
        batch=None,
        student=None,
        teachers=(),
        peers=(),
        clock=Clock(0, 1, 0, 1),
        networks={"student": run_student, "teacher": teacher},
        task_loss=lambda logits: pytest.fail("a data-free algorithm asked for labels"),
        random=lambda name: torch.Generator().manual_seed(len(name)),
        device=torch.device("cpu"),
        batch_size=7,
    )
    own = algorithm.networks()["generator"].module
    optimizers = {
        "generator": torch.optim.Adam(own.parameters(), lr=1e-2),
        "student": torch.optim.SGD(student.parameters(), lr=0.1),
    }
    weights = {"generator": own.stem.weight, "student": student.head.weight, "teacher": teacher.head.weight}
    order, divergences = [], []
    for update in algorithm.step(ctx):
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizers[update.network].zero_grad()
        sum(update.loss.values()).backward()
        optimizers[update.network].step()
        assert {name for name, weight in weights.items() if not torch.equal(weight, before[name])} == {update.network}
        order.append(update.network)
        divergences.append(update.loss.get("kd", -update.loss.get("disagreement", torch.zeros(()))).item())
    assert order == ["generator", "student", "student", "student"]
    assert all(torch.equal(images, seen[0]) for images in seen)
    assert divergences[0] == pytest.approx(divergences[1]), "the first student's loss is what the generator had"
    assert divergences[3] < divergences[1]


@pytest.mark.slow
def test_a_student_learns_a_task_without_a_sample_of_it(tmp_path: Path) -> None:
    teacher = {"name": testing.TINY, "args": testing.TEACHER, "train": {"epochs": 16, "steps_per_epoch": 12}}
    changes = {
        "models": {"teachers": [teacher]},
        "data": {"batch_size": 32, "options": {"samples": 128}},
        "train": {"epochs": 8, "steps_per_epoch": 25, "optimizer": {"lr": 0.05}},
    }
    options = {"width": 32, "student_updates": 3}
    results = testing.tiny_runner(ZSKT, load_zoo(), tmp_path, changes, options).run()
    assert results["teacher"]["top1_percent"] > 90
    assert results["student"]["top1_percent"] > 50, "chance is 25"


@pytest.mark.parametrize(
    ("key", "value"), [("latent_dim", 0), ("width", 1), ("temperature", 0), ("generator_lr", 0), ("student_updates", 0)]
)
def test_options_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        ZSKT.Options(**{key: value})
