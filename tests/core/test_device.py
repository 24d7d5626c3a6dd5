"""Devices are never chosen quietly, precision by rules, and the environment is written down."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Pixels
from kdzoo.errors import DeviceError
from kdzoo.models.building import build_network
from kdzoo.models.network import Network
from kdzoo.training import device as devices
from kdzoo.training.device import (
    Precision,
    bf16_instructions,
    check_gradients,
    choose_precision,
    cpu_has_bf16,
    local_gpu,
    pick_device,
    seed_generators,
    set_threads,
    takes_pinned_memory,
)

CPU = torch.device("cpu")


# --- devices --------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with so many CUDA devices, and perhaps MPS."""

    def has(cuda: int = 0, mps: bool = False, local_rank: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if local_rank is not None:
            monkeypatch.setenv("LOCAL_RANK", local_rank)

    return has


def test_auto_takes_what_is_there(machine: Any) -> None:
    machine()
    assert pick_device("auto") == CPU
    machine(mps=True)
    assert pick_device("auto") == torch.device("mps")
    machine(cuda=2, mps=True)
    assert pick_device("auto") == torch.device("cuda", 0)
    machine(cuda=2, local_rank="1")
    assert pick_device("auto") == torch.device("cuda", 1)


def test_a_named_device_is_taken(machine: Any) -> None:
    machine(cuda=2, local_rank="1")
    assert [pick_device(name) for name in ("cpu", "cuda", "cuda:0")] == [
        CPU,
        torch.device("cuda", 1),
        torch.device("cuda", 0),
    ]
    machine(mps=True)
    assert pick_device("mps") == torch.device("mps")


@pytest.mark.parametrize(
    ("name", "cuda", "text"),
    [
        ("gpu", 0, "device: unknown device 'gpu'; known: auto, cpu, cuda, cuda:<number>, mps"),
        ("cuda", 0, "device: 'cuda' asked for, but torch sees no CUDA device; use 'cpu' or 'auto'"),
        ("cuda:3", 0, "device: 'cuda:3' asked for, but torch sees no CUDA device; use 'cpu' or 'auto'"),
        ("cuda:3", 2, "device: 'cuda:3' asked for, but there are 2 CUDA devices"),
        ("mps", 0, "device: 'mps' asked for, but torch sees no MPS device; use 'cpu' or 'auto'"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(name: str, cuda: int, text: str, machine: Any) -> None:
    machine(cuda=cuda)
    with pytest.raises(DeviceError) as caught:
        pick_device(name)
    assert str(caught.value) == text


# --- precision ------------------------------------------------------------------------------------


@functools.cache
def network(name: str, size: int = 64, **args: Any) -> Network:
    return build_network(
        ModelSpec(name, "train", args),
        inputs=Pixels(3, (size, size), (0.5,) * 3, (0.25,) * 3),
        num_classes=4,
        seed=0,
    )


FAMILIES = {
    "plain convnet": network("test_resnet"),
    "depthwise": network("test_efficientnet"),
    "transformer": network("test_vit"),
    "tiny convnet": network("test_resnet", 16),
}


@pytest.mark.parametrize(
    ("family", "dtype", "channels_last"),
    [
        ("plain convnet", torch.bfloat16, True),
        ("depthwise", None, True),
        ("transformer", torch.bfloat16, True),
        ("tiny convnet", None, False),
    ],
)
def test_auto_on_a_cpu_with_bf16(
    family: str, dtype: torch.dtype | None, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    assert choose_precision("auto", None, FAMILIES[family], CPU) == Precision(CPU, dtype, channels_last)


def test_auto_without_bf16_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: False)
    assert {choose_precision("auto", None, family, CPU).name for family in FAMILIES.values()} == {"fp32"}


@pytest.mark.parametrize("supported", [True, False])
def test_auto_on_cuda_is_bf16_for_all_but_the_tiny(
    supported: bool, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(cuda=1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    chosen = {name: choose_precision("auto", None, family, torch.device("cuda")) for name, family in FAMILIES.items()}
    assert [name for name, precision in chosen.items() if precision.name == "bf16"] == (
        ["plain convnet", "depthwise", "transformer"] if supported else []
    )


def test_auto_on_mps_is_fp32_in_the_usual_layout() -> None:
    mps = torch.device("mps")
    assert {choose_precision("auto", None, family, mps) for family in FAMILIES.values()} == {
        Precision(mps, None, False)
    }


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_taken_for_every_family(name: str) -> None:
    for family in FAMILIES.values():
        assert choose_precision(name, None, family, CPU).name == name


def test_the_layout_may_be_fixed() -> None:
    for family in FAMILIES.values():
        for wanted in (True, False):
            assert choose_precision("auto", wanted, family, CPU).channels_last is wanted
    assert choose_precision("bf16", None, FAMILIES["tiny convnet"], CPU).channels_last
    assert not choose_precision("fp32", None, FAMILIES["tiny convnet"], CPU).channels_last


def test_a_network_whose_bf16_gradients_are_wrong_stays_in_fp32_and_is_refused_in_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    shrunk = network("test_resnet", 16)
    assert shrunk.overstrided
    assert not FAMILIES["plain convnet"].overstrided
    check_gradients(choose_precision("auto", None, shrunk, CPU), shrunk)
    check_gradients(choose_precision("bf16", None, FAMILIES["plain convnet"], CPU), FAMILIES["plain convnet"])
    with pytest.raises(DeviceError) as caught:
        check_gradients(choose_precision("bf16", None, shrunk, CPU), shrunk)
    assert str(caught.value) == (
        f"precision: bf16 gives model 'test_resnet' wrong gradients on the CPU: inputs of 16x16 leave "
        f"{shrunk.overstrided[0]} a map smaller than its stride; choose precision: auto or fp32, or a larger size"
    )


def test_a_precision_places_and_casts() -> None:
    layer = nn.Conv2d(3, 4, 3)
    inputs = torch.rand(2, 3, 8, 8)
    assert isinstance(Precision(CPU, None, False).autocast(), nullcontext)
    half = Precision(CPU, torch.bfloat16, True)
    assert half.place(layer) is layer
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    with half.autocast():
        assert layer(inputs).dtype == torch.bfloat16


# --- threads, instructions, seeds ------------------------------------------------------------------


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [local_gpu("auto", rank) for rank in (0, 1)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert current == [0, 1]
    assert local_gpu("cpu", 7) is None
    with pytest.raises(DeviceError) as caught:
        local_gpu("cuda", 2)
    assert str(caught.value) == (
        "device: process 2 of this machine has no GPU of its own (2 found); start fewer processes, or use 'cpu'"
    )
    with pytest.raises(DeviceError) as caught:
        local_gpu("cuda:1", 0)
    assert str(caught.value) == (
        "device: 'cuda:1' is one GPU, and each process needs its own; use 'cuda', or one process"
    )


@pytest.mark.parametrize("device", ["auto", "mps"])
def test_several_processes_do_not_share_mps(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(DeviceError, match="several processes cannot train on MPS"):
        local_gpu(device, 0)


def test_pinned_memory_is_for_gpus() -> None:
    assert takes_pinned_memory(torch.device("cuda", 1))
    assert not any(map(takes_pinned_memory, map(torch.device, ("cpu", "mps"))))


def test_threads_are_fixed_on_request() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(None) == before
        assert set_threads(2) == 2 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({}, []),
        ({"avx512_bf16": True, "amx_bf16": False}, ["avx512_bf16"]),
        ({"amx_bf16": True, "avx512_bf16": True}, ["avx512_bf16", "amx_bf16"]),
        ({"arm_bf16": True}, ["arm_bf16"]),
    ],
)
def test_bf16_instructions_are_recognised(
    capabilities: dict[str, bool], found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(get_capabilities=lambda: capabilities))
    assert (bf16_instructions(), cpu_has_bf16()) == (found, bool(found))
    monkeypatch.setattr(torch, "cpu", SimpleNamespace())  # as before torch 2.12
    assert bf16_instructions() == []


def test_seeding_repeats_what_layers_draw() -> None:
    drawn = []
    for _ in range(2):
        seed_generators(CPU, 7)
        drawn.append(nn.functional.dropout(torch.ones(64), 0.5))
    assert torch.equal(*drawn)
    seed_generators(CPU, 8)
    assert not torch.equal(drawn[0], nn.functional.dropout(torch.ones(64), 0.5))
