"""The processes of a run and what they tell each other; gradient_averaging.py averages gradients over them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kdzoo.errors import DistributedError, shown
from kdzoo.training.device import local_gpu

#: A rank that hangs or skips a batch is noticed after this long, not after torch's half hour.
COLLECTIVE_TIMEOUT = timedelta(minutes=5)

T = TypeVar("T")


def collective_timeout() -> timedelta:
    """How long to wait for another rank. Raises DistributedError where KDZOO_COLLECTIVE_TIMEOUT is no time."""
    text = os.environ.get("KDZOO_COLLECTIVE_TIMEOUT", "")
    try:
        seconds = float(text) if text else COLLECTIVE_TIMEOUT.total_seconds()
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise DistributedError(f"KDZOO_COLLECTIVE_TIMEOUT: must be seconds, above 0 and up to 86400, got {shown(text)}")
    return timedelta(seconds=seconds)


class Ranks:
    """The processes of this run. A single process is rank 0 of 1, and no call communicates."""

    def __init__(self, device: str = "auto") -> None:
        """``device`` as the recipe names it. Raises DeviceError for more processes than there are GPUs for them."""
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._gpu: torch.device | None = None
        self._of_gradients: Any = None
        if self.world > 1:
            self._gpu = local_gpu(device, int(os.environ.get("LOCAL_RANK", "0")))
            with self.together():
                self._join()

    def _join(self) -> None:
        """Meet the other processes, unless this one has met them already."""
        timeout = collective_timeout()
        if not dist.is_initialized():
            dist.init_process_group("gloo" if self._gpu is None else "nccl", timeout=timeout)
        self._of_gradients = dist.new_group(timeout=timeout)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def start_sum(self, gradients: Tensor) -> Callable[[], Any]:
        """Start to replace gradients by their sum over the ranks; calling the result waits for it.

        The group is one of its own: on another rank other collectives may come between in another order.
        """
        work: Any = dist.all_reduce(gradients, group=self._of_gradients, async_op=True)
        return work.wait

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any rank, all in one collective; called at step boundaries only."""
        if self.world == 1:
            return list(flags)
        values = torch.tensor([int(flag) for flag in flags], device=self._gpu)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [bool(value) for value in values.tolist()]

    def mean(self, values: Tensor) -> Tensor:
        """Average values that each rank computed on its share of the batch."""
        return self.start_mean(values)()

    def start_mean(self, values: Tensor) -> Callable[[], Tensor]:
        """Start to average values that each rank computed; calling the result waits for them and returns them."""
        if self.world == 1:
            return lambda: values
        work: Any = dist.all_reduce(values, async_op=True)

        def received() -> Tensor:
            work.wait()
            return values / self.world

        return received

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
                f"again to continue from the last checkpoint\n  {str(error).splitlines()[0].partition(' This is ')[0]}"
            ) from error

    def close(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
