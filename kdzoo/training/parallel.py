"""Data-parallel training over several processes that torchrun started.

Gradients are averaged explicitly after each backward instead of by DistributedDataParallel, because a step may
update several networks in turn (docs/decisions/0005-gradient-averaging.md)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kdzoo.errors import DistributedError
from kdzoo.training.device import local_gpu

#: A rank that hangs or skips a batch is noticed after this long, not after torch's half hour.
COLLECTIVE_TIMEOUT = timedelta(minutes=5)

T = TypeVar("T")


class Ranks:
    """The processes of this run. A single process is rank 0 of 1, and no call communicates."""

    def __init__(self, device: str = "auto") -> None:
        """``device`` as the recipe names it. Raises DeviceError for more processes than there are GPUs for them."""
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._gpu: torch.device | None = None
        if self.world > 1:
            self._gpu = local_gpu(device, int(os.environ.get("LOCAL_RANK", "0")))
        if self.world > 1 and not dist.is_initialized():
            timeout = timedelta(seconds=float(os.environ.get("KDZOO_COLLECTIVE_TIMEOUT", COLLECTIVE_TIMEOUT.seconds)))
            dist.init_process_group("gloo" if self._gpu is None else "nccl", timeout=timeout)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the ranks, in one collective."""
        if self.world == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        reached = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        values = [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters]
        flat = torch.cat([*values, reached])
        dist.all_reduce(flat)
        offset = 0
        for parameter, ranks in zip(parameters, flat[-len(parameters) :].tolist(), strict=True):
            mean = flat[offset : offset + parameter.numel()].view_as(parameter) / self.world
            parameter.grad = mean if ranks else None  # reached on no rank: the optimizer skips it, as it would alone
            offset += parameter.numel()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; called at step boundaries only."""
        if self.world == 1:
            return flag
        value = torch.tensor(int(flag), device=self._gpu)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, values: Tensor) -> Tensor:
        """Average values that each rank computed on its share of the batch."""
        if self.world > 1:
            dist.all_reduce(values)
            values = values / self.world
        return values

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate each rank's share along the batch, in the order of the global batch."""
        if self.world == 1:
            return tensor
        shares = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(shares, tensor.contiguous())
        return torch.cat(shares)

    def collect(self, value: T) -> list[T]:
        """Return the JSON-like value of every rank, in the order of the ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agree(self, what: str, value: str) -> None:
        """Raise DistributedError where ranks have different values, e.g. of the recipe's hash."""
        values = self.collect(value)
        if len(set(values)) > 1:
            raise DistributedError(f"the {self.world} processes disagree on {what}: {', '.join(map(str, values))}")

    def broadcast(self, value: T) -> T:
        """Return rank 0's JSON-like value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise DistributedError where a collective fails because another process ended or hangs."""
        try:
            yield
        except RuntimeError as error:  # what gloo raises has no class of its own
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise DistributedError(
                "another process of this run ended or does not answer; its own error says why. Start all processes "
                f"again to continue from the last checkpoint\n  {str(error).splitlines()[0]}"
            ) from error

    def close(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
