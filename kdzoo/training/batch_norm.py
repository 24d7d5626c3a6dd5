"""BatchNorm over all processes of a run, by torch's own kernels for one process; on a GPU by its SyncBatchNorm."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdzoo.errors import DistributedError


def global_moments(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,) and biased variance (C,) in float32 of all ranks' inputs (N, C, ...), and the number of values.

    Each rank contributes moments around its own mean, in one collective: the mean of squares would lose all digits.
    """
    channels = input.shape[1]
    count = input.numel() // channels
    scratch = torch.zeros(2, channels, device=input.device)  # float32, which makes those of half precision float32 too
    mean, variance = torch.batch_norm_update_stats(input, scratch[0], scratch[1], 0.0)
    own = torch.cat([mean.float(), variance.float(), mean.new_tensor([count], dtype=torch.float32)])
    gathered = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(gathered, own)
    every = gathered.view(-1, len(own))
    means, variances, counts = every[:, :channels], every[:, channels:-1], every[:, -1:]
    total = counts.sum()
    shares = counts / total
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), total


class _Normalise(torch.autograd.Function):
    """Normalise by given moments; their own gradients are those of the moments of all ranks' inputs."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        mean, variance, total, eps = rest
        ctx.save_for_backward(input, weight, mean, variance, total)
        ctx.eps = eps
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, variance, total = ctx.saved_tensors
        # As if the moments were constants; the sums that their gradients need are those of weight and bias.
        gradient, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias]).float()
        dist.all_reduce(sums)
        deviation = (variance + ctx.eps).rsqrt()
        slope = -weight * deviation.square() * sums[0] / total
        shift = -weight * deviation * sums[1] / total - slope * mean
        constant = F.batch_norm(values, torch.zeros_like(mean), torch.ones_like(mean), slope, shift, False, 0.0, 0.0)
        return gradient.add_(constant), of_weight, of_bias, None, None, None, None


def normalise(norm: nn.BatchNorm1d | nn.BatchNorm2d, input: Tensor) -> Tensor:
    """Normalise (N, C, ...) by the statistics of all ranks' batches together, and keep them as running ones."""
    with torch.no_grad():
        mean, variance, total = global_moments(input)
        if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            unbiased = variance * total / (total - 1).clamp(min=1)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
    weight, bias = (norm.weight, norm.bias) if norm.affine else (torch.ones_like(mean), torch.zeros_like(mean))
    output: Tensor = _Normalise.apply(input, weight, bias, mean, variance, total, norm.eps)
    return output


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


class SyncBatchNormAct2d(nn.SyncBatchNorm):
    """timm's BatchNormAct2d over the global batch, on GPUs."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


#: What replaces each kind: on the CPU, and on a GPU, where torch has fused kernels.
GLOBAL = {
    "BatchNorm1d": (GlobalBatchNorm1d, nn.SyncBatchNorm),
    "BatchNorm2d": (GlobalBatchNorm2d, nn.SyncBatchNorm),
    "BatchNormAct2d": (GlobalBatchNormAct2d, SyncBatchNormAct2d),
}
REPLACEMENTS = tuple(kind for both in GLOBAL.values() for kind in both)


def use_global_batch_norm(module: nn.Module) -> None:
    """Turn every batch normalisation below ``module`` into one over the global batch; weights and names stay.

    The device of its weights decides which. Raises DistributedError for a kind that is unknown here: each process would
    learn statistics of its own.
    """
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and type(child) not in REPLACEMENTS:
            tensors = [*child.parameters(), *child.buffers()]
            turn_into_global(child, on_gpu=bool(tensors) and tensors[0].is_cuda)


def turn_into_global(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, on_gpu: bool) -> None:
    """Turn one batch normalisation into one over the global batch."""
    kind = type(norm).__name__
    if kind not in GLOBAL:
        raise DistributedError(
            f"{kind} cannot be normalised over several processes; known: {', '.join(GLOBAL)}. Run one process, choose "
            "another model, or train.batch_norm: local"
        )
    norm.__class__ = GLOBAL[kind][on_gpu]  # type: ignore[assignment]
    vars(norm)["process_group"] = None  # of SyncBatchNorm: all processes


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances of every batch normalisation below ``module``, to be averaged in place."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    return [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
