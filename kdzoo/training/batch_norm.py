"""BatchNorm over all processes of a run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdzoo.errors import DistributedError


class SumOverRanks(torch.autograd.Function):
    """The sum of each rank's tensor; a gradient of the sum is one of every summand."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def normalise(norm: nn.BatchNorm1d | nn.BatchNorm2d, input: Tensor) -> Tensor:
    """Normalise (N, C, ...) by the statistics of all ranks' batches together, and keep them as running ones."""
    values = input.float()
    others = [dim for dim in range(input.dim()) if dim != 1]
    count = torch.tensor(float(values.numel() // values.shape[1]), device=input.device)
    sums = SumOverRanks.apply(torch.cat([values.sum(others), count[None]]))
    total = sums[-1]
    mean = sums[:-1] / total
    shape = (-1, *[1] * (input.dim() - 2))
    centred = values - mean.view(shape)
    variance = SumOverRanks.apply(centred.square().sum(others)) / total  # the mean of squares would lose all digits
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            unbiased = variance * total / (total - 1).clamp(min=1)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
    normalised = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        normalised = normalised * norm.weight.view(shape) + norm.bias.view(shape)
    return normalised.to(input.dtype)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d over the global batch."""

    def forward(self, input: Tensor) -> Tensor:
        return normalise(self, input) if self.training else super().forward(input)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over the global batch."""

    def forward(self, input: Tensor) -> Tensor:
        return normalise(self, input) if self.training else super().forward(input)


class GlobalBatchNormAct2d(GlobalBatchNorm2d):
    """timm's BatchNormAct2d, which ends in a dropout and an activation, over the global batch."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


GLOBAL = {
    "BatchNorm1d": GlobalBatchNorm1d,
    "BatchNorm2d": GlobalBatchNorm2d,
    "BatchNormAct2d": GlobalBatchNormAct2d,
}


def use_global_batch_norm(module: nn.Module) -> None:
    """Turn every batch normalisation below ``module`` into one over the global batch; weights and names stay.

    Raises DistributedError for a kind that is unknown here: each process would learn statistics of its own.
    """
    for child in module.modules():
        if not isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) or type(child) in GLOBAL.values():
            continue
        kind = type(child).__name__
        if kind not in GLOBAL:
            raise DistributedError(
                f"{kind} cannot be normalised over several processes; known: {', '.join(GLOBAL)}. Run one process, or "
                "choose another model"
            )
        child.__class__ = GLOBAL[kind]  # type: ignore[assignment]
