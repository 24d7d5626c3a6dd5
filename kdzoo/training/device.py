"""Devices, precision and threads. No other module names a device but the CPU."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdzoo.errors import DeviceError

if TYPE_CHECKING:
    from kdzoo.models.network import Network

#: Below this cost of one sample the casts of autocast take longer than they save.
AUTOCAST_MIN_MACS = 2_000_000


def pick_device(name: str) -> torch.device:
    """Return the device a recipe names; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises DeviceError for a device that this machine lacks: never a quiet CPU run.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device: unknown device '{name}'; known: auto, cpu, cuda, cuda:<number>, mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device: '{name}' asked for, but torch sees no CUDA device; use 'cpu' or 'auto'")
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        if index >= torch.cuda.device_count():
            raise DeviceError(f"device: '{name}' asked for, but there are {torch.cuda.device_count()} CUDA devices")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device: 'mps' asked for, but torch sees no MPS device; use 'cpu' or 'auto'")
    return device


def set_threads(threads: int | None) -> int:
    """Fix the CPU thread count, which is part of what makes two runs bit-identical; return it."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators that a network on ``device`` draws from, e.g. for dropout.

    ``torch.manual_seed`` does the same, but records a stack trace for every accelerator that is not in use, which takes
    a third of a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@dataclass(frozen=True)
class Precision:
    """How one network runs: the autocast type, or None for float32, and its memory format."""

    device: torch.device
    dtype: torch.dtype | None
    channels_last: bool

    @property
    def name(self) -> str:
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    @property
    def repeats(self) -> bool:
        """Whether a forward pass on the same batch gives the same bits; a GPU may choose another kernel."""
        return self.device.type == "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device in this memory format."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module


def choose_precision(wanted: str, channels_last: bool | None, network: Network, device: torch.device) -> Precision:
    """Choose how one network runs. ``auto`` goes by the kind of network, so it is the same on every run of a machine.

    Measured on the CPU (benchmarks/step_time.py, benchmarks/text_speed.py): bf16 with channels_last pays for plain
    convnets and bf16 for transformers that read text; depthwise convolutions train slower in bf16, and networks of a
    few thousand parameters lose to the casts. A network that bf16 gives wrong gradients stays in float32.
    """
    text = not network.inputs.has_channels
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    plain = bool(convolutions) and all(module.groups == 1 for module in convolutions)
    large = network.macs >= AUTOCAST_MIN_MACS
    if text:
        channels_last = False  # rows of ids have no channels
    elif channels_last is None:  # also wherever bf16 is asked for: it is what bf16 convolutions are made for
        channels_last = bool(convolutions) and (large or wanted == "bf16") and device.type != "mps"
    if wanted != "auto":
        return Precision(device, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted], channels_last)
    fast_bf16 = {
        "cpu": cpu_has_bf16() and (plain or text) and not network.overstrided,
        "cuda": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
    }.get(device.type, False)
    return Precision(device, torch.bfloat16 if fast_bf16 and large else None, channels_last)


def check_gradients(precision: Precision, network: Network) -> None:
    """Raise DeviceError where a network cannot be trained in this precision, because its gradients would be garbage.

    oneDNN (of torch 2.15) returns uninitialised memory in the bf16 gradient of the weights of a convolution whose
    input map is smaller than its stride.
    """
    if precision.device.type == "cpu" and precision.dtype is torch.bfloat16 and network.overstrided:
        raise DeviceError(
            f"precision: bf16 gives model '{network.spec.name}' wrong gradients on the CPU: inputs of "
            f"{network.size[0]}x{network.size[1]} leave {network.overstrided[0]} a map smaller than its stride; choose "
            "precision: auto or fp32, or a larger size"
        )


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively."""
    return bool(bf16_instructions())


def bf16_instructions() -> list[str]:
    """Names of this CPU's instruction sets for bfloat16; results differ between them in the last bits."""
    query = getattr(torch.cpu, "get_capabilities", None)  # torch 2.12 and later
    capabilities = query() if query is not None else {}
    return [name for name in ("avx512_bf16", "amx_bf16", "arm_bf16") if capabilities.get(name)]


def takes_pinned_memory(device: torch.device) -> bool:
    """Whether copies to a device are faster from pages that the system may not move."""
    return device.type == "cuda"


def device_name(device: torch.device) -> str:
    """The GPU's name; elsewhere the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def local_gpu(device: str, local_rank: int) -> torch.device | None:
    """The GPU of process ``local_rank`` of this machine, now its current one; None where a run of ``device`` uses none.

    Raises DeviceError where the processes cannot have a GPU each.
    """
    if device == "mps" or (device == "auto" and not torch.cuda.is_available() and torch.backends.mps.is_available()):
        raise DeviceError("device: several processes cannot train on MPS, which has one GPU; use 'cpu', or one process")
    if not torch.cuda.is_available() or device == "cpu":
        return None
    if ":" in device:
        raise DeviceError(f"device: '{device}' is one GPU, and each process needs its own; use 'cuda', or one process")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise DeviceError(
            f"device: process {local_rank} of this machine has no GPU of its own ({count} found); start fewer "
            "processes, or use 'cpu'"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
