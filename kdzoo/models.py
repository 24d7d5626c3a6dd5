"""Networks: a plain timm model with what distillation needs of it, and how weights get in and out."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.models import PretrainedCfg, load_model_config_from_hf
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kdzoo.errors import KdzooError, ModelError, UnknownName, nearest
from kdzoo.levels import Pairing, pair
from kdzoo.offers import Arithmetic
from kdzoo.problems import plain
from kdzoo.types import Level, ModelShapes, ModelSpec, Outputs, Shapes

#: Arguments of timm.create_model that the recipe says elsewhere, and where.
RESERVED = {
    "num_classes": "the data set says how many classes there are",
    "pretrained": "say weights: pretrained",
    "checkpoint_path": "say weights: <file>",
    "pretrained_cfg": "say weights: hf-hub:... or a file",
    "pretrained_cfg_overlay": "say weights: hf-hub:... or a file",
    "features_only": "a network without a classifier cannot be trained",
    "tokens": "the data set says what its text is made of",
}

#: How far a network's parts, or its folded copy, may be from the whole, relative to the largest value.
SAME = 1e-4


class Network(nn.Module):
    """A plain timm model beside its own input normalisation, levels and costs.

    ``forward`` takes pixels in [0, 1] of any size, as the data set has them; ``model`` is what is trained, saved and
    exported, and knows nothing of this class. One that reads text takes ids (N, L), fill included, as they are, its
    features are (N, D, L, 1), and ``tokens`` is what it was built from. ``levels`` are all its levels, shallow to deep;
    ``macs`` are the multiply-accumulates of one sample, of text the longest; ``overstrided`` names the convolutions
    whose input map is smaller than their stride; ``create_args`` rebuild ``model`` by ``timm.create_model``.
    """

    overstrided: tuple[str, ...]
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int],
        channels: int,
        num_classes: int,
        create_args: Mapping[str, Any],
        tokens: Mapping[str, Any] | None = None,
        window: tuple[int, int, int] | None = None,
        floats: bool = False,
    ) -> None:
        """``window`` are the channels of its modality, (first, last + 1), of how many there are; None: all of them.

        ``floats`` says that its inputs are measurements that come as they are, no pixels.
        """
        super().__init__()
        self.floats = floats
        self.model = model
        self.window = window
        self.spec = spec
        self.mean, self.std = tuple(mean), tuple(std)
        self.size = size
        self.channels = channels
        self.num_classes = num_classes
        self.tokens = tokens
        #: A model that was made from more than plain values knows itself by which it can be made again.
        self.create_args = dict(getattr(model, "create_args", create_args))
        #: Whether ready weights came for other classes, or without a classifier, so that it starts anew.
        self.fresh_head = bool(getattr(model, "fresh_head", False))
        #: What ``model`` is computed in; None: floats, and then it is the plain model.
        self.arithmetic: Arithmetic | None = None
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, -1, 1, 1), persistent=False)
        self.levels, self.pre_logits_width, self.macs = self._probe()

    def prepare(self, inputs: Tensor) -> Tensor:
        """Turn pixels (N, C, H, W) in [0, 1] into what ``model`` takes: its channels, its size, normalised.

        Ids of tokens (N, L) stay as they are.
        """
        if self.tokens is not None:
            return inputs
        if self.window is not None:
            inputs = inputs[:, self.window[0] : self.window[1]]
        if inputs.shape[1] != self.channels:
            inputs = inputs.expand(-1, self.channels, -1, -1)  # grey to as many equal channels
        if tuple(inputs.shape[2:]) != self.size:
            inputs = F.interpolate(inputs, self.size, mode="bilinear", antialias=True)
        return (inputs - self._mean) / self._std

    def forward(self, inputs: Tensor, levels: Sequence[int] = (), pre_logits: bool = False) -> Outputs:
        """Answer pixels (N, C, H, W) in [0, 1]; ``levels`` index ``self.levels``, features are (N, C, H, W)."""
        inputs = self.prepare(inputs)
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
        generator = torch.Generator().manual_seed(0)
        if self.tokens is None:
            channels = self.channels if self.window is None else self.window[2]
            return torch.rand(samples, channels, *self.size, generator=generator)
        ids = torch.randint(1, self.tokens["vocab_size"], (samples, self.size[0]), generator=generator)
        return (ids + self.tokens["pad"]) % self.tokens["vocab_size"]

    def level(self, name: str) -> int:
        """Which of ``levels`` has a name; raises ModelError where none has."""
        names = [level.name for level in self.levels]
        if name not in names:
            raise ModelError(f"{self._title}: has no level '{name}'; known: {', '.join(names) or 'none'}")
        return names.index(name)

    def section(self, level: int) -> Section:
        """A copy of this network, in eval mode, that ends after a level and holds nothing that comes later."""
        section = Section(copy.deepcopy(self).eval(), level)
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
        """The module whose import registers this model with timm; None for timm's own."""
        return registering_module(self.spec.name)

    def prepared(self, arithmetic: Arithmetic) -> Network:
        """The same network computed in ``arithmetic``, with logits only."""
        shape = (2, self.channels, *self.size)
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        try:
            other = self.with_model(arithmetic.prepare(self.model, example))
        except KdzooError:
            raise
        except Exception as error:  # whatever a library raises that does not know this model
            raise ModelError(f"{self._title}: cannot be computed in '{arithmetic.name}': {_words(error)}") from error
        other.arithmetic, other.levels, other.pre_logits_width = arithmetic, (), 0
        return other

    def with_model(self, model: nn.Module) -> Network:
        """The same preprocessing around another copy of the model, e.g. a moving average of its weights."""
        other = copy.copy(self)
        other._modules = {**self._modules, "model": model}
        return other

    @torch.no_grad()
    def _probe(self) -> tuple[tuple[Level, ...], int, int]:
        """Run one sample of noise: which levels there are, how wide the embedding is, what it costs."""
        model: Any = self.model
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, self.channels, *self.size, generator=generator)
        inputs = noise if self.tokens is None else self.example(1)
        with evaluating(model):
            try:
                # The counter follows parameters that are handed on as arguments, which takes gradients.
                with torch.enable_grad(), FlopCounterMode(display=False) as counter, _overstrided(model) as names:
                    logits = model(inputs).detach()
            except Exception as error:  # whatever a model raises, it does not run on such inputs
                shape = f"{self.channels} x {self.size[0]} x {self.size[1]}"
                shape = shape if self.tokens is None else f"{self.size[0]} tokens"
                raise ModelError(f"{self._title}: does not run on inputs of {shape}: {_words(error)}") from error
            if logits.shape != (1, self.num_classes):
                shape = f"{tuple(logits.shape)}, not (1, {self.num_classes})"
                raise ModelError(f"{self._title}: gives logits of shape {shape}")
            macs = counter.get_total_flops() // 2
            self.overstrided = tuple(names)
            if not hasattr(model, "forward_intermediates") or not hasattr(model, "forward_head"):
                return (), 0, macs
            last, features = model.forward_intermediates(inputs, output_fmt="NCHW")
            if not same(model.forward_head(last), logits):
                return (), 0, macs  # its parts are not the whole, so no feature of theirs can be trusted
            width = model.forward_head(last, pre_logits=True).flatten(1).shape[1]
        return self._levels(features), width, macs

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
            self.network.prepare(inputs),
            indices=[self.level],
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return features


def _drop_unused(model: nn.Module, used: set[int]) -> None:
    """Put nothing in the place of each module all of whose parameters are unused; a list keeps its length."""
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


# --- building -------------------------------------------------------------------------------


def registering_module(name: str) -> str | None:
    """The module whose import registers a model with timm; None for timm's own and for unknown ones."""
    module = timm.model_entrypoint(name).__module__ if timm.is_model(name) else "timm"
    return None if module.split(".")[0] == "timm" else module


@dataclass(frozen=True)
class Origin:
    """Which timm model is made, and with what ready weights, if any."""

    name: str
    ready: bool = False  # whether timm fetches weights
    config: dict[str, Any] | None = None  # timm's description of the weights; None: the one it has of the name
    args: Mapping[str, Any] = field(default_factory=dict)  # the arguments the weights were made with

    @property
    def settings(self) -> PretrainedCfg | None:
        """Input size, normalisation and classes of the weights, or those timm suggests for the name."""
        return PretrainedCfg(**self.config) if self.config is not None else timm.get_pretrained_cfg(self.name)


def build_network(
    spec: ModelSpec,
    *,
    num_classes: int,
    channels: int,
    size: tuple[int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    data_mean: Sequence[float],
    data_std: Sequence[float],
    seed: int,
    load: bool = True,
    tokens: Mapping[str, Any] | None = None,
    modalities: Mapping[str, tuple[int, int]] | None = None,
    floats: bool = False,
) -> Network:
    """Build a network by name, initialised under ``seed``, and bring in its weights.

    ``channels`` is the data set's, ``size`` the network's input (H, W). Its normalisation is ``mean`` and ``std``,
    else that of its pretrained weights, else the data set's. ``load=False`` builds the very same network without
    reading its weights, for a caller that has others. ``tokens`` are what a network that reads text is built from;
    None for images. ``modalities`` are those of the data set, of which ``spec.reads`` is one. ``floats`` says that its
    samples are no pixels. Raises UnknownName and ModelError.
    """
    window = _window(spec, modalities or {}, channels)
    if window is not None:
        first, last, _ = window
        channels, data_mean, data_std = last - first, data_mean[first:last], data_std[first:last]
    _check_spec(spec)
    _check_inputs(spec, tokens)
    origin = _origin(spec)
    if tokens is not None:
        args = {"tokens": tokens, **origin.args, **spec.args, "num_classes": num_classes}
        model = _create(spec, origin, args, seed, pretrained=load and origin.ready)
        mean, std, length = tuple(data_mean), tuple(data_std), int(size[0])
        network = Network(
            model,
            spec,
            mean=mean,
            std=std,
            size=(length, 1),
            channels=channels,
            num_classes=num_classes,
            create_args=args,
            tokens=tokens,
        )
        _load_file(network, origin, load)
        return network
    settings = origin.settings
    ready = settings if origin.ready else None
    # Ready weights see grey images as three equal channels; a fresh network has as many channels as the data.
    own_channels = ready.input_size[0] if ready is not None and channels == 1 else channels
    args = {"in_chans": own_channels, **origin.args, **spec.args, "num_classes": num_classes}
    if settings is not None and settings.fixed_input_size:
        args.setdefault("img_size", tuple(size))
    model = _create(spec, origin, args, seed, pretrained=load and origin.ready)
    in_chans = int(args["in_chans"])
    if channels not in (1, in_chans):
        raise ModelError(f"model '{spec.name}': takes {in_chans} channels, the data has {channels}; leave out in_chans")
    if mean is None or std is None:
        use_own = ready is not None and len(ready.mean) == in_chans
        mean, std = (ready.mean, ready.std) if ready is not None and use_own else (data_mean, data_std)
    if len(mean) not in (1, in_chans) or len(std) != len(mean):
        raise ModelError(
            f"model '{spec.name}': takes {in_chans} channels, its mean has {len(mean)} numbers and its std {len(std)}"
        )
    repeat = in_chans // len(mean)
    network = Network(
        model,
        spec,
        mean=tuple(mean) * repeat,
        std=tuple(std) * repeat,
        size=(int(size[0]), int(size[1])),
        channels=in_chans,
        num_classes=num_classes,
        create_args=args,
        window=window,
        floats=floats,
    )
    network.fresh_head = ready is not None and ready.num_classes != num_classes
    _load_file(network, origin, load)
    return network


def _load_file(network: Network, origin: Origin, load: bool) -> None:
    """Bring in weights from a file, if that is where they are."""
    if load and not origin.ready and network.spec.weights not in ("train", "teacher"):
        load_weights(network, Path(network.spec.weights).expanduser())


def _window(spec: ModelSpec, modalities: Mapping[str, tuple[int, int]], channels: int) -> tuple[int, int, int] | None:
    """The channels that a model reads, (first, last + 1), of how many there are; None for all of them."""
    if spec.reads is None and not modalities:
        return None
    known = ", ".join(modalities)
    if not modalities:
        raise ModelError(f"model '{spec.name}': reads '{spec.reads}', but the data set declares no modalities")
    if spec.reads is None:
        raise ModelError(f"model '{spec.name}': which modality it reads is not said; reads: one of {known}")
    if spec.reads not in modalities:
        raise ModelError(
            f"model '{spec.name}': reads '{spec.reads}'{nearest(spec.reads, list(modalities))}; known: {known}"
        )
    return (*modalities[spec.reads], channels)


def _check_inputs(spec: ModelSpec, tokens: Mapping[str, Any] | None) -> None:
    """A network for text is made from ``tokens``, which one for images does not take."""
    reads_text = "tokens" in inspect.signature(timm.model_entrypoint(spec.name)).parameters
    if reads_text != (tokens is not None):
        raise ModelError(
            f"model '{spec.name}': reads {'text' if reads_text else 'images'}, the data set has "
            f"{'images' if reads_text else 'text'}; choose another model or data set"
        )
    given = [name for name in ("mean", "std", "size") if getattr(spec, name) is not None]
    if reads_text and given:
        raise ModelError(f"model '{spec.name}': reads text, which has no {given[0]}; leave it out")


def _check_spec(spec: ModelSpec) -> None:
    if not timm.is_model(spec.name):
        raise UnknownName(
            f"unknown model '{spec.name}'{nearest(spec.name, timm.list_models())}; known: {len(timm.list_models())} "
            "networks of timm and of the plugins, see kdzoo list models"
        )
    try:
        timm.get_pretrained_cfg(spec.name)
    except RuntimeError as error:  # the part of the name after a dot, which names weights
        raise ModelError(f"model '{spec.name}': {error}") from error
    for key, instead in RESERVED.items():
        if key in spec.args:
            raise ModelError(f"model '{spec.name}': args may not hold '{key}'; {instead}")


def _origin(spec: ModelSpec) -> Origin:
    """What timm makes and fetches; a file of weights is loaded later, into a fresh network."""
    if spec.weights == "pretrained":
        return Origin(spec.name, ready=True)
    if not spec.weights.startswith("hf-hub:"):
        return Origin(spec.name)
    try:
        config, name, args = load_model_config_from_hf(spec.weights.removeprefix("hf-hub:"))
    except Exception as error:  # the network, the hub, its cache: any of them in any way
        raise _unreachable(spec, error) from error
    if name != spec.name:
        raise ModelError(f"model '{spec.name}': '{spec.weights}' holds weights of another; name: {name} would be right")
    return Origin(name, True, config, args or {})


def _create(spec: ModelSpec, origin: Origin, args: Mapping[str, Any], seed: int, pretrained: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(origin.name, pretrained=pretrained, pretrained_cfg=origin.config, **args)
        except ModelError:
            raise
        except Exception as error:  # whatever the model's constructor or the hub raises, it is reported with its cause
            if pretrained:
                raise _unreachable(spec, error) from error
            shown = ", ".join(f"{key}={value!r}" for key, value in args.items() if key != "tokens")
            raise ModelError(f"model '{spec.name}': cannot be built with {shown}: {_words(error)}") from error


def _unreachable(spec: ModelSpec, error: Exception) -> ModelError:
    return ModelError(
        f"model '{spec.name}': no weights from '{spec.weights}': {_words(error)}\n  Fetch them once where there is a "
        "network (they stay in the cache), or give a file: weights: <path>.safetensors"
    )


def _words(error: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


# --- weights --------------------------------------------------------------------------------


def load_weights(network: Network, path: Path) -> None:
    """Load a file of weights, strictly: every key and shape must be the model's own.

    Reads .safetensors, and .pt, .pth, .th through ``weights_only``, which runs no code; the weights may lie below
    "state_dict" or "model" and their keys begin with "module.". Raises ModelError that lists the differences.
    """
    state = read_weights(path)
    own = network.model.state_dict()
    for key, value in own.items():
        if key.endswith(".num_batches_tracked"):  # counted since torch 0.4.1, and read by nothing in eval mode
            state.setdefault(key, value)
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        lines = [f"{path}: not weights of '{network.spec.name}' with {network.num_classes} classes"]
        for what, found in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes)):
            if found:
                more = f" and {len(found) - 5} more" if len(found) > 5 else ""
                lines.append(f"{what}: {', '.join(plain(key, 100) for key in found[:5])}{more}")  # a stranger's names
        raise ModelError("\n  ".join(lines))
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(f"{path}: weights that are not finite: {', '.join(broken[:5])}")
    network.model.load_state_dict(state, strict=True)


def start_from(network: Network, other: Network) -> None:
    """Give ``network`` its first weights from another one, the teacher.

    One of the same tensors takes them all; any other must know how, by a method ``take_over(model)``. Raises
    ModelError where neither holds.
    """
    own, theirs = network.model.state_dict(), other.model.state_dict()
    if {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in theirs.items()}:
        network.model.load_state_dict(theirs, strict=True)
        return
    take_over: Any = getattr(network.model, "take_over", None)
    if take_over is None:
        raise ModelError(
            f"model '{network.spec.name}': weights: teacher, but '{other.spec.name}' has other tensors, and this model "
            "has no rule for which to take; choose the teacher's own architecture or other weights"
        )
    with torch.no_grad():
        take_over(other.model)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without running any code in it; raise ModelError when it is none."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights; weights are train, pretrained, hf-hub:<name> or a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        elif path.suffix in (".pt", ".pth", ".th"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ModelError(
                f"{path}: weights are read from .safetensors, .pt, .pth and .th files, not '{path.suffix}'"
            )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors, so it could run code and was not read; save model.state_dict() instead"
        ) from error
    except ModelError:
        raise
    except Exception as error:  # a damaged file makes the readers fail in many ways
        raise ModelError(f"{path}: cannot be read as weights: {_words(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path}: holds no tensors by name; model.state_dict() would be right")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def weights_sha256(module: nn.Module) -> str:
    """Hash every parameter and buffer of a module, bit by bit."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


# --- several networks -----------------------------------------------------------------------


def pair_levels(student: Network, others: Sequence[Network]) -> Pairing:
    """Pair the student's levels with those of every other network; see ``levels.pair``."""
    return pair([(network.spec.name, network.levels) for network in (student, *others)])


def shapes_of(
    student: Network,
    teachers: Sequence[Network],
    peers: Sequence[Network],
    pairing: Pairing | None,
    num_samples: int,
    image: tuple[int, int, int],
) -> Shapes:
    """Return what an algorithm is built from; ``pairing`` covers student, teachers and peers, in this order."""
    networks = [student, *teachers, *peers]
    levels = pairing.levels if pairing is not None else ((),) * len(networks)
    shapes = [
        ModelShapes(tuple(own), network.pre_logits_width, network.num_classes, network.mean, network.std)
        for network, own in zip(networks, levels, strict=True)
    ]
    return Shapes(
        student=shapes[0],
        teachers=tuple(shapes[1 : 1 + len(teachers)]),
        peers=tuple(shapes[1 + len(teachers) :]),
        num_classes=student.num_classes,
        num_samples=num_samples,
        image=image,
    )


# --- a network that only answers ------------------------------------------------------------


def freeze(network: nn.Module) -> None:
    """Put a network in eval mode, its weights without gradient."""
    network.eval().requires_grad_(False)


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


def fold_batchnorm(network: Network) -> Network:
    """Return a copy in eval mode with each BatchNorm folded into the convolution right before it.

    A BatchNorm is folded where one pass shows that it, and nothing else, took what a convolution gave. The copy then
    has to answer noise like the original, in logits, embedding and every level; else nothing is folded.
    """
    plain = copy.deepcopy(network).eval()
    probe = copy.deepcopy(plain).to(device="cpu", dtype=torch.float32)
    inputs = probe.example(2)
    levels, embedding = range(len(probe.levels)), probe.pre_logits_width > 0
    with torch.no_grad():
        pairs = _followed_by_batchnorm(probe.model, probe.prepare(inputs))
        expected = probe(inputs, levels=levels, pre_logits=embedding)
        _fold(probe.model, pairs)
        got = probe(inputs, levels=levels, pre_logits=embedding)
        checked = [(got.logits, expected.logits), *zip(got.features, expected.features, strict=True)]
        if embedding:
            checked.append((got.pre_logits, expected.pre_logits))
        if all(same(one, other) for one, other in checked):
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
