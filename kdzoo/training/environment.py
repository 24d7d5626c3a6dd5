"""The environment that a result belongs to: versions, processor, kernels and switches, all that its bits depend on."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.training.device import bf16_instructions, device_name
from kdzoo.training.parallel import Ranks
from kdzoo.version import __version__
from kdzoo.zoo.process_state import torch_settings

#: Environment variables by which libraries choose their kernels.
KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)


def environment(device: torch.device) -> dict[str, Any]:
    """Describe, as JSON, what the bits of a result depend on apart from the recipe, the data and the code."""
    settings = torch_settings()
    variables = {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ}
    return {
        "kdzoo": __version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "device": device_name(device),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "isa": " ".join([torch.backends.cpu.get_cpu_capability(), *bf16_instructions()]),
        "threads": torch.get_num_threads(),
        "variables": variables,
        "settings": settings,
        "kernels": _kernel_digest(tuple(settings.items())),
    }


def environment_of_all(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Describe the environment of a run: the first process's, and those of others that differ from it."""
    first, *others = ranks.collect(environment(device))
    different = [other for other in others if other != first]
    return {**first, "other_processes": different} if different else first


@cache
def cpu_model() -> str:
    """The processor's name as the system gives it; the machine type where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    arm = " ".join(fields[name] for name in ("CPU implementer", "CPU part", "CPU variant") if name in fields)
    return fields.get("model name") or arm or platform.processor() or platform.machine()


@cache
def _kernel_digest(settings: tuple[tuple[str, str], ...]) -> str:
    """``kernel_digest`` of this process, computed once for the same settings of torch."""
    return kernel_digest()


def kernel_digest() -> str:
    """Hash the bits that this processor's kernels give on a small fixed set of operations (16 hex digits).

    Two machines that share a store compute alike, as far as this shows, or have different keys.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-1000, 1001, shape, generator=generator).to(torch.float32) / 997

    images, rows, weight = draw(8, 16, 14, 14), draw(33, 160), draw(96, 160)
    kernels, heads = draw(24, 16, 3, 3).requires_grad_(), draw(2, 2, 17, 16)
    found: list[Tensor] = []
    with torch.enable_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            maps = F.conv2d(images.contiguous(memory_format=layout), kernels, stride=2, padding=1)
            found += [maps, *torch.autograd.grad(maps.square().sum(), kernels)]
    half = images.bfloat16().contiguous(memory_format=torch.channels_last)
    found += [
        F.conv2d(images, draw(16, 1, 3, 3), groups=16, padding=1),
        F.conv2d(half, kernels.detach().bfloat16()),
        F.linear(rows, weight),
        F.linear(rows.bfloat16(), weight.bfloat16()),
        F.scaled_dot_product_attention(heads, heads, heads),
        F.batch_norm(images, None, None, training=True),
        F.layer_norm(rows, (160,)),
        *(rows.softmax(1), rows.log_softmax(1), rows.exp(), rows.tanh(), F.gelu(rows), rows.sum()),
    ]
    digest = hashlib.sha256()
    for tensor in found:
        digest.update(tensor.detach().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
