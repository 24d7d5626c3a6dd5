"""A recipe from a file, a mapping or keywords, with the checks and the errors of a recipe file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kdzoo.errors import RecipeError, plain
from kdzoo.plan.opening import known_recipe_of
from kdzoo.recipe import sections
from kdzoo.recipe.problems import Positions, RecipeProblems
from kdzoo.recipe.reading import dump_recipe
from kdzoo.recipe.yaml_text import write_flow, write_yaml
from kdzoo.storage.atomic import write_text

#: What errors call a recipe that was not read from a file.
UNNAMED = "recipe"


class Recipe(sections.Recipe):
    """A whole recipe as a typed object, e.g. ``recipe.train.epochs``; it does not change.

    ``kdzoo.recipe`` makes one out of a file or of another recipe. ``str(recipe)`` is the YAML with every default.
    Raises RecipeError for sections that do not validate.
    """

    def __init__(self, /, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            problems = RecipeProblems(UNNAMED, Positions(in_file=False))
            problems.add_invalid(error, sections.Recipe, given)
            raise RecipeError(str(problems)) from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe as a YAML file, which ``kdzoo run`` takes, and return its path; replaces a file."""
        path = Path(path)
        write_text(path, str(self))
        return path

    def __str__(self) -> str:
        return dump_recipe(self)


#: What a recipe may be made of: a file or the name of a bundled recipe, the content of one, or a recipe.
Source = str | os.PathLike[str] | Mapping[str, Any] | sections.Recipe


def recipe(source: Source | None = None, /, overrides: Mapping[str, Any] | None = None, **keys: Any) -> Recipe:
    """Return a recipe from a file, a bundled recipe's name, a mapping, another recipe, or from its keys.

    ``overrides`` replace single values: ``{"train.epochs": 2}`` is ``-o train.epochs=2`` on the command line. Names of
    algorithms, data sets and so on are looked up, and their options too. Raises RecipeError with every problem, and
    UnknownName.
    """
    if (source is None) == (not keys):
        raise RecipeError(
            "a recipe is made of one thing: a file, a name, a mapping, a recipe, or keys such as name=..."
        )
    loaded = known_recipe_of(content_of(keys if source is None else source), texts_of(overrides))
    return Recipe(**loaded.recipe.model_dump())


def content_of(source: Source) -> Path | bytes:
    """Return the file that a source names, or the YAML text that it amounts to; RecipeError where it is neither."""
    if isinstance(source, str | os.PathLike):
        return Path(source)
    return written("", source, write_yaml).encode()


def texts_of(overrides: Mapping[str, Any] | None) -> list[str]:
    """Return overrides as the command line has them: ``key=value``."""
    return [f"{key}={written(key, value, write_flow)}" for key, value in (overrides or {}).items()]


def written(path: str, value: Any, write: Callable[[Any], str]) -> str:
    """Write a value as YAML; RecipeError, with its path below ``path``, for what YAML cannot hold."""
    problems = RecipeProblems(UNNAMED, Positions(in_file=False))
    data = _plain(value, path, problems)
    problems.raise_if_any()
    return write(data)


def _plain(value: Any, path: str, problems: RecipeProblems) -> Any:
    """Return a value of Python as a recipe holds it; report what has no place in one."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{path}.{key}".strip("."), problems) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}.{index}".strip("."), problems) for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is not None and type(value) not in (bool, int, float, str):
        must = "must be text, a number, true, false, nothing, a list or a mapping"
        problems.add(path, f"{must}, got a Python {plain(type(value).__name__)}")
    elif isinstance(value, float) and not math.isfinite(value):
        problems.add(path, f"must be a finite number, got {value}")
    return value
