"""Graphs that were exported and prepared once in this process, kept without weights for the next model of one build.

Exporting takes seconds, and a run prepares one architecture again and again: for the rehearsal, for each stage, and to
load what was stored.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn

#: How many graphs are kept; the one that was not asked for the longest goes first.
MOST = 8

_kept: OrderedDict[Any, fx.GraphModule] = OrderedDict()


class UnknownValue(Exception):
    """Raised for an attribute that a graph may depend on and that cannot be compared."""


def prepared_graph(model: nn.Module, example: Tensor, prepare: Callable[[], fx.GraphModule]) -> fx.GraphModule:
    """Return what ``prepare()`` makes of ``model``: from a kept graph where one of the same build is there.

    The graph gets the parameters and buffers of ``model`` themselves, as one from ``prepare()`` does, and its other
    state (ranges, switches) is that of a graph nobody has used.
    """
    try:
        key = structure(model, example)
    except UnknownValue:
        return prepare()
    own = _tensors(model)
    kept = _kept.get(key)
    if kept is None:
        graph = prepare()
        memo = {id(value): _empty(value) for name, value in _tensors(graph).items() if name in own}
        _kept[key] = copy.deepcopy(graph, memo)
        while len(_kept) > MOST:
            _kept.popitem(last=False)
        return graph
    _kept.move_to_end(key)
    return copy.deepcopy(kept, {id(value): own[name] for name, value in _tensors(kept).items() if name in own})


def structure(model: nn.Module, example: Tensor) -> tuple[Any, ...]:
    """Everything but the values of weights that decides the graph of a model. Raises UnknownValue."""
    modules = {id(part): number for number, part in enumerate(model.modules())}
    tensors: dict[int, int] = {}

    def of_tensor(value: Tensor | None, lasting: bool) -> Any:
        if value is None:
            return None
        number = tensors.setdefault(id(value), len(tensors))
        content = "" if lasting else hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return (number, _described(value), type(value), content)

    parts = []
    for name, part in model.named_modules(remove_duplicate=False):
        attributes = dict(vars(part))
        parameters, buffers, _ = (attributes.pop(name) for name in ("_parameters", "_buffers", "_modules"))
        passing = part._non_persistent_buffers_set
        parts.append(
            (
                name,
                modules[id(part)],
                type(part),
                tuple((key, of_tensor(value, True)) for key, value in parameters.items()),
                tuple((key, of_tensor(value, key not in passing)) for key, value in buffers.items()),
                tuple((key, _comparable(value, modules)) for key, value in attributes.items()),
            )
        )
    switches = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled(example.device.type),
        torch.are_deterministic_algorithms_enabled(),
    )
    return (tuple(parts), _described(example), switches)


def _described(value: Tensor) -> tuple[Any, ...]:
    return (tuple(value.shape), value.stride(), value.dtype, str(value.device), value.requires_grad)


def _comparable(value: Any, modules: Mapping[int, int]) -> Any:
    """A value as something with a hash, equal for equal values of one type only."""
    of = functools.partial(_comparable, modules=modules)
    if value is None or isinstance(
        value, bool | int | float | complex | str | bytes | torch.dtype | torch.device | Enum
    ):
        return (type(value), repr(value))
    if isinstance(value, tuple | list):
        return (type(value), tuple(map(of, value)))
    if isinstance(value, set | frozenset):
        return (type(value), frozenset(map(of, value)))
    if isinstance(value, dict):
        return (type(value), tuple((of(key), of(content)) for key, content in value.items()))
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return value
    if isinstance(value, functools.partial):
        return (type(value), of(value.func), of(value.args), of(value.keywords))
    if isinstance(value, types.MethodType) and id(value.__self__) in modules:
        return (value.__func__, modules[id(value.__self__)])
    if dataclasses.is_dataclass(value):
        return (type(value), of(vars(value)))
    raise UnknownValue(type(value).__name__)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(named)


def _empty(value: Tensor) -> Tensor:
    """Something in place of a tensor that takes no memory."""
    empty = torch.empty_like(value, device="meta")
    return nn.Parameter(empty, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else empty
