"""Commands for those who write a recipe or a plugin: scaffolds, and the conformance suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli.arguments import Json, possible_path
from kdzoo.terminal import say

commands = typer.Typer()


@commands.command("test-plugin")
def test_plugin(
    name: Annotated[str, typer.Argument(help="An algorithm's name, or a plugin's for all of its algorithms.")],
    as_json: Json = False,  # noqa: PT028
) -> None:
    """Run the conformance suite over an algorithm."""
    from kdzoo.errors import ContractError
    from kdzoo.zoo.catalogue import catalogue

    catalogue()  # finds plugins that end or hang a process, before they are loaded into this one
    from kdzoo.testing.checks import run_checks
    from kdzoo.zoo.loading import load_zoo

    zoo = load_zoo()
    of_plugin = [algorithm for algorithm, offer in zoo.algorithms.items() if offer.plugin == name]
    failed, rows = 0, []
    for algorithm in of_plugin or [name]:
        for outcome in run_checks(zoo.algorithm(algorithm), zoo):
            rows.append({"algorithm": algorithm, "check": outcome.name, "status": outcome.status, "text": outcome.text})
            failed += outcome.status == "failed"
            if not as_json:
                say(f"{algorithm}  {outcome.status:<8} {outcome.name}{': ' + outcome.text if outcome.text else ''}")
    if as_json:
        say(json.dumps(rows, indent=2))
    if failed:
        error = ContractError(f"{failed} of {len(rows)} checks failed")
        error.exit_code = 1
        raise error


new_app = typer.Typer(help="Write a scaffold that runs as it is.", no_args_is_help=True)
commands.add_typer(new_app, name="new")


@new_app.command("algorithm")
def new_algorithm(
    name: Annotated[str, typer.Argument(help="Lower snake case, e.g. mimic.")],
    where: Annotated[
        Path, typer.Option("--in", metavar="DIR", callback=possible_path, help="The folder to write the package into.")
    ] = Path("."),
) -> None:
    """Write a plugin package with one algorithm, its test and a recipe."""
    from kdzoo.testing.scaffold import write_algorithm

    for path in write_algorithm(name, where):
        say(path)


@new_app.command("recipe")
def new_recipe(
    name: Annotated[str, typer.Argument(help="Name of the recipe, e.g. my-student.")],
    algorithm: Annotated[
        str, typer.Option("--algorithm", help="The algorithm it uses; none: the bundled quickstart's.")
    ] = "",
    where: Annotated[
        Path, typer.Option("--in", metavar="DIR", callback=possible_path, help="The folder to write into.")
    ] = Path("."),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", callback=possible_path, help="Your images: train and test, or classes."),
    ] = None,
    teacher: Annotated[str, typer.Option("--teacher", metavar="MODEL", help="With --data: timm's name of it.")] = "",
    weights: Annotated[
        str, typer.Option("--weights", metavar="FILE", help="The teacher's: a file, pretrained, hf-hub:... or train.")
    ] = "train",
    student: Annotated[str, typer.Option("--student", metavar="MODEL", help="With --data: timm's name of it.")] = "",
    student_weights: Annotated[
        str, typer.Option("--student-weights", metavar="FILE", help="As --weights, of the student.")
    ] = "train",
) -> None:
    """Write a recipe that runs as it is: for your own images and models with --data, or else for digits."""
    if data is None and (teacher or student or weights != "train"):
        raise typer.BadParameter(
            "needs --data, the folder of your images", param_hint="--teacher, --weights, --student"
        )
    if data is None:
        from kdzoo.recipe.bundled import recipes_root
        from kdzoo.testing.scaffold import write_recipe

        say(write_recipe(name, algorithm, where, recipes_root()))
        return
    if not teacher or not student:
        raise typer.BadParameter("needs --teacher and --student", param_hint="--data")
    from kdzoo.testing.own_recipe import Wanted, write_own_recipe

    wanted = Wanted(name, data, teacher, weights, student, student_weights, algorithm)
    for path in write_own_recipe(wanted, where):
        say(path)
