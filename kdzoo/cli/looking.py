"""Commands that say what there is: recipes, plugins and what they offer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli.arguments import Json, Overrides, possible_path
from kdzoo.cli.completion import KINDS, kinds, recipe_or_offered_names
from kdzoo.cli.opening import warn_of_plugins
from kdzoo.terminal import say, width

commands = typer.Typer()


@commands.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|NAME",
            autocompletion=recipe_or_offered_names,
            help="A recipe file, or the name of an offered thing.",
        ),
    ],
    override: Overrides = None,
) -> None:
    """Print a recipe with every default, or what an algorithm, data set, model, export format ... is and takes."""
    from kdzoo.recipe.bundled import find_recipe
    from kdzoo.zoo.catalogue import catalogue

    possible_path(Path(what))
    path = find_recipe(Path(what))
    if path.exists() or what.endswith((".yaml", ".yml")):
        from kdzoo.plan.filled import filled
        from kdzoo.recipe.reading import dump_recipe, load_recipe

        say(dump_recipe(filled(load_recipe(path, list(override or [])).recipe, catalogue())), end="")
        return
    from kdzoo.report.columns import fitted_text
    from kdzoo.testing.card import describe

    say(fitted_text(describe(what, catalogue()), width()))


@commands.command("list")
def list_(
    kind: Annotated[str, typer.Argument(autocompletion=kinds, help=f"One of: {', '.join(KINDS)}.")] = "algorithms",
    as_json: Json = False,
) -> None:
    """List what the installed plugins offer."""
    from kdzoo.errors import UnknownName, nearest, shown

    if kind not in KINDS:
        raise UnknownName(f"list: unknown kind {shown(kind)}{nearest(kind, KINDS) or ';'} known: {', '.join(KINDS)}")
    from kdzoo.report.columns import listed
    from kdzoo.testing.card import offer_rows, recipe_rows

    if kind == "recipes":
        rows = recipe_rows()
    else:
        from kdzoo.zoo.catalogue import catalogue

        zoo = catalogue()
        warn_of_plugins(zoo)
        rows = offer_rows(zoo, kind)
    if as_json:
        say(json.dumps(rows, indent=2))
    else:
        columns = width()
        keys = ("name", "family", "description") if columns is None or columns >= 72 else ("name", "description")
        say(listed([[row[key] for key in keys] for row in rows], columns))


@commands.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, every plugin's options in it, for editors."""
    from kdzoo.plan.schema import recipe_schema
    from kdzoo.zoo.catalogue import catalogue

    say(json.dumps(recipe_schema(catalogue()), indent=2))


@commands.command()
def plugins(as_json: Json = False) -> None:
    """List the installed plugins and whether each loads; works whatever they do."""
    from kdzoo.zoo.catalogue import catalogue

    rows = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "status": plugin.status,
            "cause": plugin.cause or (f"changed {plugin.changed}; kdzoo gave that back" if plugin.changed else ""),
        }
        for plugin in catalogue(retry_broken=True).plugins
    ]
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    from kdzoo.report.columns import listed

    table = [[row["name"], f"{row['distribution']} {row['version']}", row["status"], row["cause"]] for row in rows]
    say(listed(table, width()))
