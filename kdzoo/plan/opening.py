"""From a recipe's file to a plan, with what is wrong said as early as it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdzoo.plan.resolve import Plan, doubtful, further_problems, known_problems, resolve
from kdzoo.recipe.bundled import known_recipe
from kdzoo.recipe.problems import RecipeProblems
from kdzoo.recipe.reading import LoadedRecipe, load_recipe, parse_recipe
from kdzoo.zoo.catalogue import catalogue
from kdzoo.zoo.loading import load_zoo
from kdzoo.zoo.offered import Zoo


def open_recipe(source: Path | bytes, overrides: Sequence[str]) -> tuple[LoadedRecipe, Plan, Zoo]:
    """Read a recipe, a file, a bundled one or the text of one, and resolve it with the zoo.

    What the catalogue shows to be wrong is raised before any plugin is imported: RecipeError, UnknownName.
    """
    loaded = known_recipe_of(source, overrides)
    zoo = load_zoo()
    return loaded, resolve(loaded, zoo), zoo


def known_recipe_of(source: Path | bytes, overrides: Sequence[str]) -> LoadedRecipe:
    """As ``open_recipe`` without its last step: what only the plugins themselves know to be wrong is left."""

    def also(data: Mapping[str, Any], problems: RecipeProblems) -> None:
        cards = catalogue()
        further_problems(data, problems, load_zoo() if doubtful(data, cards) else cards)

    if isinstance(source, bytes):
        loaded = parse_recipe(source, Path("recipe"), overrides, also, in_file=False)
    else:
        loaded = load_recipe(known_recipe(source), overrides, also)
    cards = catalogue()
    problems = known_problems(loaded, cards)
    if problems and not doubtful(loaded.recipe.model_dump(), cards):
        problems.raise_if_any()
    return loaded
