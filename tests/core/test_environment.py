"""The environment holds what bits depend on, so that two that compute differently never share a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch

import kdzoo
from kdzoo.training import environment as environments
from kdzoo.training.device import bf16_instructions, device_name
from kdzoo.training.environment import environment, environment_of_all, kernel_digest
from kdzoo.training.parallel import Ranks

CPU = torch.device("cpu")


def test_the_environment_holds_versions_processor_and_kernels() -> None:
    found = environment(CPU)
    assert found == json.loads(json.dumps(found))
    expected = {
        "kdzoo": kdzoo.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "device": "cpu",
        "isa": " ".join([torch.backends.cpu.get_cpu_capability(), *bf16_instructions()]),
        "threads": torch.get_num_threads(),
        "kernels": kernel_digest(),
    }
    assert {name: found[name] for name in expected} == expected


def test_the_environment_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert device_name(torch.device("cuda", 0)) == "a GPU"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel name\t: A CPU: 3 GHz\n\nprocessor\t: 1\nmodel name\t: Another\n", "A CPU: 3 GHz"),
        ("CPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\n", "0x41 0xd0c 0x3"),
        ("", "what platform says"),
        (None, "what platform says"),
    ],
    ids=["x86", "arm", "empty", "no such file"],
)
def test_the_processor_is_named(
    content: str | None, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(environments, "Path", lambda place: file)
    monkeypatch.setattr(environments.platform, "processor", lambda: "what platform says")
    assert environments.cpu_model.__wrapped__() == name


#: Switches of torch: how to turn one, and how to turn it back.
SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "denormals": (lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "default dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "attention": (
        lambda: torch.backends.cuda.enable_flash_sdp(False),
        lambda: torch.backends.cuda.enable_flash_sdp(True),
    ),
    "cudnn": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: setattr(torch.backends.cudnn, "benchmark", False),
    ),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_environment_holds_the_switches_of_torch(switch: str) -> None:
    on, off = SWITCHES[switch]
    before = environment(CPU)
    try:
        on()
        assert environment(CPU)["settings"] != before["settings"]
    finally:
        off()
    assert environment(CPU) == before


def test_other_processes_are_in_the_environment_where_theirs_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = {"cpu": "one"}, {"cpu": "other"}
    monkeypatch.setattr(environments, "environment", lambda device: one)
    assert environment_of_all(CPU, Ranks()) == one
    for all_of_them, expected in (
        ([one, one], one),
        ([one, other], {"cpu": "one", "other_processes": [other]}),
        ([other, one], {"cpu": "other", "other_processes": [one]}),
    ):
        ranks: Any = SimpleNamespace(collect=lambda own, values=all_of_them: values)
        assert environment_of_all(CPU, ranks) == expected


def test_other_kernels_are_another_environment() -> None:
    """In a process that may not use this processor's instructions, or may use more than this one."""
    variables = {name: value for name, value in os.environ.items() if name not in environments.KERNEL_VARIABLES}
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        variables |= {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    program = (
        "import json, torch; from kdzoo.training.environment import environment; "
        f"torch.set_num_threads({torch.get_num_threads()}); print(json.dumps(environment(torch.device('cpu'))))"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    other, ours = json.loads(ended.stdout), environment(CPU)
    assert other["variables"] == {name: variables[name] for name in environments.KERNEL_VARIABLES if name in variables}
    assert other["cpu"] == ours["cpu"]
    if other["isa"] == ours["isa"]:
        pytest.skip("this processor has one kind of kernels")
    assert other["kernels"] != ours["kernels"]
