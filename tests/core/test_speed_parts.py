"""What makes steps fast, and what must stay the same for it."""

from __future__ import annotations

import importlib.util
import itertools
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdzoo.contract.stage import ModelSpec, Stage
from kdzoo.data.inputs import Pixels
from kdzoo.errors import DeviceError
from kdzoo.models.building import build_network
from kdzoo.models.network import Network
from kdzoo.testing.tiny import STUDENT, TINY, tiny_runner
from kdzoo.training import device
from kdzoo.training.device import Precision, check_gradients, choose_precision, seed_generators
from kdzoo.training.engine import Engine
from kdzoo.training.job import Job
from kdzoo.zoo.loading import load_zoo

CPU = torch.device("cpu")
BF16 = Precision(CPU, torch.bfloat16, True)


def network(size: int) -> Network:
    """A ResNet that halves its maps five times."""
    half = (0.5,) * 3
    spec = ModelSpec(TINY, args=STUDENT)
    return build_network(spec, inputs=Pixels(3, (size, size), half, half), num_classes=4, seed=0)


def tiny_job(root: Path, changes: dict[str, Any] | None = None) -> Job:
    zoo = load_zoo()
    runner = tiny_runner(zoo.algorithm("kd"), zoo, root, changes)
    job, _ = runner.build.job(Stage("alone", runner.plan.student), None, runner.recipe.train)
    return job


# --- seeds ----------------------------------------------------------------------------------


def test_seeding_draws_what_torch_draws() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    seed_generators(CPU, 5)
    assert torch.equal(torch.rand(4), expected)


def test_seeding_leaves_no_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> list[str]:
        raise AssertionError("a stack was walked")

    monkeypatch.setattr(traceback, "format_stack", refuse)
    seed_generators(CPU, 5)


# --- training mode --------------------------------------------------------------------------


def test_every_step_trains_in_training_mode(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    engine = Engine(job)
    modes = []
    stem = next(module for module in job.student.modules() if isinstance(module, nn.BatchNorm2d))
    stem.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    for part in (stem, job.student):  # one part, then all of it
        part.eval()
        engine.run(lambda _: None, lambda: True)
    assert modes == [True, True]
    assert all(part.training for part in job.student.model.modules())


# --- checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize(("saving_s", "expected"), [(0.0, [4, 8, 12, 16]), (100.0, [4])])
def test_saves_at_the_ends_of_epochs_take_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving_s: float, expected: list[int]
) -> None:
    passed = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: time.perf_counter() + passed)
    saved = []

    def save(engine: Engine) -> None:
        nonlocal passed
        saved.append(engine.step)
        passed += saving_s

    assert Engine(tiny_job(tmp_path, {"train": {"epochs": 4}})).run(save, lambda: False)
    assert saved == expected


# --- bf16 -----------------------------------------------------------------------------------


def test_convolutions_whose_maps_are_too_small_are_known() -> None:
    assert network(64).overstrided == ()
    assert network(32).overstrided == ()
    assert network(16).overstrided == ("layer4.0.conv1",)  # of stride 2 on the 1 x 1 map that layer3 leaves


def test_auto_keeps_float32_where_bf16_gradients_are_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "bf16_instructions", lambda: ["avx512_bf16"])
    monkeypatch.setattr(device, "AUTOCAST_MIN_MACS", 0)
    assert choose_precision("auto", None, network(32), CPU) == BF16
    assert choose_precision("auto", None, network(16), CPU) == replace(BF16, dtype=None)


def test_bf16_is_refused_where_its_gradients_are_garbage(tmp_path: Path) -> None:
    check_gradients(BF16, network(32))
    check_gradients(replace(BF16, dtype=None), network(16))
    with pytest.raises(DeviceError) as caught:
        Engine(tiny_job(tmp_path, {"precision": "bf16"}))
    assert str(caught.value) == (
        "precision: bf16 gives model 'test_resnet' wrong gradients on the CPU: inputs of 16x16 leave layer4.0.conv1 a "
        "map smaller than its stride; choose precision: auto or fp32, or a larger size"
    )


@pytest.mark.parametrize(
    ("side", "stride"), [(s, by) for s, by in itertools.product((1, 2, 3, 4), (1, 2, 3)) if s >= by]
)
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_bf16_gradients_are_right_on_small_maps_otherwise(side: int, stride: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for inward, outward in itertools.product((8, 16, 24), (8, 24, 64)):
        images = torch.randn(8, inward, side, side, generator=generator)
        weight = torch.randn(outward, inward, kernel, kernel, generator=generator)
        wanted, got = (_gradient(images, weight, stride, dtype) for dtype in (torch.float32, torch.bfloat16))
        assert (got - wanted).abs().max() <= 0.05 * wanted.abs().max()


def _gradient(images: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    """Of the weights of one convolution, channels last, in a type, from inputs that bf16 holds exactly."""
    layout = torch.channels_last
    inputs = images.bfloat16().to(dtype, memory_format=layout)
    weight = weight.bfloat16().to(dtype, memory_format=layout).requires_grad_()
    torch.conv2d(inputs, weight, None, stride, weight.shape[2] // 2).sum().backward()
    assert weight.grad is not None
    return weight.grad.float()


# --- published numbers ----------------------------------------------------------------------


def test_the_tables_of_the_benchmarks_are_those_of_their_results() -> None:
    root = Path(__file__).parents[2]
    script = root / "benchmarks" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", script)
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (root / "benchmarks" / "README.md").read_text()
    assert tables.filled(text) == text, "run python benchmarks/tables.py"
    assert sorted(path.stem for path in (script.parent / "results").glob("*.json")) == sorted(tables.TABLES)
