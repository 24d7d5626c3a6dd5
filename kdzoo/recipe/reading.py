"""Reading, writing and comparing recipes. Needs neither torch nor any plugin."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdzoo.errors import DataError, NeedsError, RecipeError, UnknownName, nearest, plain, shown
from kdzoo.recipe.problems import Positions, RecipeProblems
from kdzoo.recipe.sections import Recipe
from kdzoo.recipe.yaml_text import override, read_yaml, write_yaml
from kdzoo.types import stable_hash

MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe, with where it was written."""

    recipe: Recipe
    path: Path
    positions: Positions = field(compare=False)

    def problems(self) -> RecipeProblems:
        """Return an empty collector for what is found wrong later."""
        return RecipeProblems(self.path, self.positions)

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Give an error that names a key of the recipe, or a model of it, the file and the line."""
        try:
            yield
        except (RecipeError, UnknownName, NeedsError, DataError) as error:
            if (found := self._key_in(str(error))) is None:
                raise
            problems = self.problems()
            problems.add(*found)
            raise type(error)(str(problems)) from error

    def _key_in(self, text: str) -> tuple[str, str] | None:
        """Return the key that an error begins with, and the rest of it."""
        if match := re.match(r"unknown model '([^']+)'", text):
            paths = [path for path, model in self.recipe.models.each() if model.name == match[1]]
            return (f"models.{paths[0]}.name", text) if paths else None
        match = re.match(r"([a-z_]+)(\.[A-Za-z0-9_]+)+: (?=\S)", text)
        if match and match[1] in Recipe.model_fields:
            return match[0].removesuffix(": "), text[match.end() :]
        return None


#: Adds problems that only the plugins know of to those found in the raw content of an invalid recipe.
Also = Callable[[Mapping[str, Any], RecipeProblems], None]


def load_recipe(path: Path, overrides: Sequence[str] = (), also: Also | None = None) -> LoadedRecipe:
    """Read a recipe and apply ``overrides`` (``train.epochs=2``); raise RecipeError with every problem.

    ``also`` is asked for further problems when there is one, so that one error says them all.
    """
    return parse_recipe(file_content(Path(path)), Path(path), overrides, also)


def file_content(path: Path) -> bytes:
    """Return the bytes of a recipe or a study, at most one more than it may have; RecipeError if it cannot be read."""
    try:
        if path.is_fifo() and path.parent != Path("/dev/fd"):  # there may be nobody who ever writes to it
            raise OSError("it is a pipe; a file would be right")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        close = nearest(path.name, [near.name for near in path.parent.glob("*.yaml")])
        raise RecipeError(f"{plain(str(path), 1000)}: no such file{plain(close, 300)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{plain(str(path), 1000)}: cannot be read: {reason}") from None


def parse_recipe(
    content: bytes, path: Path, overrides: Sequence[str] = (), also: Also | None = None, in_file: bool = True
) -> LoadedRecipe:
    """Read a recipe from the bytes of the file at ``path``; as ``load_recipe``.

    Without ``in_file`` there is no file, ``path`` is what errors call the recipe, and they name no line.
    """
    positions = Positions(in_file=in_file)
    problems = RecipeProblems(path, positions)
    data = mapping_in(content, problems)
    for text in overrides:
        override(data, text, problems)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems.add_invalid(error, Recipe, data)
    if problems and also is not None:
        also(data, problems)
    problems.raise_if_any()
    return LoadedRecipe(recipe, path, positions)


def mapping_in(content: bytes, problems: RecipeProblems) -> dict[str, Any]:
    """Read YAML that is a mapping of keys to values; raise RecipeError at once for anything else."""
    positions = problems.positions

    def mark(below: str, line: int, column: int) -> None:
        positions.marks[below] = (line, column)

    data = None
    if len(content) > MAX_BYTES:
        problems.add("", f"larger than {MAX_BYTES // 1024} KiB; a recipe is a page long")
    else:
        try:
            data = read_yaml(content.decode("utf-8-sig"), problems, mark)
        except UnicodeDecodeError as error:
            mark("", content.count(b"\n", 0, error.start) + 1, 1)
            problems.add("", f"not UTF-8 text: byte 0x{content[error.start]:02x}")
    if not isinstance(data, dict) and not problems:
        problems.add("", f"must be a mapping of keys to values, got {shown(data)}")
    if not isinstance(data, dict):
        raise RecipeError(str(problems))
    return data


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe with its defaults as YAML that ``load_recipe`` reads back."""
    return write_yaml(recipe.model_dump(mode="json"))


def recipe_hash(recipe: Recipe) -> str:
    """Hash the whole recipe, defaults included; the order of keys does not count (64 hex digits)."""
    return stable_hash(recipe.model_dump(mode="json"))
