"""Gradients averaged over the processes of a run while backward still computes others.

The parameters of a network are split into buckets, last ones first, because backward reaches them first. A bucket is
sent as soon as all its gradients are there, and what is left when backward has ended follows. Every process sends
every bucket once and in the same order, whatever its own loss reached, so no process waits for one that has nothing to
send. docs/decisions/0005-gradient-averaging.md says why DistributedDataParallel does not do this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdzoo.errors import ContractError
from kdzoo.training.parallel import Ranks

#: Gradients that are sent together, at least one parameter's.
BUCKET_BYTES = 8 * 2**20


class GradientAveraging:
    """Averages the gradients of one network's parameters over the processes; a single process does nothing.

    Call ``begin`` before the backward pass that completes the gradients of an update, and ``finish`` after it.
    """

    def __init__(self, parameters: Iterable[Tensor], ranks: Ranks, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._ranks = ranks
        self._buckets: list[_Bucket] = []
        self._next: int | None = None  # the bucket to send next; None outside of a backward pass to watch
        if ranks.world == 1:
            return
        self._buckets = [_Bucket(group) for group in _grouped(parameters, bucket_bytes)]
        self._watched: set[int] = set()

    def begin(self) -> None:
        """Watch the next backward pass: of several that add up, the last one."""
        self._next = 0
        for bucket in self._buckets:
            training = [parameter for parameter in bucket.parameters if parameter.requires_grad]
            bucket.waits_for = set(map(id, training))
            for parameter in training:
                if id(parameter) not in self._watched:  # it may have been frozen until now
                    self._watched.add(id(parameter))
                    parameter.register_post_accumulate_grad_hook(partial(self._computed, bucket))

    def finish(self) -> None:
        """Send what was not sent yet, and replace each gradient by its mean over the processes.

        A parameter that no process reached keeps None, so that the optimizer skips it as it would in one process.
        """
        self._send(all_of_them=True)
        self._next = None
        for bucket in self._buckets:
            bucket.receive(self._ranks.world)

    def _computed(self, bucket: _Bucket, parameter: Tensor) -> None:
        if self._next is None:
            return
        if id(parameter) not in bucket.waits_for:
            raise ContractError(
                "a backward pass computed the gradient of one parameter twice, and several processes send it after the "
                "first time; checkpoint activations with use_reentrant=False, or run one process"
            )
        bucket.waits_for.discard(id(parameter))
        self._send()

    def _send(self, all_of_them: bool = False) -> None:
        while self._next is not None and self._next < len(self._buckets):
            bucket = self._buckets[self._next]
            if bucket.waits_for and not all_of_them:
                return
            bucket.send(self._ranks)
            self._next += 1


class _Bucket:
    """Parameters of one type on one device, and the gradients of those in one tensor while they are under way."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.waits_for: set[int] = set()
        self._sizes = [parameter.numel() for parameter in parameters]
        self._flat: Tensor = parameters[0].new_empty(0)
        self._views: list[Tensor] = []
        self._wait: Callable[[], Any] | None = None

    def send(self, ranks: Ranks) -> None:
        """Start to sum over the processes; after the gradients come flags that say which of them there are."""
        numbers = sum(self._sizes)
        self._flat = self.parameters[0].new_zeros(numbers + len(self.parameters))
        self._views, begin = [], 0
        for parameter, size in zip(self.parameters, self._sizes, strict=True):
            self._views.append(_like(parameter, self._flat, begin))
            begin += size
        reached = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for index in reached:
            self._views[index].copy_(self.parameters[index].grad)  # type: ignore[arg-type]
            self.parameters[index].grad = self._views[index]
        if len(reached) == len(self.parameters):
            self._flat[numbers:] = 1
        else:
            for index in reached:
                self._flat[numbers + index] = 1
        self._wait = ranks.start_sum(self._flat)

    def receive(self, world: int) -> None:
        """Wait for the sum and take the mean."""
        assert self._wait is not None, "finish() sends every bucket"
        self._wait()
        self._flat.div_(world)
        missing = [index for index, parameter in enumerate(self.parameters) if parameter.grad is None]
        if missing:  # otherwise the flags need not be copied from the device, as this process reached everything
            others = self._flat[sum(self._sizes) :].tolist()
            for index in missing:
                self.parameters[index].grad = self._views[index] if others[index] else None
        self._flat, self._views, self._wait = self._flat.new_empty(0), [], None


def _grouped(parameters: Iterable[Tensor], bucket_bytes: int) -> list[list[Tensor]]:
    """The parameters from the last to the first in groups of at most so many bytes, each of one type and device."""
    groups: list[list[Tensor]] = []
    room, kind = 0, None
    for parameter in reversed(list(parameters)):
        size = parameter.numel() * parameter.element_size()
        if not groups or size > room or kind != (parameter.dtype, parameter.device):
            groups.append([])
            room, kind = bucket_bytes, (parameter.dtype, parameter.device)
        groups[-1].append(parameter)
        room -= size
    return groups


def _like(parameter: Tensor, flat: Tensor, begin: int) -> Tensor:
    """A part of ``flat`` in the shape and memory format of a parameter, as the optimizer is fastest with that."""
    if parameter.is_contiguous() or not parameter.is_contiguous(memory_format=torch.channels_last):
        return flat[begin : begin + parameter.numel()].view(parameter.shape)
    return flat.as_strided(parameter.shape, parameter.stride(), begin)
