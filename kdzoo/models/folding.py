"""Folding each BatchNorm into the convolution before it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kdzoo.models.network import Network, empty_tables, same


def fold_batchnorm(network: Network) -> Network:
    """Return a copy in eval mode with each BatchNorm folded into the convolution right before it.

    A BatchNorm is folded where one pass shows that it, and nothing else, took what a convolution gave. The copy then
    has to answer noise like the original, in logits, embedding and every level; else nothing is folded.
    """
    plain = copy.deepcopy(network, empty_tables(network)).eval()
    tensors = [*plain.parameters(), *plain.buffers()]
    exact = all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.int64) for t in tensors)
    probe = plain if exact else copy.deepcopy(plain, empty_tables(plain)).to(device="cpu", dtype=torch.float32)
    inputs = probe.example(2)
    levels, embedding = range(len(probe.levels)), probe.pre_logits_width > 0
    with torch.no_grad():
        pairs = _followed_by_batchnorm(probe.model, probe.preprocess(inputs))
        expected = probe(inputs, levels=levels, pre_logits=embedding)
        _fold(probe.model, pairs)
        got = probe(inputs, levels=levels, pre_logits=embedding)
        checked = [(got.logits, expected.logits), *zip(got.features, expected.features, strict=True)]
        if embedding:
            checked.append((got.pre_logits, expected.pre_logits))
        if not all(same(one, other) for one, other in checked):
            return copy.deepcopy(network, empty_tables(network)).eval()
        if probe is not plain:
            _fold(plain.model, pairs)
    return plain


class Uses(TorchFunctionMode):
    """Counts how often each watched tensor is handed to an operation that makes a tensor of it."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, int] = {}  # by identity, which holds as long as the caller keeps the tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.of:
                    self.of[id(leaf)] += 1
        return result


def _followed_by_batchnorm(model: nn.Module, inputs: Tensor) -> list[tuple[str, str]]:
    """Names of (convolution, BatchNorm) where the one's output goes to the other alone, and both run once."""
    uses = Uses()
    gave: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its identity is not given away again
    runs: dict[str, int] = {}
    found: list[tuple[str, str, int]] = []

    def ran(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                gave[id(output)] = (name, output)
                uses.of[id(output)] = 0
            elif id(args[0]) in gave:
                found.append((gave[id(args[0])][0], name, id(args[0])))

        return hook

    handles = [
        module.register_forward_hook(ran(name))
        for name, module in model.named_modules()
        if type(module) in (nn.Conv2d, Conv2dSame) or _foldable(module)
    ]
    try:
        with uses:
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm, tensor in found if runs[conv] == runs[norm] == uses.of[tensor] == 1]


def _foldable(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, BatchNormAct2d) and getattr(module, "running_mean", None) is not None


def _fold(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    for conv_name, norm_name in pairs:
        conv: Any = model.get_submodule(conv_name)
        norm: Any = model.get_submodule(norm_name)
        with torch.no_grad():
            tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            weight, bias, mean, var, scale, shift = (cast(Tensor, t if t is None else t.double()) for t in tensors)
            new_weight, new_bias = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift)
            conv.bias = nn.Parameter(new_bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
            conv.weight.copy_(new_weight)
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        model.set_submodule(norm_name, rest.train(norm.training))
