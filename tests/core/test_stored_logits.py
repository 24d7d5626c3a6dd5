"""Logits of the test split: the plain network's, found again by all that decides them, and never believed blindly."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_algorithms import Alone

from kdzoo.errors import ContractError, CorruptError
from kdzoo.evaluation.measuring import predict
from kdzoo.models.network import Network
from kdzoo.run import stored_logits
from kdzoo.run.runner import Runner
from kdzoo.run.stored_logits import AT_ONCE, StoredLogits
from kdzoo.storage.atomic import write_tensors
from kdzoo.testing.tiny import tiny_runner
from kdzoo.zoo.loading import load_zoo

SAMPLES = 48  # of the test split: three forward passes in two batches


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Runner]:
    root = tmp_path_factory.mktemp("logits")

    def runner(**data: Any) -> Runner:
        changed = {"data": {"options": {"samples": 2 * SAMPLES, **data.pop("options", {})}, **data}}
        made = tiny_runner(Alone, load_zoo("none"), root, changed)
        made.data.test_gate.open()
        return made

    return runner


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of ``predict`` answered."""
    counts: list[int] = []

    def counting(*args: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        logits, targets = predict(*args, **options)
        counts.append(len(targets))
        return logits, targets

    monkeypatch.setattr(stored_logits, "predict", counting)
    return counts


def network_of(runner: Runner, salt: str = "", **changes: Any) -> Network:
    """An untrained student with statistics of BatchNorm that folding must not lose."""
    network = runner.build.network(replace(runner.plan.student, **changes), salt)
    for name, buffer in network.model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(1)) + 0.5)
    return network


def test_they_are_the_plain_networks(shared: Callable[..., Runner]) -> None:
    runner = shared()
    network = network_of(runner)
    logits, targets = StoredLogits(runner.build).of(network)
    plain, expected = predict(network, runner.loader.eval_batches("test", 32))
    np.testing.assert_array_equal(targets, expected)
    np.testing.assert_allclose(logits, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
    np.testing.assert_array_equal(logits.argmax(1), plain.argmax(1))


def test_the_next_run_answers_a_few_samples_again_and_no_more(
    shared: Callable[..., Runner], answered: list[int]
) -> None:
    first, _ = StoredLogits(shared().build).of(network_of(shared(), "kept"))
    assert answered == [SAMPLES]
    again = shared()
    again.loader._format = torch.channels_last  # another student's layout
    second, targets = StoredLogits(again.build).of(network_of(again, "kept"))
    assert answered == [SAMPLES, AT_ONCE]
    assert first.tobytes() == second.tobytes()
    assert len(targets) == SAMPLES


@pytest.mark.parametrize(
    ("network", "data"),
    [
        ({"salt": "others"}, {}),
        ({"mean": (0.4, 0.5, 0.5)}, {}),
        ({"size": 24}, {}),
        ({}, {"options": {"seed": 1}}),
        ({}, {"eval_batch_size": 16}),
    ],
    ids=["weights", "normalisation", "size", "test split", "batch size"],
)
def test_they_are_computed_anew_for_other(
    network: dict[str, Any], data: dict[str, Any], shared: Callable[..., Runner], answered: list[int]
) -> None:
    known = shared()
    StoredLogits(known.build).of(network_of(known))
    answered.clear()
    runner = shared(**data)
    StoredLogits(runner.build).of(network_of(runner, **network))
    assert answered == [SAMPLES]


def test_no_answer_leaves_the_store_before_selection_has_closed(tmp_path: Path) -> None:
    runner = tiny_runner(Alone, load_zoo("none"), tmp_path)
    with pytest.raises(ContractError, match="the test split was asked for before selection closed"):
        StoredLogits(runner.build).of(network_of(runner))
    with pytest.raises(ContractError, match="the test split was asked for before selection closed"):
        _ = runner.data.test_fingerprint


def entry(runner: Runner) -> Path:
    (found,) = (runner.store.root / "test_logits").iterdir()
    return found


def test_damaged_and_wrong_answers_are_noticed(tmp_path: Path) -> None:
    runner = tiny_runner(Alone, load_zoo("none"), tmp_path)
    runner.data.test_gate.open()
    network = network_of(runner)
    logits, _ = StoredLogits(runner.build).of(network)
    place = entry(runner)
    content = bytearray((place / "logits.safetensors").read_bytes())
    content[-3] ^= 1
    (place / "logits.safetensors").write_bytes(content)
    with pytest.raises(CorruptError, match=re.escape(f"delete {place} and run again")):
        StoredLogits(runner.build).of(network)
    for path in (*place.iterdir(), place):
        path.unlink() if path.is_file() else path.rmdir()
    wrong = {"logits": torch.from_numpy(np.roll(logits, 1, axis=1).copy())}
    runner.store.publish("test_logits", place.name, lambda folder: write(folder, wrong))
    with pytest.raises(CorruptError) as error:
        StoredLogits(runner.build).of(network)
    assert str(error.value) == (
        f"{place}: the logits in it differ from those of 'test_resnet'; delete the folder and run again"
    )


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_tensors(folder / "logits.safetensors", tensors)


def test_a_disk_that_is_full_costs_nothing_but_the_next_run(
    shared: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = shared()
    monkeypatch.setattr("kdzoo.storage.atomic.os.fsync", full)
    logits, _ = StoredLogits(runner.build).of(network_of(runner, "full"))
    assert len(logits) == SAMPLES


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")
