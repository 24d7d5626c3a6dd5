"""A network: a plain timm model with its input normalisation, levels and costs."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdzoo.contract.declared import Level
from kdzoo.contract.extension_points import Quantizer
from kdzoo.contract.stage import ModelSpec
from kdzoo.contract.step import Outputs
from kdzoo.contract.structure import UnknownValue, structure
from kdzoo.data.inputs import Inputs
from kdzoo.errors import KdzooError, ModelError, in_words
from kdzoo.models.weight_files import WeightFile

#: How far a network's parts, or its folded copy, may be from the whole, relative to the largest value.
SAME = 1e-4

#: Levels, width of the embedding, multiply-accumulates, names of overstrided convolutions.
Probed = tuple[tuple[Level, ...], int, int, tuple[str, ...]]

#: Answers of structures that were probed in this process, which is most of the time of building a small network.
_probed: dict[Any, Probed] = {}
MOST_PROBED = 256


class Network(nn.Module):
    """A plain timm model with its own input normalisation, levels and costs.

    ``forward`` takes pixels in [0, 1] of any size, as the data set has them; ``model`` is what is trained, saved and
    exported, and knows nothing of this class. ``inputs`` says what ``model`` takes; one that reads text takes ids
    (N, L), fill included, and its features are (N, D, L, 1). ``levels`` are all its levels, shallow to deep; ``macs``
    are the multiply-accumulates of one sample, of text the longest; ``overstrided`` names the convolutions whose input
    map is smaller than their stride; ``create_args`` rebuild ``model`` by ``timm.create_model``.
    """

    overstrided: tuple[str, ...]
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        inputs: Inputs,
        num_classes: int,
        create_args: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.inputs = inputs
        self.mean, self.std, self.size, self.channels = inputs.mean, inputs.std, inputs.size, inputs.channels
        self.num_classes = num_classes
        #: A model that was made from more than plain values knows itself by which it can be made again.
        self.create_args = dict(getattr(model, "create_args", create_args))
        #: Whether ready weights came for other classes, or without a classifier, so that it starts anew.
        self.fresh_head = bool(getattr(model, "fresh_head", False))
        #: The file that the weights came from, without its tensors; None: from no file.
        self.read_from: WeightFile | None = None
        #: What ``model`` is computed in; None: floats, and then it is the plain model.
        self.quantizer: Quantizer | None = None
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, -1, 1, 1), persistent=False)
        self.levels, self.pre_logits_width, self.macs, self.overstrided = self._remembered_probe()

    def preprocess(self, inputs: Tensor) -> Tensor:
        """Turn pixels (N, C, H, W) in [0, 1], or ids of tokens (N, L), into what ``model`` takes."""
        return self.inputs.preprocess(inputs, self._mean, self._std)

    def forward(self, inputs: Tensor, levels: Sequence[int] = (), pre_logits: bool = False) -> Outputs:
        """Answer pixels (N, C, H, W) in [0, 1]; ``levels`` index ``self.levels``, features are (N, C, H, W)."""
        inputs = self.preprocess(inputs)
        if not levels and not pre_logits:
            return Outputs(self.model(inputs))
        model: Any = self.model
        features: tuple[Tensor, ...] = ()
        if levels:
            wanted = sorted(set(levels))
            last, taken = model.forward_intermediates(inputs, indices=wanted, output_fmt="NCHW")
            features = tuple(taken[wanted.index(level)] for level in levels)
        else:
            last = model.forward_features(inputs)
        embedding: Any = model.forward_head(last, pre_logits=True).flatten(1) if pre_logits else None
        return Outputs(model.forward_head(last), features, embedding)

    def example(self, samples: int) -> Tensor:
        """Made-up inputs that are the same each time: pixels (N, C, H, W) in [0, 1], or ids (N, L) without fill."""
        return self.inputs.example(samples)

    def level(self, name: str) -> int:
        """Which of ``levels`` has a name; raises ModelError where none has."""
        names = [level.name for level in self.levels]
        if name not in names:
            raise ModelError(f"{self._title}: has no level '{name}'; known: {', '.join(names) or 'none'}")
        return names.index(name)

    def section(self, level: int) -> Section:
        """A copy of this network, in eval mode, that ends after a level and holds nothing that comes later."""
        section = Section(copy.deepcopy(self, empty_tables(self)).eval(), level)
        parameters = tuple(section.parameters())
        with torch.enable_grad():
            features = section(self.example(2).to(self._mean.device))
            reached = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        used = {id(p) for p, gradient in zip(parameters, reached, strict=True) if gradient is not None}
        _drop_unused(section.network.model, used)
        return section

    @property
    def _title(self) -> str:
        return f"model '{self.spec.name}'"

    @property
    def module_to_import(self) -> str | None:
        """The module that registers this model with timm on import; None for timm's own."""
        return registering_module(self.spec.name)

    def quantized(self, quantizer: Quantizer) -> Network:
        """The same network computed in ``quantizer``, with logits only."""
        try:
            other = self.with_model(quantizer.prepare(self.model, self.inputs.model_example(2)))
        except KdzooError:
            raise
        except Exception as error:  # whatever a library raises that does not know this model
            raise ModelError(f"{self._title}: cannot be computed in '{quantizer.name}': {in_words(error)}") from error
        other.quantizer, other.levels, other.pre_logits_width = quantizer, (), 0
        return other

    def with_model(self, model: nn.Module) -> Network:
        """The same preprocessing around another copy of the model, e.g. a moving average of its weights."""
        other = copy.copy(self)
        other._modules = {**self._modules, "model": model}
        return other

    def _remembered_probe(self) -> Probed:
        """What a model of the same structure answered before, or else a probe; no weight decides the answer."""
        inputs = self.inputs.model_example(1)
        try:
            key = (structure(self.model, inputs), self.size, self.num_classes)
        except UnknownValue:
            return self._probe(inputs)
        if key not in _probed:
            if len(_probed) >= MOST_PROBED:
                _probed.clear()
            _probed[key] = self._probe(inputs)
        return _probed[key]

    @torch.no_grad()
    def _probe(self, inputs: Tensor) -> Probed:
        """Run one sample of noise: levels, width of the embedding, cost, and which convolutions are overstrided."""
        model: Any = self.model
        with evaluating(model):
            try:
                # The counter follows parameters that are handed on as arguments, which takes gradients.
                with torch.enable_grad(), FlopCounterMode(display=False) as counter, _overstrided(model) as names:
                    logits = model(inputs).detach()
            except Exception as error:  # whatever a model raises, it does not run on such inputs
                shape = self.inputs.shape_words
                raise ModelError(f"{self._title}: does not run on inputs of {shape}: {in_words(error)}") from error
            if logits.shape != (1, self.num_classes):
                shape = f"{tuple(logits.shape)}, not (1, {self.num_classes})"
                raise ModelError(f"{self._title}: gives logits of shape {shape}")
            macs = counter.get_total_flops() // 2
            overstrided = tuple(names)
            if not hasattr(model, "forward_intermediates") or not hasattr(model, "forward_head"):
                return (), 0, macs, overstrided
            last, features = model.forward_intermediates(inputs, output_fmt="NCHW")
            if not same(model.forward_head(last), logits):
                return (), 0, macs, overstrided  # its parts are not the whole, so no feature of theirs can be trusted
            width = model.forward_head(last, pre_logits=True).flatten(1).shape[1]
        return self._levels(features), width, macs, overstrided

    def _levels(self, features: Sequence[Tensor]) -> tuple[Level, ...]:
        """Name each feature (1, C, H, W) by timm's feature_info, whose strides hold even where a map is 1 x 1."""
        info = getattr(self.model, "feature_info", [])
        known = [{"module": f"level {i}"} for i in range(len(features))] if len(info) != len(features) else list(info)
        levels = []
        for entry, feature in zip(known, features, strict=True):
            _, channels, height, width = feature.shape
            stride = entry.get("reduction") or max(1, round(self.size[0] / height))
            levels.append(Level(str(entry["module"]), channels, height, width, int(stride)))
        return tuple(levels)


class Section(nn.Module):
    """A network up to one of its levels: pixels (N, C, H, W) in [0, 1] -> features (N, C, H, W)."""

    def __init__(self, network: Network, level: int) -> None:
        super().__init__()
        self.network, self.level = network, level

    def forward(self, inputs: Tensor) -> Tensor:
        model: Any = self.network.model
        (features,) = model.forward_intermediates(
            self.network.preprocess(inputs),
            indices=[self.level],
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return features


def _drop_unused(model: nn.Module, used: set[int]) -> None:
    """Replace each module that has no used parameter by an identity; a list keeps its length."""
    for name, child in model.named_children():
        own = [id(parameter) for parameter in child.parameters()]
        if own and not used.intersection(own) and not isinstance(child, nn.Sequential | nn.ModuleList):
            setattr(model, name, nn.Identity())
        else:
            _drop_unused(child, used)


@contextmanager
def _overstrided(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of convolutions that meet an input map smaller than their stride."""
    names: list[str] = []

    def ran(name: str) -> Any:
        def hook(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
            if max(module.kernel_size) > 1 and any(
                side < stride for side, stride in zip(args[0].shape[2:], module.stride, strict=True)
            ):
                names.append(name)

        return hook

    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    handles = [module.register_forward_pre_hook(ran(name)) for name, module in convolutions]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def freeze(network: nn.Module) -> None:
    """Put a network in eval mode, its weights without gradient."""
    network.eval().requires_grad_(False)


def empty_tables(*modules: nn.Module) -> dict[int, Any]:
    """A memo for ``copy.deepcopy`` of modules, which then takes little more than half the time.

    A module has a dozen tables of hooks that are nearly always empty. The copy gets new ones from here.
    """
    tables = (table for module in modules for part in module.modules() for table in vars(part).values())
    return {id(table): type(table)() for table in tables if type(table) in (dict, OrderedDict) and not table}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in eval mode inside, each part as it was after."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def same(values: Tensor, expected: Tensor) -> bool:
    """Whether values agree but for rounding."""
    if values.shape != expected.shape:
        return False
    scale = float(expected.abs().max())
    return math.isfinite(scale) and float((values - expected).abs().max()) <= SAME * max(scale, 1e-12)


def registering_module(name: str) -> str | None:
    """Return the module that registers a model with timm on import; None for timm's own and for unknown ones."""
    module = timm.model_entrypoint(name).__module__ if timm.is_model(name) else "timm"
    return None if module.split(".")[0] == "timm" else module
