"""Trained networks of which each process holds a part, by torch's ``fully_shard``; what is saved is whole.

A block is made whole for as long as it is computed, forward and backward, and its gradients are averaged on the way
back. Parameters, gradients and the optimizer's state take a share of the memory in each process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

#: Methods besides ``forward`` by which a network is run; see ``Network.forward``.
METHODS = ("forward_intermediates", "forward_features", "forward_head")
#: A part of a network with so many parameters is made whole by itself; all smaller ones together.
BLOCK_PARAMETERS = 1_000_000


def shard(model: nn.Module) -> None:
    """Leave each process a part of every parameter of ``model``; all processes call it with the same weights."""
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in METHODS:
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The large elements of sequences and lists in a network: what its forward calls one after the other."""
    for child in model.children():
        for part in child if isinstance(child, nn.Sequential | nn.ModuleList) else (child,):
            whole = not isinstance(part, nn.Sequential | nn.ModuleList) and part is not child
            if whole and sum(parameter.numel() for parameter in part.parameters()) >= BLOCK_PARAMETERS:
                yield part
            else:
                yield from blocks(part)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with every sharded one put together; all processes call it where one is sharded."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in tensors.items()}


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, as ``like`` is sharded; ``value`` itself where that is not."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def shard_slots(optimizer: torch.optim.Optimizer) -> None:
    """Leave this process its part of the whole tensors that an optimizer was restored with, e.g. of momentum."""
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[name] = part_like(value, parameter)


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def clipped_norm(parameters: Sequence[Tensor], limit: float) -> float:
    """The norm of all gradients together, which are then scaled down to ``limit`` where it is larger.

    Where one is sharded, all processes call it with gradients of the same parameters.
    """
    plain = [p for p in parameters if p.grad is not None and not is_sharded(p)]
    parts = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
    norm = torch.nn.utils.get_total_norm([p.grad for p in plain if p.grad is not None]) if plain else torch.zeros(())
    if parts:
        squares = torch.nn.utils.get_total_norm(parts).square()
        dist.all_reduce(squares)
        norm = (squares + norm.to(squares.device).square()).sqrt()
    number = float(norm)
    if limit < number < math.inf:
        torch.nn.utils.clip_grads_with_norm_(plain, limit, torch.tensor(number))
        for part in parts:
            part.mul_(limit / (number + 1e-6))  # as torch does
    return number
