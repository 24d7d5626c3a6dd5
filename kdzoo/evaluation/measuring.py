"""Run a network over a split, and time networks and exported files side by side."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from kdzoo.contract import classification as metrics
from kdzoo.contract.step import Batch
from kdzoo.errors import DataError
from kdzoo.models.network import Network, evaluating
from kdzoo.models.weights import count_parameters


def predict(
    network: nn.Module,
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    at_once: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, K) in float32 and targets (N,) of all batches, in eval mode and without gradients.

    ``network`` returns ``Outputs``; afterwards its training mode is what it was. ``autocast`` makes the context
    of each forward pass, e.g. ``Precision.autocast``. ``at_once`` is the most samples of one forward pass; None: a
    batch's. Raises DataError when there is no batch.
    """
    logits, targets = [], []
    with evaluating(network), torch.no_grad():
        for batch in batches:
            for inputs in batch.inputs.split(at_once or len(batch.inputs)):
                with autocast():
                    outputs = network(inputs)
                logits.append(outputs.logits.float().cpu().numpy())
            targets.append(batch.targets.cpu().numpy())
    if not logits:
        raise DataError("nothing to evaluate: the split has no samples")
    return np.concatenate(logits), np.concatenate(targets)


def network_entry(
    label: str,
    model: str,
    logits: np.ndarray,
    targets: np.ndarray,
    teacher_logits: np.ndarray | None,
    network: Network,
    size_bytes: int,
) -> dict[str, Any]:
    """Return a network's entry of results.json; see ``metrics.result_entry`` for its units."""
    return metrics.result_entry(
        label=label,
        model=model,
        logits=logits,
        targets=targets,
        teacher_logits=teacher_logits,
        parameters=count_parameters(network.model),
        size_bytes=size_bytes,
        macs=network.macs,
    )


def timed_forward(model: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    """One forward pass as ``measure_latency`` takes it: it does not return before its work is done."""
    synchronize = torch.get_device_module(inputs.device).synchronize  # on the CPU it does nothing

    def forward() -> None:
        with torch.inference_mode():
            model(inputs)
        synchronize()

    return forward


def measure_latency(
    candidates: Mapping[str, Callable[[], Any]], repeats: int = 50, warmup: int = 5
) -> dict[str, dict[str, float]]:
    """Time calls in milliseconds: ``{label: {"p50": ..., "p95": ...}}``.

    Each round calls every candidate once, in turn, so that whatever else the machine does in the meantime slows
    all of them alike. A candidate must not return before its work is done (on CUDA: synchronise).
    """
    assert repeats > 0, "latency of no calls"
    for _ in range(warmup):
        for call in candidates.values():
            call()
    spent: dict[str, list[int]] = {label: [] for label in candidates}
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle would be charged to whoever runs then
    try:
        for _ in range(repeats):
            for label, call in candidates.items():
                start = time.perf_counter_ns()
                call()
                spent[label].append(time.perf_counter_ns() - start)
    finally:
        if collecting:
            gc.enable()
    return {label: {f"p{q}": float(np.percentile(times, q)) / 1e6 for q in (50, 95)} for label, times in spent.items()}
