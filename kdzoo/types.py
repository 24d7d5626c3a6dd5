"""The values that travel through kdzoo. Nothing here imports torch.

Shape letters, one legend for the whole project: N samples, K classes, D embedding,
C channels, H height, W width, L tokens. ``NCHW`` is a batch of maps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


#: What may name an algorithm, a model, a recipe, ...
NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"

Forward = Callable[["Tensor"], "Outputs"]


def stable_hash(value: Any) -> str:
    """Hash JSON-able content; the same in every process and for any key order (64 hex digits)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*parts: int | str) -> int:
    """Derive an independent 63-bit seed from any parts, e.g. ``derive_seed(0, "order", epoch)``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


# --- what an algorithm declares -------------------------------------------------------------


@dataclass(frozen=True)
class Paper:
    """Where an algorithm comes from."""

    title: str
    authors: str
    year: int
    url: str
    equation: str = ""


#: How many an algorithm takes: an exact number, or the least and the most, where None stands for any number.
Count = int | tuple[int, int | None]


@dataclass(frozen=True)
class Needs:
    """What an algorithm needs from the core; anything unmet is refused before training."""

    teachers: Count = 1
    assistants: Count = 0
    peers: Count = 0
    features: bool = False  # paired levels of teacher and student, (N, C, H, W)
    pre_logits: bool = False  # the embedding before the classifier, (N, D)
    sample_index: bool = False  # a stable index of each training sample
    views: int = 1  # differently augmented views of each sample
    data: Literal["labelled", "unlabelled", "none"] = "labelled"
    min_classes: int = 2
    min_batch: int = 1  # samples in a step, for losses between samples
    makes_images: bool = False  # feeds networks images it made up; whoever has no data does so in any case


def bounds(count: Count) -> tuple[int, int | None]:
    """The least and the most of a declared number; no most is None."""
    return (count, count) if isinstance(count, int) else count


@dataclass(frozen=True)
class OwnNetwork:
    """A network that belongs to the algorithm and is trained by an optimizer of its own."""

    module: torch.nn.Module
    optimizer: Mapping[str, Any]  # timm optimizer name, lr and further arguments
    scheduled: bool = True  # whether the recipe's schedule lowers its learning rate too


# --- shapes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """One depth of a backbone; tokens of a transformer count as a grid, those of text as a map of width 1."""

    name: str
    channels: int
    height: int
    width: int
    stride: int


@dataclass(frozen=True)
class ModelShapes:
    """What one model takes and returns: its paired levels, shallow to deep, and its embedding width."""

    levels: tuple[Level, ...]
    pre_logits: int
    num_classes: int
    mean: tuple[float, ...] = (0.0,)  # by which the model normalises pixels in [0, 1], one a channel
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Shapes:
    """What an algorithm is built from. ``levels[i]`` of student and every teacher are a pair."""

    student: ModelShapes
    teachers: tuple[ModelShapes, ...]
    peers: tuple[ModelShapes, ...]
    num_classes: int
    num_samples: int  # in the training split; 0 when the algorithm is handed no data
    image: tuple[int, int, int]  # (C, H, W) of the data set
    classes: tuple[int, ...] = ()  # that the stage knows, see ``Stage``; all where it names none
    earlier: tuple[int, ...] = ()  # those of them that earlier stages taught

    @property
    def teacher(self) -> ModelShapes:
        return self.teachers[0]


# --- one step -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One batch of training data. Pixels are in [0, 1] and not normalised: each model does that.

    Text comes as ids of tokens, filled up to the batch's longest row.
    """

    inputs: Tensor  # (N, C, H, W), float32; text: (N, L), int64
    targets: Tensor  # (N,), int64
    index: Tensor  # (N,), int64, position in the training split
    view: int = 0  # which augmentation of the samples this is
    second_view: Tensor | None = None  # (N, C, H, W), when ``needs.views`` is 2


@dataclass(frozen=True)
class Outputs:
    """What a model returns for a batch; an algorithm is always handed float32."""

    logits: Tensor  # (N, K)
    features: tuple[Tensor, ...] = ()  # one (N, C, H, W) a paired level, shallow to deep; text: (N, D, L, 1), 0 at fill
    pre_logits: Tensor = None  # type: ignore[assignment]  # (N, D), where ``needs.pre_logits`` asks for it

    def float(self) -> Outputs:
        """The same in float32, so that no distillation term is computed in half precision."""
        pre_logits = None if self.pre_logits is None else self.pre_logits.float()
        return Outputs(self.logits.float(), tuple(feature.float() for feature in self.features), pre_logits)


@dataclass(frozen=True)
class Clock:
    """Where training stands. ``step`` counts optimizer steps from 0 over the whole stage."""

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the stage that is done, in [0, 1)."""
        return self.step / max(1, self.steps)


class Draw(Protocol):
    """A fresh CPU generator for a name, fixed by seed and step.

    Each process of a run draws its own numbers, all the same with ``shared``: what decides the shape of a network that
    normalises over the global batch, for example, has to be shared.
    """

    def __call__(self, name: str, shared: bool = False) -> torch.Generator: ...


@dataclass(frozen=True)
class StepContext:
    """All that one training step may read. Fields may be added; none is ever removed.

    Where the algorithm is handed no data, ``batch`` and ``student`` are None and the tuples are empty.
    ``networks`` maps "student", "teacher", ``teacher_<i>`` and ``peer_<i>`` to a callable that runs that
    network on new inputs of the data's range [0, 1]; a teacher there lets gradients through to its
    inputs but has frozen weights.
    """

    batch: Batch
    student: Outputs
    teachers: tuple[Outputs, ...]
    peers: tuple[Outputs, ...]
    clock: Clock
    networks: Mapping[str, Forward]
    task_loss: Callable[[Tensor], Tensor]  # logits (N, K) -> the recipe's loss on the batch's targets
    random: Draw
    device: torch.device
    batch_size: int
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)  # the plain networks, for hooks
    #: Log a scalar of this step under a name: it has no weight and no gradient.
    note: Callable[[str, Tensor | float], None] = lambda name, value: None

    @property
    def teacher(self) -> Outputs:
        return self.teachers[0]


@dataclass(frozen=True)
class Update:
    """One optimizer step: of which network, on which loss.

    ``network`` is "student", ``peer_<i>`` or a name in ``Algorithm.networks()``. ``loss`` maps term names to
    unweighted scalars; the core weighs, sums and logs them.
    """

    network: str
    loss: Mapping[str, Tensor]


# --- stages ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSpec:
    """A model by name: ``weights`` is "train", "pretrained", "hf-hub:...", a file, or "teacher".

    "teacher" starts from the first teacher's weights. A teacher whose weights are ready is used as it is, or, with
    ``finetune``, trained from them; every other model is trained from them in any case.
    """

    name: str
    weights: str = "train"
    args: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)  # overrides of the recipe's train section
    mean: tuple[float, ...] | None = None  # own input normalisation; None: the weights' or the data set's
    std: tuple[float, ...] | None = None
    size: int | None = None  # own input size, pixels
    finetune: bool = False
    reads: str | None = None  # the modality it takes, of those that the data set declares
    arithmetic: str | None = None  # an offered one that it trains in, beside its plain weights; None: float32
    arithmetic_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AlgorithmChoice:
    """An algorithm by name, with options and weights as a recipe would write them."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One phase of training that ends in stored weights.

    Where ``data.labelled`` leaves labels to few samples, a stage that reads labels trains on those, which recur until
    its epoch is as long as one over all samples; one whose algorithm reads none trains on all. ``samples`` overrides
    that.

    ``algorithm`` None trains on the task alone. ``start`` begins from an earlier result's weights instead
    of fresh ones. ``salt`` separates stages that would otherwise be the same and share one seed. ``samples`` are the
    rows of the training split to train on, None for all; ``Batch.index`` stays the row in the whole split.
    ``classes`` are all that the stage knows: samples and logits of others are left out of its validation and of its
    task loss. ``earlier`` are those of them that earlier stages taught: the task loss leaves out their logits too.
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


@dataclass(frozen=True)
class StageResult:
    """A stored stage: a handle, not a live model.

    ``weights`` maps "student" and ``peer_<i>`` to safetensors files, and "algorithm" where the algorithm has
    exhibits; ``metrics`` are of the validation split.
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
    """Stands in a plan that nobody runs, as tests make them."""
    raise LookupError(f"this plan has no run behind it that could be asked for {asked}")


@dataclass(frozen=True)
class StagePlan:
    """What ``Algorithm.stages`` may read: the recipe's models, the algorithm's own choice, and the training split.

    ``outputs(result, samples)`` are a trained network's answers to rows of the training split as they are, in eval
    mode and on the CPU. Where the algorithm is handed no data, there are no ``targets`` and no ``outputs``; where it
    reads no labels, every target is -1, and so is that of a sample whose label ``data.labelled`` keeps back. A
    generator of stages is run again after a kill, so it has to ask the same questions in the same order; what it must
    remember beyond that goes into ``folder``.
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


# --- what an algorithm shows ------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers under heads."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Numbers by row and column, e.g. the accuracy on each task after each task."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot; points of one ``group`` look alike."""

    x: float
    y: float
    label: str = ""
    group: str = ""


@dataclass(frozen=True)
class Scatter:
    """Points, e.g. cost against accuracy; those of the group ``front`` are joined by a line."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    front: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Images:
    """Pictures (N, C, H, W) in [0, 1], e.g. synthetic samples; of other than 1 or 3 channels their mean is shown."""

    title: str
    images: Tensor
    captions: tuple[str, ...] = ()
    note: str = ""


Exhibit = Table | HeatMap | Scatter | Images


class Bench(Protocol):
    """What ``Algorithm.exhibits`` may use, after everything that is delivered was measured on the test split.

    ``entries`` are those measurements by label: "teacher" (or "teacher 0" ...), "control", "student", "peer 0" ...
    and the labels of exported files. ``stages`` are the results of the algorithm's stages, in order; ``plan`` is the
    one that they were made by.
    """

    options: Any
    plan: StagePlan
    classes: tuple[str, ...]
    student: StageResult
    teachers: tuple[StageResult, ...]
    control: StageResult | None
    stages: tuple[StageResult, ...]
    entries: Mapping[str, Mapping[str, Any]]

    def network(self, result: StageResult, which: str = "student", levels: Sequence[str] = ()) -> torch.nn.Module:
        """A stage's trained network in eval mode: inputs as in a batch -> ``Outputs``, with the levels so named.

        Called with ``pre_logits=True`` it gives the embedding too, where the network has one.
        """

    def section(self, result: StageResult, level: str, which: str = "student") -> torch.nn.Module:
        """The same network cut off after a level: inputs as in a batch -> features (N, C, H, W).

        It holds only what it computes with, so that its parameters and its latency are those of an early exit.
        """

    def algorithm(self, result: StageResult) -> Any:
        """The algorithm of a stage with all that it had learnt, in eval mode."""

    def ensemble(self, modules: Sequence[torch.nn.Module]) -> torch.nn.Module:
        """The mean of what some modules hold for probable: inputs as in a batch -> logarithms of it (N, K)."""

    def predict(self, module: torch.nn.Module) -> tuple[Any, Any]:
        """Logits (N, K) and targets (N,) of the test split, numpy; ``module`` returns ``Outputs`` or logits."""

    def measure(self, modules: Mapping[str, torch.nn.Module]) -> list[dict[str, Any]]:
        """Measure further ways to answer, e.g. exits or an ensemble; they are listed in the report as variants.

        Their latency is taken in turn with the student's; ``latency_ratio`` is to that.
        """

    def log(self, result: StageResult) -> list[dict[str, Any]]:
        """A stage's rows of metrics.jsonl."""

    def random(self, name: str) -> torch.Generator:
        """A fresh CPU generator, fixed by the recipe's seed and the name."""
