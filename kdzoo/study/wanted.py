"""What a study asks its driver for, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from kdzoo.contract.stage import StageResult
from kdzoo.recipe.reading import LoadedRecipe
from kdzoo.run.stage_runner import Trained

Status = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class WantedRun:
    """A run to make: a recipe with its seed. ``label`` is that of its arm; runs of one arm differ in the seed only."""

    label: str
    loaded: LoadedRecipe

    @property
    def seed(self) -> int:
        return self.loaded.recipe.seed

    @property
    def title(self) -> str:
        return f"{self.loaded.recipe.name} seed {self.seed}"


@dataclass
class RunOutcome:
    """What came of a run. Of a failed one there is an error, and the last output of its task.

    ``stages`` and ``student`` are the results of its stages, and ``training_pmacs`` is what they cost, once all are
    stored; of a run that was ``finished_before``, if they still are. ``folder`` and ``results``, the content of
    results.json, are of a finished run.
    """

    run: WantedRun
    status: Status = "stopped"
    folder: Path | None = None
    results: Mapping[str, Any] | None = None
    stages: Sequence[Trained] = ()
    student: StageResult | None = None
    training_pmacs: Mapping[str, float] | None = None
    error: Exception | None = None
    log: str = ""
    finished_before: bool = False


@dataclass(frozen=True)
class Going:
    """A task that goes on: its name, what it said last, and how many runs wait for it."""

    name: str
    told: Mapping[str, Any]
    runs: int


@dataclass(frozen=True)
class Overview:
    """How far the whole is. ``stages`` are those that were missing, as far as that is known; ``trained`` is of them."""

    going: Sequence[Going]
    stages: int
    trained: int
    runs: int
    finished: int
    failed: int


class Watch(Protocol):
    """Who is told how the work goes on."""

    def note(self, text: str, tone: str = "") -> None:
        """Hear of something that stays worth knowing, on one line."""

    def overview(self, overview: Overview) -> None:
        """See how far all is; many times a second."""


class Unwatched:
    """Nobody looks."""

    def note(self, text: str, tone: str = "") -> None: ...
    def overview(self, overview: Overview) -> None: ...
