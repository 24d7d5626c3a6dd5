"""The pairs of convolution and BatchNorm that torchao looks for, exported once in a process and only where they can be.

For every model that it converts, torchao exports about a hundred small patterns: of four kinds of convolution, of
weights that share one scale or have one a channel, with a rounded bias or not. That takes half a minute, whatever the
model is. Most networks have one kind of convolution, and the quantizer here gives weights a scale a channel and leaves
biases in floats, so that most of the patterns match nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch.nn import functional as F

#: What torchao's patterns are built with (names of variables in them), as far as the quantizer here decides it.
OURS = {"is_per_channel": True, "bias_is_quantized": False}

aten = torch.ops.aten

#: What a convolution is in a graph.
OPERATORS = {
    F.conv1d: {aten.conv1d.default, aten.conv1d.padding},
    F.conv2d: {aten.conv2d.default, aten.conv2d.padding},
    F.conv_transpose1d: {aten.conv_transpose1d.default},
    F.conv_transpose2d: {aten.conv_transpose2d.input},
}

#: The functions of ``torchao.quantization.pt2e.qat_utils`` that are replaced while it works.
HELPERS = ("_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper")
EXPORT = "_get_aten_graph_module_for_pattern"

_exported: dict[Any, fx.GraphModule] = {}


@contextmanager
def kept_patterns() -> Iterator[None]:
    """Inside, torchao looks for what can be there, and exports each pattern once. Its results are the same."""
    from torchao.quantization.pt2e import qat_utils

    names = (*HELPERS, EXPORT)
    if not all(hasattr(qat_utils, name) for name in names):  # another torchao, which does it in its own time
        yield
        return
    kept: dict[str, Any] = {name: _where_there_is_one(getattr(qat_utils, name)) for name in HELPERS}
    kept[EXPORT] = _once(getattr(qat_utils, EXPORT))
    with mock.patch.multiple(qat_utils, **kept):
        yield


def _where_there_is_one(helper: Callable[..., Any]) -> Callable[..., Any]:
    def restricted(model: Any, convolution: Any, *rest: Any, **options: Any) -> Any:
        found = {node.target for node in model.graph.nodes}
        operators = OPERATORS.get(convolution, found)
        if found.intersection(operators):
            return helper(model, convolution, *rest, **options)
        model.delete_all_unused_submodules()  # as a search that finds nothing does
        return model

    return restricted


def _once(export: Callable[..., fx.GraphModule]) -> Callable[..., fx.GraphModule]:
    def exported(pattern: Any, inputs: tuple[Any, ...], is_cuda: bool = False, **options: Any) -> fx.GraphModule:
        function = getattr(pattern, "fn", pattern)
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        built = dict(zip(function.__code__.co_freevars, cells, strict=True))
        if any(built.get(name, wanted) != wanted for name, wanted in OURS.items()):
            return _nowhere()
        key = (function.__code__, tuple(cells), _kinds(inputs), is_cuda, tuple(options), _kinds(options.values()))
        if key not in _exported:
            _exported[key] = export(pattern, inputs, is_cuda, **options)
        return copy.deepcopy(_exported[key])

    return exported


def _kinds(values: Any) -> tuple[Any, ...]:
    return tuple((tuple(v.shape), v.dtype, v.device) if isinstance(v, Tensor) else v for v in values)


def _nowhere() -> fx.GraphModule:
    """A pattern that no graph has."""
    graph = fx.Graph()
    graph.output(graph.call_function(_nowhere, (graph.placeholder("x"),)))
    return fx.GraphModule({}, graph)
