"""What is wrong with a recipe: all of it at once, in plain words, each with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from kdzoo.errors import RecipeError, nearest, plain, shown

MAX_SHOWN = 50


@dataclass
class Positions:
    """Where each path of a recipe was written: line and column from 1, or the override that set it.

    ``in_file``: whether anybody can look the lines up.
    """

    marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    in_file: bool = True

    def where(self, path: str) -> str:
        """Return ``line 7`` or ``-o train.epochs``; of the nearest written parent if ``path`` itself is not.

        Empty where there are no lines.
        """
        written = self._written(path)
        if written in self.overrides:
            return f"-o {self.overrides[written]}"
        return f"line {self.at(path)[0]}" if self.in_file else ""

    def at(self, path: str) -> tuple[int, int]:
        """Return line and column; overrides come after every line."""
        written = self._written(path)
        return (2**31, 0) if written in self.overrides else self.marks.get(written, (1, 1))

    def override(self, path: str, by: str) -> None:
        """Record that ``-o by=...`` wrote ``path`` and all below it."""
        for written in (self.marks, self.overrides):
            for below in [below for below in written if below.startswith(f"{path}.")]:
                del written[below]
        self.overrides[path] = by

    def _written(self, path: str) -> str:
        while path and path not in self.marks and path not in self.overrides:
            path = path.rpartition(".")[0]
        return path


class RecipeProblems:
    """Collects what is wrong with one recipe, so that all of it comes out in one RecipeError."""

    def __init__(self, path: Path | str, positions: Positions) -> None:
        self.path, self.positions = path, positions
        self._found: dict[tuple[str, str], None] = {}
        self._notes: dict[str, None] = {}
        self._refused: set[str] = set()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: str, message: str) -> None:
        """Report ``message`` about the value at ``path``, e.g. ``train.optimizer.lr``.

        Its further lines are notes; they come last, each once.
        """
        message, *notes = message.splitlines() or ["is wrong"]
        self._found[path, message] = None
        self._notes.update(dict.fromkeys(notes))

    @property
    def found(self) -> list[tuple[str, str]]:
        """Each (path, message) so far."""
        return list(self._found)

    def refuse(self, path: str, message: str) -> None:
        """Report a value that cannot be read, so that nothing else is reported about it."""
        self.add(path, message)
        self._refused.add(path)

    def add_invalid(self, error: ValidationError, model: type[BaseModel], data: Any) -> None:
        """Report what pydantic found in ``data``, the whole of the recipe."""
        for path, message in explain(error, model, data):
            if not any(path == refused or path.startswith(f"{refused}.") for refused in self._refused):
                self.add(path, message)

    def raise_if_any(self) -> None:
        """Raise RecipeError with every problem in the order of the file, if there is one."""
        if self._found:
            raise RecipeError(str(self))

    def __str__(self) -> str:
        order = sorted(self._found, key=lambda found: self.positions.at(found[0]))
        spots = [self.positions.where(path) for path, _ in order[:MAX_SHOWN]]
        width = max((len(spot) for spot in spots if spot.startswith("line")), default=0)
        lines = [f"{plain(str(self.path), 1000)}: {len(order)} problem{'s' if len(order) != 1 else ''}"]
        for spot, (path, message) in zip(spots, order, strict=False):
            says = f"{plain(path, 200)}: {message}" if path else message
            overridden = spot == f"-o {path}" or (spot.startswith("-o ") and f"-o {path}".startswith(f"{spot}."))
            where = f"{plain(spot, 200):{width}} " if spot else ""
            lines.append(f"  -o {says}" if overridden else f"  {where}{says}")
        if len(order) > MAX_SHOWN:
            lines.append(f"  and {len(order) - MAX_SHOWN} more")
        return "\n".join([*lines, *(f"  {note}" for note in self._notes)])


def requirement(must_be: str) -> PydanticCustomError:
    """Make the error of a validator: "must be ..., got ..."."""
    return PydanticCustomError("requirement", "must be {must_be}", {"must_be": must_be})


def misfits(*problems: tuple[str, str]) -> PydanticCustomError:
    """Make the error of a validator of several keys out of (path below the model, message) pairs."""
    text = "; ".join(f"{path}: {message}" for path, message in problems)
    return PydanticCustomError("misfits", "{text}", {"text": text, "problems": problems})


# pydantic's error type -> what the value must be
_MUST_BE = {
    "requirement": "{must_be}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "path_type": "text",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "none_required": "null",
}


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> list[tuple[str, str]]:
    """Translate pydantic's findings into (path, message) in plain words; the members of a union become one."""
    found: list[tuple[str, str]] = []
    must_be: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        kind, context = item["type"], item.get("ctx", {})
        parts, value = _present(item["loc"], data)
        path = ".".join(map(str, parts))
        if kind == "misfits":
            found += [(f"{path}.{below}".strip("."), message) for below, message in context["problems"]]
        elif kind == "missing":
            found.append((f"{path}.{item['loc'][-1]}".strip("."), "required, but missing"))
        elif kind == "extra_forbidden":
            found.append((path, unknown_key(str(parts[-1]), sorted(_section(model, parts[:-1]).model_fields))))
        elif kind in _MUST_BE:
            numbers = {key: int(x) if isinstance(x, float) and x.is_integer() else x for key, x in context.items()}
            text = _MUST_BE[kind].format(**numbers)
            values[path] = value
            if text not in must_be.setdefault(path, []):
                must_be[path].append(text)
        else:
            found.append((path, str(context["error"]) if kind == "value_error" else item["msg"]))
        if len(found) + len(must_be) > 2 * MAX_SHOWN:  # nobody reads on, and looking for near names costs
            break
    for path, texts in must_be.items():
        if "a number" in texts and "a whole number" in texts:
            texts.remove("a whole number")
        found.append((path, f"must be {' or '.join(texts)}, got {_got(values[path], texts)}"))
    return found


#: Keys of recipes that have another name since: old -> new.
RENAMED = {"reads": "modality"}
#: Keys that a section of their own has now.
PREPROCESSING = ("size", "crop_share", "mean", "std")


def unknown_key(key: str, known: Sequence[str], what: str = "key") -> str:
    """Say that ``key`` is none of ``known``."""
    if RENAMED.get(key) in known:
        return f"unknown {what}; it is called '{RENAMED[key]}' now"
    if key in PREPROCESSING and "preprocessing" in known:
        return f"unknown {what}; it is 'preprocessing.{key}' now"
    close = nearest(key, list(known)) if len(key) <= 64 else ""
    return f"unknown {what}{close or '; known: ' + (', '.join(known) or 'none')}"


def with_a_point(number: str) -> str:
    """Say how to write a decimal that was written with a comma."""
    return f"write it with a point: {number.replace(',', '.')}"


def _got(value: Any, must_be: list[str]) -> str:
    quoted = isinstance(value, str) and any(text in ("a number", "a whole number", "true or false") for text in must_be)
    if quoted and re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?|true|false", value):
        return f"{shown(value)}, which is text; write it without quotes"
    if quoted and re.fullmatch(r"[-+]?[0-9]+,[0-9]+", value):
        return f"{shown(value)}; {with_a_point(value)}"
    return shown(value)


def _present(location: Sequence[int | str], data: Any) -> tuple[list[int | str], Any]:
    """Follow ``location`` through ``data``; what is not there is pydantic's name of a union's member."""
    parts: list[int | str] = []
    for part in location:
        keyed = isinstance(data, Mapping) and part in data
        if keyed or (isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)):
            data = data[part]
            parts.append(part)
    return parts, data


def _section(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """Return the model of the section at ``path``."""
    for part in path:
        info = model.model_fields.get(str(part))
        model = (_model_in(info.rebuild_annotation()) if info else None) or model
    return model


def _model_in(kind: Any) -> type[BaseModel] | None:
    """Return the model inside an annotation such as ``tuple[Model, ...] | None``."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next(filter(None, map(_model_in, get_args(kind))), None)
