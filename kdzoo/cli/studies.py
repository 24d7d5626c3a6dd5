"""Commands that make many runs: a study, and one recipe over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdzoo.cli.arguments import Out, Overrides, possible_path
from kdzoo.cli.completion import study_names
from kdzoo.cli.opening import warn_of_plugins
from kdzoo.terminal import StudyScreen, say, stop_signals, warn, width

if TYPE_CHECKING:
    from kdzoo.recipe.reading import LoadedRecipe
    from kdzoo.study.studies import StudyOutcome, StudyPlan
    from kdzoo.study.wanted import RunOutcome
    from kdzoo.zoo.offered import Zoo

commands = typer.Typer()

StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        callback=possible_path,
        autocompletion=study_names,
        help="A study's file, or the name of a bundled one.",
    ),
]
On = Annotated[
    str, typer.Option("--on", metavar="EXECUTOR", help="Where it runs: local, or another of `kdzoo list executors`.")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=10_000, help="Tasks that run at once; what there is room for if left out."),
]


@commands.command()
def study(
    file: StudyFile, override: Overrides = None, out: Out = Path("runs"), on: On = "local", workers: Workers = None
) -> None:
    """Compare algorithms, students and settings over seeds; the same command goes on after a kill."""
    from kdzoo.recipe.bundled import find_recipe
    from kdzoo.recipe.study_sections import load_study
    from kdzoo.storage.atomic import probe_writable
    from kdzoo.study.studies import plan_of
    from kdzoo.zoo.loading import load_zoo

    loaded = load_study(find_recipe(file))
    probe_writable(out)
    zoo = load_zoo()
    warn_of_plugins(zoo)
    command = " ".join(["kdzoo study", str(file), *(f"-o {each}" for each in override or [])])
    plan = plan_of(loaded, zoo, list(override or []), command)
    show_study(make_study(plan, zoo, out, on, workers))


def study_of_seeds(loaded: LoadedRecipe, zoo: Zoo, seeds: int, command: str) -> StudyPlan:
    """The smallest study: one recipe as it is, over its seeds."""
    from kdzoo.study.arms import Arm
    from kdzoo.study.studies import StudyPlan

    recipe = loaded.recipe
    arms = [Arm(recipe.name, loaded, {}, unchanged=True)]
    return StudyPlan(recipe.name, recipe.description, arms, range(seeds), None, command)


def make_study(plan: StudyPlan, zoo: Zoo, out: Path, on: str = "local", workers: int | None = None) -> StudyOutcome:
    """Run a study by the executor that ``on`` names, and show how it goes on."""
    from kdzoo.study.executors import opened_executor
    from kdzoo.study.studies import run_study

    opened = opened_executor(on, workers, plan.folder(out), zoo)
    with stop_signals() as asked, opened as executor, StudyScreen() as screen:
        return run_study(plan, executor, out, zoo, stop=asked, watch=screen)


def make_runs(plan: StudyPlan, zoo: Zoo, out: Path) -> list[RunOutcome]:
    """Make the runs of a study by processes of this machine, without ranking them, and show how it goes on."""
    from kdzoo.study.driver import run_all
    from kdzoo.study.executors import opened_executor

    runs = [run for arm in plan.arms for run in arm.runs(plan.seeds)]
    opened = opened_executor("local", None, plan.folder(out), zoo)
    with stop_signals() as asked, opened as executor, StudyScreen() as screen:
        return run_all(runs, executor, out, zoo, stop=asked, watch=screen)


def show_study(outcome: StudyOutcome) -> None:
    """Print the ranking and where all lies; end with exit code 1 if a run failed."""
    from kdzoo.report.budget_text import budget_text, missed_budget
    from kdzoo.report.study_table import study_parts
    from kdzoo.study.driver import first_line
    from kdzoo.study.studies import log_of

    if budget := budget_text(outcome.content, width()):
        say(f"{budget}\n")
    for text, tone in study_parts(outcome.content, width()):
        say(text, tone=tone)
    say(f"study folder: {outcome.folder}")
    for run in outcome.failed:
        assert run.error is not None, "a failed run says why"
        warn(f"failed: {run.run.title}: {first_line(run.error)}\n  log: {log_of(outcome.folder, run)}")
    if outcome.failed:
        warn(f"{len(outcome.failed)} of {len(outcome.runs)} runs failed; the same command tries them again")
        raise typer.Exit(1)
    if missed := missed_budget(outcome.content):
        warn(f"the delivered student misses its budget: {', '.join(missed)}")
        raise typer.Exit(1)
