"""Commands that run a recipe, or say what a run of it would do."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdzoo.cli.arguments import Out, Overrides, RecipeFile, all_overrides
from kdzoo.cli.opening import resolve
from kdzoo.terminal import Display, folded, say, stop_signals, warn, width

commands = typer.Typer()

LABEL = 10  # columns of what a line of `check` is about


@commands.command()
def run(
    recipe: RecipeFile,
    override: Overrides = None,
    out: Out = Path("runs"),
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start a new run even if one waits to be resumed.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume, and refuse to start afresh.")] = False,
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=1024, help="Processes of this machine that train together.")
    ] = 1,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, max=10_000, help="Run seeds 0, 1, 2 ... instead, as a study.")
    ] = None,
) -> None:
    """Train teacher, control and student, export, and write a report."""
    overrides = all_overrides(override, device, seed)
    if seeds is not None:
        others = {"--seed": seed is not None, "--new": new, "--resume": resume, "--processes": processes > 1}
        _run_seeds(recipe, overrides, out, seeds, [flag for flag, given in others.items() if given])
        return
    if processes > 1:
        flags = [flag for flag, wanted in (("--new", new), ("--resume", resume)) if wanted]
        raise typer.Exit(_launch(recipe, overrides, out, flags, processes))
    folder, results = _run(recipe, overrides, out, new, resume)
    if results is None:
        return
    from kdzoo.report.compare import comparison_parts

    for text, tone in comparison_parts(results, width()):
        say(text, tone=tone)
    for warning in results["warnings"]:
        warn(f"warning: {warning}")
    say(f"run folder: {folder}")
    from kdzoo.run.exporting import check_rejected

    check_rejected(results["exports"])  # last, as the run is whole without the file


def _run_seeds(recipe: Path, overrides: list[str], out: Path, seeds: int, others: list[str]) -> None:
    """Run a recipe over its first seeds, as the smallest study."""
    if others:
        raise typer.BadParameter("cannot be combined with --seeds", param_hint=", ".join(others))
    from kdzoo.cli.studies import make_study, show_study, study_of_seeds
    from kdzoo.storage.atomic import probe_writable

    probe_writable(out)
    loaded, _, zoo = resolve(recipe, overrides)
    command = " ".join(["kdzoo run", str(recipe), *(f"-o {each}" for each in overrides), f"--seeds {seeds}"])
    show_study(make_study(study_of_seeds(loaded, zoo, seeds, command), zoo, out))


def _launch(recipe: Path, overrides: list[str], out: Path, flags: list[str], processes: int) -> int:
    """Run the same command in several processes; return their exit code."""
    from kdzoo.errors import RecipeError
    from kdzoo.recipe.bundled import known_recipe
    from kdzoo.recipe.reading import load_recipe
    from kdzoo.run.launching import check_not_started, check_processes, run_processes

    check_not_started()
    try:
        loaded = load_recipe(known_recipe(recipe), overrides)
    except RecipeError:
        loaded, _, _ = resolve(recipe, overrides)  # which raises with what the plugins know to be wrong, too
    with loaded.located():
        check_processes(loaded.recipe, processes)
    keys = [part for override in overrides for part in ("-o", override)]
    command = [sys.executable, "-m", "kdzoo", "run", str(recipe), *keys, "--out", str(out), *flags]
    return run_processes(command, processes, warn)


def _run(
    recipe: Path, overrides: list[str], out: Path, new: bool = False, resume: bool = False
) -> tuple[Path, dict[str, Any] | None]:
    """Run a recipe; results are None on every process but the first."""
    from kdzoo.storage.atomic import probe_writable

    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        probe_writable(out)
        if not new:
            note_finished(recipe, overrides, out)
    loaded, plan, zoo = resolve(recipe, overrides)

    from kdzoo.run.launching import orphaned
    from kdzoo.run.running import run_plan
    from kdzoo.training.parallel import Ranks

    with loaded.located():
        ranks = Ranks(plan.recipe.device)
        display = Display(silent=not ranks.first)
        with ranks.together(), stop_signals() as asked:

            def stop() -> int:
                return asked() or (signal.SIGTERM if orphaned() else 0)

            folder, results, before = run_plan(plan, zoo, out, ranks, display, stop, new=new, resume=resume)
    if before and results is not None:
        say(f"already finished: {folder}; --new starts another run")
    return folder, results


def note_finished(recipe: Path, overrides: list[str], out: Path) -> None:
    """Say that a recipe has finished before, ahead of all that takes seconds: whether that run counts is seen later."""
    from kdzoo.plan.filled import filled
    from kdzoo.plan.opening import known_recipe_of
    from kdzoo.recipe.reading import recipe_hash
    from kdzoo.storage.runs import finished_run
    from kdzoo.zoo.catalogue import catalogue

    found = filled(known_recipe_of(recipe, overrides).recipe, catalogue())
    folder = finished_run(out, found.name, found.seed, recipe_hash(found))
    if folder is not None:
        warn(f"{folder} has finished; comparing its data, code and versions with those of now")


@commands.command()
def check(recipe: RecipeFile, override: Overrides = None) -> None:
    """Validate a recipe, build its models, and run one dry forward."""
    loaded, plan, zoo = resolve(recipe, list(override or []))
    from kdzoo.run.runner import Runner
    from kdzoo.storage.store import Store

    with loaded.located():
        for line in Runner(plan, zoo, None, Store(Path("runs/.store"))).check():
            say(folded(line, width(), hanging=LABEL))


@commands.command()
def verify(
    recipe: RecipeFile,
    override: Overrides = None,
    out: Out = Path("runs"),
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="How many seeds; the recipe's own number if left out.")
    ] = None,
) -> None:
    """Re-run a recipe over its seeds and hold the result against its `expected`."""
    from kdzoo.contract.classification import quality
    from kdzoo.errors import RecipeError, VerifyError
    from kdzoo.recipe.bundled import known_recipe
    from kdzoo.recipe.reading import load_recipe
    from kdzoo.study.expected import hold_against

    path = known_recipe(recipe)
    expected = load_recipe(path, list(override or [])).recipe.expected
    if expected is None:
        raise RecipeError(f"{path}: has no 'expected' section, so there is nothing to verify; it was never reproduced")
    results = []
    for seed, (folder, result) in enumerate(_over_seeds(path, list(override or []), out, seeds or expected.seeds)):
        if result is not None:  # every process but the first only takes part
            results.append(result)
            say(f"seed {seed}: student {quality(result['student']):.2f} %  ({folder})")
    if not results:
        return
    verdict = hold_against(expected, results)
    say(verdict.text)
    from kdzoo.run.exporting import check_rejected

    check_rejected([entry for result in results for entry in result["exports"]])
    if verdict.problem:
        raise VerifyError(f"{path}: {verdict.problem}")


def _over_seeds(path: Path, overrides: list[str], out: Path, seeds: int) -> list[tuple[Path, dict[str, Any] | None]]:
    """Run a recipe over its first seeds; by worker processes, unless this process is one of a distributed run."""
    if "WORLD_SIZE" in os.environ:
        return [_run(path, [*overrides, f"seed={seed}"], out) for seed in range(seeds)]
    from kdzoo.cli.studies import make_runs, study_of_seeds
    from kdzoo.storage.atomic import probe_writable

    probe_writable(out)
    loaded, _, zoo = resolve(path, overrides)
    outcomes = make_runs(study_of_seeds(loaded, zoo, seeds, ""), zoo, out)
    made: list[tuple[Path, dict[str, Any] | None]] = []
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        assert outcome.folder is not None, "it is finished"
        made.append((outcome.folder, dict(outcome.results or {})))
    return made
