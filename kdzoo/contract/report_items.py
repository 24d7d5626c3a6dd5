"""What an algorithm may add to the report of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor
from kdzoo.contract.stage import StagePlan, StageResult


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
    """Points, e.g. cost against accuracy; a line joins the points of the group ``front``."""

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


ReportItem = Table | HeatMap | Scatter | Images


class FinishedRun(Protocol):
    """What ``Algorithm.report_items`` may use, after everything that is delivered was measured on the test split.

    ``entries`` are those measurements by label: "teacher" (or "teacher 0" ...), "control", "student", "peer 0" ... and
    the labels of exported files that passed their verification. Labels are for people; an entry's ``network``,
    ``index``, ``format``, ``quantize`` and ``of`` say what it is. ``stages`` are the results of the algorithm's stages,
    in order; ``plan`` is the plan that made them.
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

        It has only the modules that it uses, so its parameters and its latency are those of an early exit.
        """

    def algorithm(self, result: StageResult) -> Any:
        """The trained algorithm of a stage, in eval mode."""

    def ensemble(self, modules: Sequence[torch.nn.Module]) -> torch.nn.Module:
        """The mean probabilities of several modules: inputs as in a batch -> their logarithms (N, K)."""

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
