"""What an algorithm declares of itself, and the shapes that it is built from. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Paper:
    """Where an algorithm comes from."""

    title: str
    authors: str
    year: int
    url: str
    equation: str = ""


#: How many an algorithm takes: an exact number, or the least and the most; None as the most means no limit.
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
    #: Samples that all have a label; with and without one, where labels are read by ``ctx.task_loss`` alone; without
    #: any; no samples.
    data: Literal["labelled", "any", "unlabelled", "none"] = "labelled"
    min_classes: int = 2
    min_batch: int = 1  # samples in a step, for losses between samples
    #: The least of a teacher that is enough: its network, its logits of each training sample, or the likeliest classes
    #: of these with the sum of the rest. With less than its network, stored answers will do.
    of_teacher: Literal["network", "logits", "top_k"] = "network"
    makes_images: bool = False  # makes its own images; always true of an algorithm without data


def bounds(count: Count) -> tuple[int, int | None]:
    """The least and the most of a declared number; None as the most means no limit."""
    return (count, count) if isinstance(count, int) else count


@dataclass(frozen=True)
class OwnNetwork:
    """A network that belongs to the algorithm and has its own optimizer."""

    module: torch.nn.Module
    optimizer: Mapping[str, Any]  # timm optimizer name, lr and further arguments
    scheduled: bool = True  # whether the recipe's schedule lowers its learning rate too


@dataclass(frozen=True)
class Level:
    """One depth of a backbone; tokens of a transformer form a grid, tokens of text a map of width 1."""

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
    mean: tuple[float, ...] = (0.0,)  # with which the model normalises pixels in [0, 1], one per channel
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Shapes:
    """What an algorithm is built from. ``levels[i]`` of student and every teacher are a pair."""

    student: ModelShapes
    teachers: tuple[ModelShapes, ...]
    peers: tuple[ModelShapes, ...]
    num_classes: int
    num_samples: int  # in the training split; 0 if the algorithm gets no data
    image: tuple[int, int, int]  # (C, H, W) of the data set
    classes: tuple[int, ...] = ()  # of the stage, see ``Stage``; all if it names none
    earlier: tuple[int, ...] = ()  # the ones among them that earlier stages taught

    @property
    def teacher(self) -> ModelShapes:
        return self.teachers[0]
