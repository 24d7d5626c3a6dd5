"""What a plugin may change of the whole process while it is loaded, and giving it back.

torch's switches decide the bits of every later run, and so do the random generators and some environment variables.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class _Switch:
    """One setting of the process."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]
    same: Callable[[Any, Any], bool] = lambda one, other: bool(one == other)
    show: Callable[[Any], str] = str


def _torch_switches(torch: Any) -> list[_Switch]:
    def flushes() -> bool:
        return not bool((torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1).item())

    def deterministic() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    def put_deterministic(value: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])

    def default_dtype() -> str:
        return str(torch.get_default_dtype()).removeprefix("torch.")

    switches = [
        _Switch("torch's default dtype", default_dtype, lambda name: torch.set_default_dtype(getattr(torch, name))),
        _Switch(
            "torch's float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        ),
        _Switch("torch's flushing of denormals", flushes, torch.set_flush_denormal),
        _Switch("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        _Switch("torch's deterministic algorithms", deterministic, put_deterministic, show=lambda value: str(value[0])),
        _Switch("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
        _Switch("torch's anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        _Switch(
            "torch's default device",
            lambda: str(torch.get_default_device()),
            lambda device: torch.set_default_device(None),  # nothing of kdzoo sets one
        ),
        _Switch(
            "torch's random state", torch.get_rng_state, torch.set_rng_state, lambda a, b: bool((a == b).all()), _unsaid
        ),
    ]
    for backend in ("cudnn", "mkldnn"):
        place = getattr(torch.backends, backend)
        for flag in ("enabled", "benchmark", "deterministic", "allow_tf32"):
            if hasattr(place, flag):
                get, put = partial(getattr, place, flag), partial(setattr, place, flag)
                switches.append(_Switch(f"torch.backends.{backend}.{flag}", get, put))
    cuda = torch.backends.cuda
    for flag in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        get, put = partial(getattr, cuda.matmul, flag), partial(setattr, cuda.matmul, flag)
        switches.append(_Switch(f"torch.backends.cuda.matmul.{flag}", get, put))
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):  # of attention, on a CPU too
        get, put = getattr(cuda, f"{kernel}_sdp_enabled"), getattr(cuda, f"enable_{kernel}_sdp")
        switches.append(_Switch(f"torch.backends.cuda.{kernel}_sdp", get, put))
    return switches


def torch_settings() -> dict[str, str]:
    """Show torch's settings by name, without its random state: they decide bits."""
    import torch

    return {switch.name: switch.show(switch.get()) for switch in _torch_switches(torch) if switch.show is not _unsaid}


def _unsaid(value: Any) -> str:
    return ""


def _switches() -> list[_Switch]:
    switches = [_Switch("Python's random state", random.getstate, random.setstate, show=_unsaid)]
    if numpy := sys.modules.get("numpy"):
        switches.append(
            _Switch(
                "NumPy's random state", numpy.random.get_state, numpy.random.set_state, _same_numpy_state, show=_unsaid
            )
        )
    if torch := sys.modules.get("torch"):
        switches += _torch_switches(torch)
    return switches


def _same_numpy_state(one: Any, other: Any) -> bool:
    return all(bool((a == b) if not hasattr(a, "all") else (a == b).all()) for a, b in zip(one, other, strict=True))


@contextlib.contextmanager
def given_back(changed: list[str], environment: bool = True) -> Iterator[None]:
    """Give back what the body changes of the process; add to ``changed`` what that was, in words.

    torch's settings are watched if torch is imported before; ``environment``: the environment variables and the
    filters of warnings too.
    """
    switches = _switches()
    before = [(switch, switch.get()) for switch in switches]
    variables, filters = dict(os.environ), list(warnings.filters)
    try:
        yield
    finally:
        for switch, value in before:
            now = switch.get()
            if not switch.same(value, now):
                switch.put(value)
                words = f" from {switch.show(value)} to {switch.show(now)}" if switch.show(now) else ""
                changed.append(f"{switch.name}{words}")
        if environment:
            changed += _variables_given_back(variables)
            changed += _filters_given_back(filters)


def _variables_given_back(before: Mapping[str, str]) -> list[str]:
    names = sorted(name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name))
    for name in names:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    return [f"the environment variable {name}" for name in names]


def _filters_given_back(before: list[Any]) -> list[str]:
    """A filter of one module's warnings stays: libraries add such for themselves, and nobody else notices."""
    now = list(warnings.filters)
    kept = [one for one in now if one in before or one[3] is not None]
    if kept == now and all(one in now for one in before):
        return []
    own = [one for one in kept if one not in before]
    with warnings.catch_warnings():
        warnings.resetwarnings()  # drops what python remembers of the filters
    warnings.filters[:] = [*own, *before]  # type: ignore[index]
    return ["the filters of warnings"]
