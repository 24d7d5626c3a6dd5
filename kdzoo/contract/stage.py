"""Stages of training: models, algorithms and results by name, and what a plan may ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdzoo.contract.step import Outputs


@dataclass(frozen=True)
class ModelSpec:
    """A model by name: ``weights`` is "train", "pretrained", "hf-hub:...", a file, "teacher", or "answers:<folder>".

    "answers:" is for a teacher that is known by its stored answers only, so that no network of it is built. "teacher"
    starts from the first teacher's weights. A teacher whose weights are ready is used as it is, or, with ``finetune``,
    trained from them; every other model is trained from them in any case.
    """

    name: str
    weights: str = "train"
    args: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)  # overrides of the recipe's train section
    mean: tuple[float, ...] | None = None  # own input normalisation; None: the weights' or the data set's
    std: tuple[float, ...] | None = None
    size: int | tuple[int, int] | None = None  # own input size, pixels: one number, or (H, W)
    finetune: bool = False
    modality: str | None = None  # the modality it takes, of those that the data set declares
    quantizer: str | None = None  # name of the quantizer that it trains in; None: float32
    quantizer_options: Mapping[str, Any] = field(default_factory=dict)
    weights_key: str | None = None  # below which key of the file the weights lie; None: the first known one
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # further own steps from a file, by their keys
    as_is: bool = False  # a teacher that is used with its ready weights; it has its own steps from a file to pixels

    @property
    def answers(self) -> str | None:
        """The folder of stored answers in the place of this model's network; None for a network."""
        return self.weights.removeprefix("answers:") if self.weights.startswith("answers:") else None


@dataclass(frozen=True)
class AlgorithmChoice:
    """An algorithm by name, with options and weights as a recipe would write them."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One phase of training that ends in stored weights.

    If some samples have no label, or ``data.labelled`` hides it, a stage that reads every label trains on the samples
    that have one; they recur until its epoch is as long as one over all samples. A stage whose algorithm takes any
    samples, or reads no labels, trains on all. ``samples`` overrides both. With ``teaches`` the stage trains a teacher:
    it has the labels that ``data.labelled`` hides, and its epoch is over the samples with a label.

    ``algorithm`` None trains on the task alone. ``start`` begins from an earlier result's weights instead of fresh
    ones. ``salt`` separates stages that would otherwise be the same and share one seed. ``samples`` are the rows of the
    training split to train on, None for all; ``Batch.index`` stays the row in the whole split. ``classes`` are all
    classes of the stage: its validation and its task loss leave out samples and logits of others. ``earlier`` are the
    classes among them that earlier stages taught: the task loss leaves out their logits too.
    """

    name: str
    model: ModelSpec
    algorithm: AlgorithmChoice | None = None
    teachers: tuple[StageResult, ...] = ()
    peers: tuple[ModelSpec, ...] = ()
    start: StageResult | None = None
    train: Mapping[str, Any] = field(default_factory=dict)  # overrides of the recipe's train section
    salt: str = ""
    samples: tuple[int, ...] | None = None
    classes: tuple[int, ...] | None = None
    earlier: tuple[int, ...] = ()
    teaches: bool = False


@dataclass(frozen=True)
class StageResult:
    """A stored stage: a handle, not a live model.

    ``weights`` maps "student" and ``peer_<i>`` to safetensors files, and "algorithm" if the algorithm has report items;
    ``metrics`` are of the validation split.
    """

    name: str
    key: str
    model: ModelSpec
    weights: Mapping[str, Path]
    metrics: Mapping[str, float]
    peers: tuple[ModelSpec, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Costs:
    """What a network costs before it is trained."""

    params_m: float  # millions of parameters
    macs_g: float  # billions of multiply-accumulates of one sample


def _nothing_to_ask(*asked: Any) -> Any:
    """Placeholder in a plan without a run, for dry runs and tests."""
    raise LookupError(f"this plan has no run behind it that could be asked for {asked}")


@dataclass(frozen=True)
class StagePlan:
    """What ``Algorithm.stages`` may read: the recipe's models, the algorithm's own choice, and the training split.

    ``outputs(result, samples)`` are a trained network's answers to rows of the training split without augmentation, in
    eval mode and on the CPU. If the algorithm gets no data, there are no ``targets`` and no ``outputs``. If it reads no
    labels, every target is -1; so is the target of a sample without a label. After a kill
    the generator of stages runs again, so it must ask the same questions in the same order; anything else that it must
    keep goes into ``folder``.
    """

    student: ModelSpec
    teachers: tuple[StageResult, ...]
    assistants: tuple[ModelSpec, ...]
    peers: tuple[ModelSpec, ...]
    own: AlgorithmChoice  # this algorithm with the recipe's options and weights
    delegate: AlgorithmChoice | None  # the algorithm that ``Algorithm.delegate`` names, if any
    options: Any  # this algorithm's own Options, validated
    num_classes: int = 0
    seed: int = 0
    targets: tuple[int, ...] = ()  # (number of training samples,)
    outputs: Callable[[StageResult, Sequence[int]], Outputs] = _nothing_to_ask  # logits and pre_logits
    costs: Callable[[ModelSpec], Costs] = _nothing_to_ask
    latency: Callable[[ModelSpec], float] = _nothing_to_ask  # of one sample, ms; timed once a machine, then the same
    folder: Path | None = None  # survives kills; None where nothing is trained
    train: Mapping[str, Any] = field(default_factory=dict)  # the recipe's train section, as the student trains by it
