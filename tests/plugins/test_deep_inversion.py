"""Values worked out by hand, and how images come, are kept and go."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdzoo.api import ModelShapes, NeedsError, Outputs, Shapes, StepContext
from kdzoo.contract.step import Clock
from kdzoo.testing import tiny as testing
from kdzoo.testing.harness import run_steps
from kdzoo.training.engine import Engine
from kdzoo.zoo.loading import load_zoo
from kdzoo_data_free.deep_inversion import (
    DeepInversion,
    deep_inversion_disagreement_loss,
    rolled,
    total_variation_loss,
)
from kdzoo_data_free.statistics import batch_norm_gap_loss, batch_norm_inputs, in_eval_mode


def log(*rows: tuple[float, ...]) -> Tensor:
    """Logits whose softmax is exactly these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


# --- terms ----------------------------------------------------------------------------------


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[[[0.0, 3.0], [4.0, 9.0]]]])
    # right: -3, -5; down: -4, -6; lower left: 4 - 3; lower right: 0 - 9
    assert total_variation_loss(image, "l1").item() == 4 + 5 + 1 + 9
    assert total_variation_loss(image, "l2").item() == pytest.approx(math.sqrt(34) + math.sqrt(52) + 1 + 9)
    assert total_variation_loss(torch.full((2, 3, 4, 5), 0.3), "l1").item() == 0


def test_disagreement_by_hand() -> None:
    # at temperature 3: student (1/2, 1/2), teacher (9/10, 1/10), their mean (7/10, 3/10)
    student, teacher = 3 * log((0.5, 0.5)), 3 * log((0.9, 0.1))
    from_student = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    from_teacher = 0.7 * math.log(0.7 / 0.9) + 0.3 * math.log(0.3 / 0.1)
    loss = deep_inversion_disagreement_loss(student, teacher)
    assert loss.item() == pytest.approx(1 - (from_student + from_teacher) / 2)
    assert deep_inversion_disagreement_loss(student, student).item() == pytest.approx(1)


def test_batch_norm_gap_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # means (2, 0), variances (1, 0)
    loss = batch_norm_gap_loss([(features, torch.tensor([2.0, 3.0]), torch.tensor([1.0, 1.0]))])
    assert loss.item() == 3 + 1
    maps = features.view(2, 2, 1, 1).expand(2, 2, 3, 3)
    both = [(features, torch.zeros(2), torch.zeros(2)), (maps, torch.zeros(2), torch.zeros(2))]
    assert batch_norm_gap_loss(both).item() == pytest.approx(2 * (2 + 1))


def test_batches_that_match_exactly_have_a_finite_gradient() -> None:
    features = torch.tensor([[1.0], [3.0]], requires_grad=True)
    loss = batch_norm_gap_loss([(features, torch.tensor([2.0]), torch.tensor([1.0]))])
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros(2, 1))


def test_only_batch_norms_inside_the_block_are_read() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(8)).eval()
    images = torch.rand(3, 1, 2, 2)
    with batch_norm_inputs(network) as seen:
        network(images)
    network(images)
    assert [tuple(features.shape) for features, _, _ in seen] == [(3, 2, 2, 2), (3, 8)]
    assert all(mean is layer.running_mean for (_, mean, _), layer in zip(seen, (network[1], network[4]), strict=True))


def test_eval_mode_ends_with_the_block_and_leaves_no_trace() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    network[1].eval()
    with in_eval_mode(network):
        network(torch.rand(5, 2))
        assert not any(module.training for module in network.modules())
    assert [module.training for module in (network, *network)] == [True, True, False]
    assert network[0].num_batches_tracked == 0


def test_images_are_rolled_within_the_jitter() -> None:
    image = torch.arange(25.0).view(1, 1, 5, 5)
    random = torch.Generator().manual_seed(0)
    moved = {tuple(rolled(image, 1, random).flatten().tolist()) for _ in range(60)}
    expected = {tuple(image.roll((y, x), (2, 3)).flatten().tolist()) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert moved == expected
    assert torch.equal(rolled(image, 0, random), image)


# --- a batch of images begins, is kept, and goes --------------------------------------------


class Classifier(nn.Module):
    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1) if norm else nn.Identity()
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Outputs:
        return Outputs(self.head(self.norm(images).flatten(1)))


def made(**options: Any) -> DeepInversion:
    torch.manual_seed(3)
    width = ModelShapes((), 16, 3, mean=(0.4,), std=(0.2,))
    given = {"images": 4, "inversion_steps": 3, "bank": 2, "jitter": 0, **options}
    return DeepInversion(DeepInversion.Options(**given), Shapes(width, (width,), (), 3, 0, (1, 4, 4)))


def context(step: int, teacher: nn.Module, student: nn.Module, seen: list[Tensor]) -> StepContext:
    def run_student(images: Tensor) -> Outputs:
        if student.training:
            seen.append(images)
        return student(images)

    return StepContext(
        batch=None,
        student=None,
        teachers=(),
        peers=(),
        clock=Clock(0, 1, step, 100),
        networks={"student": run_student, "teacher": teacher},
        task_loss=lambda logits: pytest.fail("a data-free algorithm asked for labels"),
        random=lambda name: torch.Generator().manual_seed(step),
        device=torch.device("cpu"),
        batch_size=5,
        modules={"teacher": teacher, "student": student},
    )


def test_images_are_kept_when_finished_and_the_oldest_make_room() -> None:
    algorithm, seen = made(), []
    teacher, student = Classifier().eval().requires_grad_(False), Classifier()
    optimizer = torch.optim.Adam(algorithm.canvas.parameters(), lr=0.3)
    finished: list[Tensor] = []
    for step in range(10):
        ctx = context(step, teacher, student, seen)
        networks = []
        for update in algorithm.step(ctx):
            networks.append(update.network)
            optimizer.zero_grad()
            sum(update.loss.values()).backward()
            if update.network == "images":
                optimizer.step()
        assert networks == ["images", "student"]
        pool = algorithm.pixels(algorithm.kept(step)).flatten(1)
        assert all(any(torch.equal(image, other) for other in pool) for image in seen[-1].flatten(1))
        assert len(pool) == 4 * (1 if step < 6 else 2)
        last = algorithm.canvas.pixels.detach().clone()
        with torch.no_grad():
            algorithm.update(ctx)
        if (step + 1) % 3 == 0:
            inside = algorithm.pixels(last).clamp(0, 1)
            finished.append(inside)
            assert torch.equal(algorithm.canvas.pixels, algorithm.noise((step + 1) // 3))
    assert torch.allclose(algorithm.pixels(algorithm.bank), torch.cat([finished[2], finished[1]]), atol=1e-6)
    assert len({float(image.sum()) for image in algorithm.noise(1)} | {float(i.sum()) for i in algorithm.noise(2)}) == 8


def test_pixels_stay_in_range() -> None:
    algorithm = made()
    with torch.no_grad():
        algorithm.canvas.pixels.mul_(100)
        algorithm.update(context(0, Classifier(), Classifier(), []))
    pixels = algorithm.pixels(algorithm.canvas.pixels.detach())
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_images_reach_the_class_they_were_given() -> None:
    algorithm = made(images=30)
    torch.manual_seed(0)
    teacher = Classifier().eval().requires_grad_(False)
    optimizer = torch.optim.Adam(algorithm.canvas.parameters(), lr=0.1)
    for step in range(60):
        optimizer.zero_grad()
        algorithm.inversion_losses(context(step, teacher, Classifier(), []))["cross_entropy"].backward()
        optimizer.step()
    taken = teacher(algorithm.pixels(algorithm.canvas.pixels.detach())).logits.argmax(dim=1)
    assert taken.tolist() == [0, 1, 2] * 10


def test_the_student_is_left_out_unless_adaptive() -> None:
    calls = {}
    for adaptive in (True, False):
        algorithm, student = made(adaptive=adaptive), Classifier()
        terms = algorithm.inversion_losses(context(0, Classifier().eval(), student, []))
        calls[adaptive] = "disagreement" in terms
        assert student.norm.num_batches_tracked == 0
        assert student.training
    assert calls == {True: True, False: False}


def test_a_teacher_without_batch_norm_is_refused() -> None:
    with pytest.raises(NeedsError) as error:
        made().inversion_losses(context(0, Classifier(norm=False), Classifier(), []))
    assert str(error.value) == (
        "algorithm 'deep_inversion': reads what the teacher's BatchNorm layers remember, and the teacher has none; "
        "choose a teacher with BatchNorm, or another data-free algorithm"
    )


def test_finished_images_are_kept_where_steps_have_parts(tmp_path: Path) -> None:
    options = {"images": 4, "inversion_steps": 3, "bank": 2}
    changes = {"train": {"steps_per_epoch": 4, "accumulate": 2}}
    runner = testing.tiny_runner(DeepInversion, load_zoo(), tmp_path, changes, options)
    job, _ = runner.rehearse()
    run_steps(Engine(job), 3)
    algorithm: Any = job.algorithm
    after = algorithm.noise(1)
    assert torch.equal(algorithm.canvas.pixels, after)
    clipped = algorithm.pixels(after).clamp(0, 1)
    assert not torch.allclose(algorithm.pixels(algorithm.kept(3)), clipped, atol=0.1), "the next batch's noise was kept"


@pytest.mark.slow
def test_a_student_learns_a_task_without_a_sample_of_it(tmp_path: Path) -> None:
    teacher = {"name": testing.TINY, "args": testing.TEACHER, "train": {"epochs": 16, "steps_per_epoch": 12}}
    changes = {
        "models": {"teachers": [teacher]},
        "data": {"batch_size": 32, "options": {"samples": 128}},
        "train": {"epochs": 8, "steps_per_epoch": 25, "optimizer": {"lr": 0.05}},
    }
    options = {"images": 32, "inversion_steps": 40, "adaptive": False}
    results = testing.tiny_runner(DeepInversion, load_zoo(), tmp_path, changes, options).run()
    assert results["teacher"]["top1_percent"] > 90
    assert results["student"]["top1_percent"] > 50, "chance is 25"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", 1),
        ("inversion_steps", 0),
        ("inversion_lr", 0),
        ("bank", 0),
        ("jitter", -1),
        ("total_variation", "l3"),
    ],
)
def test_options_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        DeepInversion.Options(**{key: value})
