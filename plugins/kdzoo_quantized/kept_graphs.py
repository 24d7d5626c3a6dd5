"""Graphs that were exported and prepared once in this process, kept without weights for the next model of one build.

Exporting takes seconds, and a run prepares one architecture again and again: for the rehearsal, for each stage, and to
load what was stored.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from kdzoo.api.models import UnknownValue, structure

#: How many graphs are kept; the one that was not asked for the longest goes first.
MOST = 8

_kept: OrderedDict[Any, fx.GraphModule] = OrderedDict()


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


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(named)


def _empty(value: Tensor) -> Tensor:
    """Something in place of a tensor that takes no memory."""
    empty = torch.empty_like(value, device="meta")
    return nn.Parameter(empty, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else empty
