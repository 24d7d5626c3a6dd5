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
) -> None:
    """Write a recipe that runs as it is."""
    from kdzoo.recipe.bundled import recipes_root
    from kdzoo.testing.scaffold import write_recipe

    say(write_recipe(name, algorithm, where, recipes_root()))
