"""What decides the graph of a model, all but the values of its weights: two models of one structure compute alike."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

#: The methods of a model that are called on it.
CALLED = ("forward", "forward_features", "forward_intermediates", "forward_head")

#: Values of these types are equal only where they are the same in every way; of floats, 0.0 equals -0.0.
PLAIN = frozenset({type(None), bool, int, str, bytes})
EMPTY = frozenset({dict, OrderedDict, set, list, tuple})


class UnknownValue(Exception):
    """Raised for an attribute that a graph may depend on and that cannot be compared."""


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
    methods = tuple(getattr(type(model), name, None) for name in CALLED)
    return (tuple(parts), methods, _described(example), switches)


def _described(value: Tensor) -> tuple[Any, ...]:
    return (tuple(value.shape), value.stride(), value.dtype, str(value.device), value.requires_grad)


def _comparable(value: Any, modules: Mapping[int, int]) -> Any:
    """A value as something with a hash, equal for equal values of one type only."""
    kind = type(value)
    if kind in PLAIN:  # most attributes by far, so these come first
        return (kind, value)
    if kind in EMPTY and not value:
        return (kind, ())
    if isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device | Enum):
        return (kind, repr(value))
    if isinstance(value, tuple | list):
        return (kind, tuple(_comparable(part, modules) for part in value))
    if isinstance(value, set | frozenset):
        return (kind, frozenset(_comparable(part, modules) for part in value))
    if isinstance(value, dict):
        items = value.items()
        return (kind, tuple((_comparable(key, modules), _comparable(content, modules)) for key, content in items))
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return value
    if isinstance(value, functools.partial):
        return (kind, tuple(_comparable(part, modules) for part in (value.func, value.args, value.keywords)))
    if isinstance(value, types.MethodType) and id(value.__self__) in modules:
        return (value.__func__, modules[id(value.__self__)])
    if dataclasses.is_dataclass(value):
        return (kind, _comparable(vars(value), modules))
    raise UnknownValue(kind.__name__)
