"""The statistics of training data in a teacher's BatchNorm, and the distance of other images from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: The input of a BatchNorm (N, C, ...), and its stored mean (C,) and variance (C,).
Remembered = tuple[Tensor, Tensor, Tensor]


def batch_norm_gap_loss(layers: Iterable[Remembered]) -> Tensor:
    """Return the distance of a batch's mean and variance from the stored ones: Euclidean norms, summed over layers.

    Shapes: at least one of (features (N, C, ...), mean (C,), variance (C,)) -> scalar, in the features' units.
    """
    gaps = []
    for features, mean, variance in layers:
        others = [dim for dim in range(features.dim()) if dim != 1]
        own_variance, own_mean = torch.var_mean(features, dim=others, correction=0)
        gaps += [distance(own_variance, variance), distance(own_mean, mean)]
    return torch.stack(gaps).sum()


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Euclidean distance, with gradient 0 where both are equal."""
    return torch.linalg.vector_norm(one - other)


@contextmanager
def batch_norm_inputs(network: nn.Module) -> Iterator[list[Remembered]]:
    """Collect the input and the stored statistics of each BatchNorm that runs inside the block."""
    seen: list[Remembered] = []

    def keep(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append((inputs[0].float(), layer.running_mean, layer.running_var))

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
    layers: list[Any] = [module for module in network.modules() if isinstance(module, kinds)]
    hooks = [layer.register_forward_pre_hook(keep) for layer in layers if layer.running_mean is not None]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Run a network in eval mode inside the block, so its inputs do not change its BatchNorm."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
