"""Reading a finished run from its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdzoo.errors import ReportError, plain
from kdzoo.report.results import Results, parse_results, visible
from kdzoo.storage.json_reading import JsonError, parse_object, read_file


@dataclass(frozen=True)
class Run:
    """What a finished run left. No text in it holds a character that cannot be seen, other than line ends."""

    folder: Path
    results: Results
    rows: list[dict[str, Any]]  # metrics.jsonl
    recipe_text: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    student: dict[str, Any]  # student.json; empty where there is none

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.recipe.get("name") or self.run_id)

    @property
    def run_id(self) -> str:
        return plain(self.folder.name, 100)

    @property
    def algorithm(self) -> str:
        return self.results.algorithm or str(section(self.recipe, "algorithm").get("name") or "unknown")


def section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping inside another; empty where there is none."""
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}


def read_run(folder: Path) -> Run:
    """Read a run folder; ReportError names the file that is missing or cannot be read, and what it should be."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such run folder")
    student = folder / "student.json"
    return Run(
        folder=folder,
        results=parse_results(read_json(folder / "results.json"), folder / "results.json"),
        rows=read_lines(folder / "metrics.jsonl"),
        recipe_text=visible(read_text(folder / "recipe.yaml")),
        recipe=read_recipe(folder),
        provenance=read_json(folder / "provenance.json"),
        student=read_json(student) if student.exists() else {},
    )


def read_text(path: Path) -> str:
    """Return a file's text; ReportError where there is none."""
    try:
        return read_file(path).decode()
    except FileNotFoundError:
        raise ReportError(f"{path}: is missing; a report needs it, and a finished run has it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; ReportError where it holds none."""
    return parse(path, read_text(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file that holds one a line; ReportError names the line that is not one."""
    return [parse(path, line, i) for i, line in enumerate(read_text(path).splitlines())]


def read_recipe(folder: Path) -> dict[str, Any]:
    """Return the recipe of a run; ReportError where recipe.yaml holds no mapping."""
    path = folder / "recipe.yaml"
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ReportError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ReportError(f"{path}: holds no mapping but {plain(text.strip(), 40)}; it should be the run's recipe")
    return visible(content)


def parse(path: Path, text: str, lines_before: int = 0) -> dict[str, Any]:
    """Return the JSON object in ``text``, which begins after so many lines of the file at ``path``."""
    try:
        return visible(parse_object(text))
    except JsonError as error:
        raise ReportError(f"{path}: line {lines_before + error.line}: is {error}") from None
