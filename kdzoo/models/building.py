"""Building a network by name, with its weights."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, load_model_config_from_hf
from torch import nn

from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Inputs, Pixels
from kdzoo.errors import ModelError, UnknownName, in_words, nearest
from kdzoo.models.network import Network
from kdzoo.models.preprocessing import timm_preprocessing, written_preprocessing
from kdzoo.models.weights import load_weights

#: A network takes at least the room of this many of its inputs.
MAPS = 16
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
    inputs: Inputs,
    num_classes: int,
    seed: int,
    load: bool = True,
) -> Network:
    """Build a network by name, initialised under ``seed``, and bring in its weights.

    ``inputs`` are the data set's. The network's size and normalisation are those of ``spec``; a size it does not name
    is the data set's, a normalisation it does not name that of its pretrained weights, else the data set's.
    ``load=False`` builds the very same network without reading its weights, for a caller that has others. Raises
    UnknownName and ModelError.
    """
    inputs = _of_modality(spec, inputs)
    _check_spec(spec)
    _check_inputs(spec, inputs)
    origin = _origin(spec)
    if isinstance(inputs, Pixels):
        network = _image_network(spec, inputs, num_classes, origin, seed, load)
    else:
        args = {**inputs.model_args(), **origin.args, **spec.args, "num_classes": num_classes}
        model = _create(spec, origin, args, seed, pretrained=load and origin.ready)
        network = Network(model, spec, inputs=inputs, num_classes=num_classes, create_args=args)
    if load and not origin.ready and spec.weights not in ("train", "teacher"):
        network.read_from = load_weights(network, Path(spec.weights).expanduser(), spec.weights_key)
    return network


def _image_network(spec: ModelSpec, inputs: Pixels, num_classes: int, origin: Origin, seed: int, load: bool) -> Network:
    """Build a network that takes maps (N, C, H, W), in the channels, size and normalisation that suit its weights."""
    settings = origin.settings
    ready = settings if origin.ready else None
    steps = _own_steps(spec, inputs, settings)
    size = steps.size if steps is not None else inputs.size if spec.size is None else _pair(spec.size)
    _check_room(spec, inputs.channels, size)
    # Ready weights see grey images as three equal channels; a fresh network has as many channels as the data.
    own_channels = ready.input_size[0] if ready is not None and inputs.channels == 1 else inputs.channels
    if steps is not None and (spec.as_is or "color_mode" in spec.preprocessing):
        own_channels = steps.channels
    args = {"in_chans": own_channels, **origin.args, **spec.args, "num_classes": num_classes}
    if settings is not None and settings.fixed_input_size:
        args.setdefault("img_size", size)
    model = _create(spec, origin, args, seed, pretrained=load and origin.ready)
    in_chans = int(args["in_chans"])
    if inputs.channels not in (1, in_chans):
        raise ModelError(
            f"model '{spec.name}': takes {in_chans} channels, the data has {inputs.channels}; leave out in_chans"
        )
    mean, std = spec.mean, spec.std
    if steps is not None and spec.as_is:
        mean, std = steps.mean, steps.std
    if mean is None or std is None:
        use_own = ready is not None and len(ready.mean) == in_chans
        mean, std = (ready.mean, ready.std) if ready is not None and use_own else (inputs.mean, inputs.std)
    if len(mean) not in (1, in_chans) or len(std) != len(mean):
        raise ModelError(
            f"model '{spec.name}': takes {in_chans} channels, its mean has {len(mean)} numbers and its std {len(std)}"
        )
    repeat = in_chans // len(mean)
    if steps is not None:
        steps = replace(steps, mean=tuple(mean)[: steps.channels], std=tuple(std)[: steps.channels])
    taken = inputs.of_model(in_chans, size, tuple(mean) * repeat, tuple(std) * repeat, steps)
    network = Network(model, spec, inputs=taken, num_classes=num_classes, create_args=args)
    network.fresh_head = ready is not None and ready.num_classes != num_classes
    return network


def data_preprocessing(student: ModelSpec) -> Preprocessing:
    """Return the steps from an image file to pixels that a data set takes over from its student's timm config."""
    _check_spec(student)
    return timm_preprocessing(student, _origin(student).settings)


def own_preprocessing(teacher: ModelSpec) -> Preprocessing:
    """Return the steps of a teacher that is used with its ready weights, where its spec says nothing else."""
    _check_spec(teacher)
    return written_preprocessing(teacher) or timm_preprocessing(teacher, _origin(teacher).settings)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _own_steps(spec: ModelSpec, inputs: Pixels, settings: PretrainedCfg | None) -> Preprocessing | None:
    """Return the steps from an image file to what a network takes; None where samples come otherwise.

    Those of a teacher that is used as it is are its weights' own; any other network is trained on the data's.
    """
    if inputs.preprocessing is None:
        if spec.preprocessing:
            raise ModelError(
                f"model '{spec.name}': preprocessing.{next(iter(spec.preprocessing))} is for image files, and the data "
                "set has none"
            )
        return None
    steps = inputs.preprocessing
    if spec.as_is:
        steps = written_preprocessing(spec) or timm_preprocessing(spec, settings)
    given = {"size": spec.size, "mean": spec.mean, "std": spec.std}
    steps = steps.changed({**spec.preprocessing, **{key: value for key, value in given.items() if value is not None}})
    if steps.channels != inputs.channels and inputs.channels != 1:
        raise ModelError(
            f"model '{spec.name}': takes {steps.color_mode}, and data.preprocessing.color_mode is "
            f"{inputs.preprocessing.color_mode}; in training all networks see the same images, so both must be one"
        )
    return steps


def _check_room(spec: ModelSpec, channels: int, size: tuple[int, int]) -> None:
    """Raise ModelError where a sample is so large that the maps of a network cannot fit into the memory."""
    sample, memory = 4 * channels * size[0] * size[1], memory_bytes()
    if MAPS * sample > memory:
        raise ModelError(
            f"model '{spec.name}': one input of {channels} x {size[0]} x {size[1]} takes {sample / 2**30:.2g} GiB, and "
            f"its maps at least {MAPS} times that; this machine has {memory / 2**30:.2g} GiB; choose a smaller size"
        )


def memory_bytes() -> int:
    """Return the size of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_modality(spec: ModelSpec, inputs: Inputs) -> Inputs:
    """Return what of a data set's inputs a model reads: one modality, or everything where there are none."""
    modalities = inputs.modalities if isinstance(inputs, Pixels) else {}
    if spec.modality is None and not modalities:
        return inputs
    known = ", ".join(modalities)
    if not modalities or not isinstance(inputs, Pixels):
        raise ModelError(f"model '{spec.name}': reads '{spec.modality}', but the data set declares no modalities")
    if spec.modality is None:
        raise ModelError(f"model '{spec.name}': which modality it reads is not said; modality: one of {known}")
    if spec.modality not in modalities:
        raise ModelError(
            f"model '{spec.name}': reads '{spec.modality}'{nearest(spec.modality, list(modalities))}; known: {known}"
        )
    return inputs.of_modality(spec.modality)


def _check_inputs(spec: ModelSpec, inputs: Inputs) -> None:
    """A network for text is made from ``tokens``, which one for images does not take."""
    reads_text = "tokens" in inspect.signature(timm.model_entrypoint(spec.name)).parameters
    if reads_text != (inputs.kind == "text"):
        raise ModelError(
            f"model '{spec.name}': reads {'text' if reads_text else 'images'}, the data set has "
            f"{'images' if reads_text else 'text'}; choose another model or data set"
        )
    given = [*(name for name in ("mean", "std", "size") if getattr(spec, name) is not None), *spec.preprocessing]
    if reads_text and given:
        raise ModelError(f"model '{spec.name}': reads text, which has no preprocessing.{given[0]}; leave it out")


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
            raise ModelError(f"model '{spec.name}': cannot be built with {shown}: {in_words(error)}") from error


def _unreachable(spec: ModelSpec, error: Exception) -> ModelError:
    return ModelError(
        f"model '{spec.name}': no weights from '{spec.weights}': {in_words(error)}\n  Fetch them once where there is a "
        "network (they stay in the cache), or give a file: weights: <path>.safetensors"
    )
