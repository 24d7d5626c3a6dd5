"""Reading a finished run from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdzoo.errors import ReportError
from kdzoo.storage.json_reading import JsonError, parse_object, read_file
from kdzoo.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """What a finished run left."""

    folder: Path
    results: dict[str, Any]
    rows: list[dict[str, Any]]
    recipe_text: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    student: dict[str, Any]  # student.json; empty where there is none


def read_finished(folder: Path) -> Run:
    """Read a finished run after comparing each of its files with the manifest.

    Raise ReportError where no finished run is, CorruptError where a file is not as it was delivered.
    """
    RunFolder.view(folder).verify()
    return read_run(folder)


def read_run(folder: Path) -> Run:
    """Read a run folder; ReportError names the file that is missing or cannot be read, and what it should be."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such run folder")
    results = read_json(folder / "results.json")
    if not isinstance(results.get("student"), dict) or "top1_percent" not in results["student"]:
        raise ReportError(
            f"{folder / 'results.json'}: has no 'student' entry with top1_percent; it is not of a finished run"
        )
    recipe_text = read_text(folder / "recipe.yaml")
    try:
        recipe = yaml.safe_load(recipe_text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ReportError(f"{folder / 'recipe.yaml'}: is not YAML: {' '.join(str(error).split())}") from error
    student = folder / "student.json"
    return Run(
        folder=folder,
        results=results,
        rows=[
            parse(folder / "metrics.jsonl", line, i)
            for i, line in enumerate(read_text(folder / "metrics.jsonl").splitlines())
        ],
        recipe_text=recipe_text,
        recipe=recipe if isinstance(recipe, dict) else {},
        provenance=read_json(folder / "provenance.json"),
        student=read_json(student) if student.exists() else {},
    )


def read_text(path: Path) -> str:
    try:
        return read_file(path).decode()
    except FileNotFoundError:
        raise ReportError(f"{path}: is missing; a report needs it, and a finished run has it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    return parse(path, read_text(path))


def parse(path: Path, text: str, row: int = 0) -> dict[str, Any]:
    try:
        return parse_object(text)
    except JsonError as error:
        raise ReportError(f"{path}: line {row + error.line}: is {error}") from None


def algorithm_of(run: Run) -> str:
    written = run.recipe.get("algorithm")
    return str(run.results.get("algorithm") or (written.get("name") if isinstance(written, dict) else "") or "unknown")
