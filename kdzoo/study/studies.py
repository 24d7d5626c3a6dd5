"""A whole study: its runs made by an executor, ranked and written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdzoo.contract.execution import Executor
from kdzoo.recipe.budget_section import BudgetRecipe
from kdzoo.recipe.study_sections import LoadedStudy
from kdzoo.storage.atomic import probe_writable, write_text
from kdzoo.study.arms import Arm, arms_of, baseline_of
from kdzoo.study.driver import run_all
from kdzoo.study.measuring import measured
from kdzoo.study.ranking import ranked
from kdzoo.study.trials import Place, choose_arms, delivered_again
from kdzoo.study.wanted import RunOutcome, Watch
from kdzoo.study.writing import write_study
from kdzoo.zoo.offered import Zoo


@dataclass(frozen=True)
class StudyPlan:
    """What a study is to do: arms over seeds. Its folder is ``<out>/<name>/study``.

    With a budget, of the arms those whose student is chosen.
    """

    name: str
    description: str
    arms: Sequence[Arm]
    seeds: Sequence[int]
    baseline: str | None
    command: str | None = None
    budget: BudgetRecipe | None = None

    def folder(self, out: Path) -> Path:
        """Return the study's own folder."""
        return out / self.name / "study"


def plan_of(loaded: LoadedStudy, zoo: Zoo, overrides: Sequence[str] = (), command: str | None = None) -> StudyPlan:
    """Return what a study is to do; ``overrides`` are of its recipes. Raises as ``arms_of``."""
    study, arms = loaded.study, arms_of(loaded, zoo, overrides)
    baseline = baseline_of(loaded, arms)
    return StudyPlan(study.name, study.description, arms, study.all_seeds, baseline, command, study.budget)


@dataclass(frozen=True)
class StudyOutcome:
    """A study that was written: its folder, the content of study.json, and what came of each run."""

    folder: Path
    content: dict[str, Any]
    runs: Sequence[RunOutcome]

    @property
    def failed(self) -> list[RunOutcome]:
        """The runs that failed."""
        return [run for run in self.runs if run.status == "failed"]


def run_study(
    plan: StudyPlan,
    executor: Executor,
    out: Path,
    zoo: Zoo,
    *,
    stop: Callable[[], int] = lambda: 0,
    watch: Watch | None = None,
) -> StudyOutcome:
    """Make all runs of a study by an open executor, and write study.json, study.csv and report.html.

    A failed run leaves the others; its error and its last output are in ``logs/``. Raises Interrupted once ``stop``
    returns a signal's number; the same call goes on.
    """
    folder, begin = plan.folder(out), time.monotonic()
    probe_writable(folder)
    arms, choice, place = plan.arms, None, Place(executor, out, zoo, stop, watch, folder)
    if plan.budget is not None:
        choice, arms = choose_arms(plan.budget, arms, plan.seeds, place)
    runs = [run for arm in arms for run in arm.runs(plan.seeds)]
    outcomes = run_all(runs, executor, out, zoo, stop=stop, watch=watch, uses=folder)
    for outcome in outcomes:
        if outcome.status == "failed":
            write_log(folder, outcome)
    content = ranked(
        measured(
            plan.name,
            plan.description,
            arms,
            outcomes,
            zoo,
            baseline=plan.baseline,
            seconds=time.monotonic() - begin,
            command=plan.command,
        )
    )
    if choice is not None:
        content |= choice.record(delivered_again(choice, outcomes, place))
    write_study(folder, content)
    return StudyOutcome(folder, content, outcomes)


def log_of(folder: Path, outcome: RunOutcome) -> Path:
    """Return where the log of a failed run is written."""
    return folder / "logs" / f"{outcome.run.loaded.recipe.name}-seed{outcome.run.seed}.log"


def write_log(folder: Path, outcome: RunOutcome) -> None:
    """Write why a run failed, with the last output of its task."""
    path = log_of(folder, outcome)
    probe_writable(path.parent)
    write_text(path, f"{outcome.run.title}\n\n{outcome.error}\n\n{outcome.log}".rstrip() + "\n")
