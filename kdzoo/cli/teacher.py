"""Commands about a recipe's teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli.arguments import Overrides, RecipeFile, all_overrides, possible_path
from kdzoo.cli.opening import resolve
from kdzoo.terminal import Display, say, stop_signals

commands = typer.Typer()
teacher = typer.Typer(help="Let a recipe's teacher work without a student.", no_args_is_help=True)
commands.add_typer(teacher, name="teacher")


@teacher.callback()
def _teacher() -> None: ...


@teacher.command()
def answer(
    recipe: RecipeFile,
    override: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", callback=possible_path, help="The folder of answers; answers/<recipe's name>."
        ),
    ] = None,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", callback=possible_path, help="Where runs and the store are.")
    ] = Path("runs"),
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")] = None,
) -> None:
    """Let the teacher answer every view of the training split, for runs on machines that do not have it."""
    from kdzoo.storage.atomic import probe_writable

    loaded, plan, zoo = resolve(recipe, all_overrides(override, device, seed))
    place = out or Path("answers") / plan.recipe.name
    probe_writable(place)
    from kdzoo.run.teacher_answers import answer_recipe

    with loaded.located(), stop_signals() as stop:
        folders = answer_recipe(plan, zoo, place, runs, Display(), stop)
    for folder in folders:
        say(f"answers: {folder}; a run reads them with models.teacher.weights: answers:{folder}")
