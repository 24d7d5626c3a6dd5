"""Networks: any timm model with its own input normalisation and size, its levels, and its weights.

The only module that builds models. What is inside a ``Network`` stays the plain timm model: that is what is saved
and exported; the normalisation travels beside it as metadata.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from kdzoo.errors import ModelError, NeedsError, nearest
from kdzoo.types import Level, ModelShapes, ModelSpec, Outputs, Shapes

#: Differences of a weights file that an error shows of each kind.
SHOWN = 5


class Network(nn.Module):
    """A timm model that takes pixels in [0, 1] and returns ``Outputs``."""

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int],
        create_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.mean, self.std, self.size = tuple(mean), tuple(std), tuple(size)
        self.create_args = dict(create_args or {})
        shape = (1, len(self.mean), 1, 1)
        self.register_buffer("_shift", torch.tensor(self.mean).view(shape), persistent=False)
        self.register_buffer("_scale", (1 / torch.tensor(self.std)).view(shape), persistent=False)
        self._probe()

    def _probe(self) -> None:
        """Find the levels and widths by one forward of zeros."""
        with torch.no_grad():
            was = self.training
            self.eval()
            inputs = torch.zeros(1, len(self.mean), *self.size)
            features = self._intermediates(inputs)
            embedding = self._head(self.model.forward_features(inputs), pre_logits=True)
            logits = self.model(inputs)
            self.train(was)
        self.levels = tuple(
            Level(name, feature.shape[1], feature.shape[2], feature.shape[3], max(1, round(self.size[0] / feature.shape[2])))
            for name, feature in zip(_level_names(self.model, len(features)), features, strict=True)
        )
        self.pre_logits_width = int(embedding.shape[1])
        self.num_classes = int(logits.shape[1])

    def _intermediates(self, inputs: Tensor) -> list[Tensor]:
        if not hasattr(self.model, "forward_intermediates"):
            return []
        return list(self.model.forward_intermediates(inputs, intermediates_only=True, output_fmt="NCHW"))

    def _head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        embedding = self.model.forward_head(features, pre_logits=pre_logits)
        return embedding.flatten(1) if embedding.dim() > 2 else embedding

    def prepare(self, inputs: Tensor) -> Tensor:
        """Pixels in [0, 1] as this model takes them: resized, right number of channels, normalised."""
        if tuple(inputs.shape[2:]) != self.size:
            inputs = F.interpolate(inputs, self.size, mode="bilinear", antialias=True, align_corners=False)
        if inputs.shape[1] == 1 and len(self.mean) == 3:
            inputs = inputs.expand(-1, 3, -1, -1)
        return (inputs - self._shift) * self._scale

    def forward(self, inputs: Tensor, levels: Sequence[int] = (), pre_logits: bool = False) -> Outputs:
        inputs = self.prepare(inputs)
        if not levels and not pre_logits:
            return Outputs(self.model(inputs))
        features: tuple[Tensor, ...] = ()
        if levels:
            final, maps = self.model.forward_intermediates(inputs, indices=list(levels), output_fmt="NCHW")
            features = tuple(maps)
        else:
            final = self.model.forward_features(inputs)
        embedding = self._head(final, pre_logits=True) if pre_logits else None
        return Outputs(self._head(final), features, embedding)

    def with_model(self, model: nn.Module) -> Network:
        """The same preprocessing around another copy of the model."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other._modules["model"] = model
        return other

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return count_macs(self)


def _level_names(model: nn.Module, count: int) -> list[str]:
    info = getattr(model, "feature_info", None)
    names = [entry["module"] for entry in info] if isinstance(info, list) and len(info) == count else []
    return names or [f"level_{i}" for i in range(count)]


# --- building -------------------------------------------------------------------------------


def build_network(
    spec: ModelSpec,
    *,
    num_classes: int,
    channels: int,
    size: tuple[int, int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    data_mean: Sequence[float],
    data_std: Sequence[float],
    seed: int,
) -> Network:
    """Build a model under a seed; ``weights`` of the spec decide what is loaded into it.

    ``mean``, ``std`` None: the pretrained weights' own, else the data set's. Raises ModelError for a name that timm
    does not know, arguments it does not take, and weights that do not fit.
    """
    ready = spec.weights == "pretrained" or spec.weights.startswith("hf-hub:")
    name = spec.weights if spec.weights.startswith("hf-hub:") else spec.name
    if not ready and not timm.is_model(spec.name):
        known = timm.list_models()
        raise ModelError(f"unknown model '{spec.name}'{nearest(spec.name, known) or ';'} `kdzoo list models` and timm.list_models() know {len(known)}")
    args: dict[str, Any] = {**spec.args, "num_classes": num_classes}
    if not ready:
        args["in_chans"] = channels
    args = _lists_to_tuples(args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, args = _create(name, args, ready, size)
    if ready and mean is None:
        config = model.pretrained_cfg
        mean, std = config["mean"], config["std"]
    wanted = 3 if ready else channels
    network = Network(model, spec, *_normalisation(mean or data_mean, std or data_std, wanted), size, args)
    if not ready and spec.weights != "train":
        load_weights(network, Path(spec.weights))
    return network


def _create(name: str, args: dict[str, Any], pretrained: bool, size: tuple[int, int]) -> tuple[nn.Module, dict[str, Any]]:
    """Create a model, telling it the image size if it is one that must know."""
    sized = {**args, "img_size": tuple(size)}
    try:
        return timm.create_model(name, pretrained=pretrained, **sized), sized
    except TypeError as error:
        if "img_size" not in str(error):
            raise ModelError(f"model '{name}': {error}") from error
    except Exception as error:
        raise ModelError(_why(name, pretrained, error)) from error
    try:
        return timm.create_model(name, pretrained=pretrained, **args), args
    except Exception as error:  # timm and the hub raise what they like; all of it is about this one model
        raise ModelError(_why(name, pretrained, error)) from error


def _why(name: str, pretrained: bool, error: Exception) -> str:
    text = f"model '{name}': {type(error).__name__}: {error}"
    if pretrained:
        text += "\n  to work without a network, put the weights in a file and name it: weights: path/to/model.safetensors"
    return text


def _lists_to_tuples(args: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}


def _normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[Sequence[float], Sequence[float]]:
    if len(mean) == 1 and channels > 1:
        return tuple(mean) * channels, tuple(std) * channels
    if len(mean) != channels:
        raise ModelError(f"mean and std: {len(mean)} numbers for {channels} channels")
    return mean, std


def load_weights(network: Network, path: Path) -> None:
    """Load a weights file strictly into the plain model; ModelError lists what differs.

    .safetensors, or .pt, .pth, .th through torch's weights_only reader, which runs no code from the file.
    """
    state = _read_weights(path)
    own = network.model.state_dict()
    problems = []
    for title, names in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
        problems += _some(title, sorted(names))
    shapes = [f"{k} {tuple(state[k].shape)}, not {tuple(own[k].shape)}" for k in sorted(own.keys() & state.keys()) if state[k].shape != own[k].shape]
    problems += _some("of another shape", shapes)
    problems += _some("not finite", [k for k, v in sorted(state.items()) if v.is_floating_point() and not v.isfinite().all()])
    if problems:
        raise ModelError("\n".join([f"{path}: does not fit the model '{network.spec.name}'", *problems]))
    network.model.load_state_dict(state, strict=True)


def _some(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"  {title}: {', '.join(names[:SHOWN])}{more}"]


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file; weights is train, pretrained, hf-hub:... or a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise, the file is what is wrong
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path}: cannot be read as weights: {first}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: holds no mapping of names to tensors")
    prefix = "module."
    return {key.removeprefix(prefix): value for key, value in state.items()}


def save_ready(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, contiguous, sharing no memory."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}


# --- levels -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairing:
    """Which levels of several networks stand beside each other; ``indices[0]`` is the student's."""

    networks: tuple[Network, ...]
    indices: tuple[tuple[int, ...], ...]

    def describe(self) -> list[str]:
        """One line a pair: stride, then each network's level and shape."""
        lines = []
        for pair in zip(*self.indices, strict=True):
            levels = [network.levels[i] for network, i in zip(self.networks, pair, strict=True)]
            shown = [f"{level.name} ({level.channels}, {level.height}, {level.width})" for level in levels]
            lines.append(f"stride {levels[0].stride}: {shown[0]} <- {', '.join(shown[1:])}")
        return lines


def pair_levels(student: Network, others: Sequence[Network]) -> Pairing:
    """Pair the levels of a student with those of teachers and peers by stride, deepest of each stride.

    Where strides have nothing in common (a transformer's are all alike), levels are paired by relative depth and
    the student's shallower ones beside evenly spread levels of the other. Raises NeedsError for a model without levels.
    """
    networks = (student, *others)
    for network in networks:
        if not network.levels:
            raise NeedsError(f"model '{network.spec.name}' shows no feature levels (no forward_intermediates); choose another")
    by_stride = [{level.stride: i for i, level in enumerate(network.levels)} for network in networks]
    shared = sorted(set.intersection(*(set(strides) for strides in by_stride)))
    if len(shared) >= 2 or (shared and min(len(s) for s in by_stride) == 1 and all(len(s) == 1 for s in by_stride) and len(student.levels) == 1):
        return Pairing(networks, tuple(tuple(strides[s] for s in shared) for strides in by_stride))
    count = min(len(_depths(strides, network)) for strides, network in zip(by_stride, networks, strict=True))
    count = min(count, 4)
    return Pairing(networks, tuple(_spread(_depths(strides, network), count) for strides, network in zip(by_stride, networks, strict=True)))


def _depths(by_stride: Mapping[int, int], network: Network) -> list[int]:
    """Candidate levels: the deepest of each stride, or all of a network whose strides are one."""
    return sorted(by_stride.values()) if len(by_stride) > 1 else list(range(len(network.levels)))


def _spread(candidates: Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` candidates at equal relative depths, the deepest always among them."""
    return tuple(candidates[round((i + 1) * len(candidates) / count) - 1] for i in range(count))


def shapes_of(
    student: Network,
    teachers: Sequence[Network],
    peers: Sequence[Network],
    pairing: Pairing | None,
    num_samples: int,
    image: tuple[int, int, int],
) -> Shapes:
    """What an algorithm is built from."""
    networks = (student, *teachers, *peers)
    indices = pairing.indices if pairing else ((),) * len(networks)
    shapes = [
        ModelShapes(tuple(network.levels[i] for i in chosen), network.pre_logits_width, network.num_classes)
        for network, chosen in zip(networks, indices, strict=True)
    ]
    end = 1 + len(teachers)
    return Shapes(shapes[0], tuple(shapes[1:end]), tuple(shapes[end:]), student.num_classes, num_samples, image)


# --- freezing, folding, counting ------------------------------------------------------------------


def freeze(network: nn.Module) -> None:
    """Eval mode, and no parameter wants a gradient."""
    network.eval()
    network.requires_grad_(False)


def fold_batchnorm(network: Network) -> Network:
    """A copy whose BatchNorms are folded into the convolutions before them, where that is provable.

    The copy answers like the original (checked on a probe); where it does not, or nothing folds, an unfolded copy.
    """
    plain = network.with_model(copy.deepcopy(network.model).eval())
    folded = network.with_model(copy.deepcopy(network.model).eval())
    if not _fold_pairs(folded.model):
        return plain
    parameter = next(network.model.parameters())
    probe = torch.rand(2, len(network.mean), *network.size, device=parameter.device, generator=None)
    with torch.no_grad():
        before, after = plain(probe).logits, folded(probe).logits
    close = torch.allclose(before, after, rtol=1e-3, atol=1e-4 * max(1.0, float(before.abs().max())))
    return folded if close else plain


def _fold_pairs(model: nn.Module) -> int:
    """Fold each BatchNorm that a trace shows to follow one convolution alone; return how many."""
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except Exception:  # not every forward can be traced; then nothing is folded, which costs only time
        return 0
    modules = dict(model.named_modules())
    count = 0
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules.get(node.target), nn.BatchNorm2d):
            continue
        norm, source = modules[node.target], node.args[0]
        if type(norm) is not nn.BatchNorm2d or not norm.track_running_stats:
            continue
        convolution = modules.get(source.target) if getattr(source, "op", "") == "call_module" else None
        if type(convolution) is not nn.Conv2d or len(source.users) != 1:
            continue
        _replace(model, source.target, fuse_conv_bn_eval(convolution, norm))
        _replace(model, node.target, nn.Identity())
        count += 1
    return count


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(network: Network) -> int:
    """Multiply-accumulates of one sample, counted by torch while it runs."""
    device = next(network.model.parameters()).device
    was = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.model(torch.zeros(1, len(network.mean), *network.size, device=device))
    network.train(was)
    return counter.get_total_flops() // 2


def weights_sha256(module: nn.Module) -> str:
    """Hash of all parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
