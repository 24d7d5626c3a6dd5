"""Anybody's own labelled texts in .csv, .tsv or .jsonl files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field

from kdzoo.api.data import DataError, DataSource, DataSplits
from kdzoo_text.tokenizing import TextOptions, below, has_surrogates, splits_of

SUFFIXES = (".csv", ".tsv", ".jsonl")


class TextFiles(DataSource):
    """One file per split: a table with column names in its first row, or one JSON object per line."""

    name = "text_files"
    description = "your own texts, .csv, .tsv or .jsonl"

    class Options(TextOptions):
        train: str = Field("train.csv", description="Training split, below the data root.")
        test: str = Field("test.csv", description="Test split, read once at the end.")
        validation: str | None = Field(None, description="Validation split; null: a share of train.")
        text: str = Field("text", description="Column, or key, of the text.")
        label: str = Field("label", description="Column, or key, of the class.")

    def load(self, root: Path) -> DataSplits:
        """Return the splits; the test file is looked for at once, but read when it is asked for. Raises DataError."""
        options: Any = self.options
        paths = {
            name: self._path(root, file)
            for name in ("train", "test", "validation")
            if (file := getattr(options, name)) is not None
        }

        def rows(which: str) -> list[tuple[str, str]]:
            return read(paths[which], options.text, options.label)

        return splits_of(
            f"data set '{self.name}'",
            options,
            rows("train"),
            rows("validation") if "validation" in paths else None,
            lambda: rows("test"),
            source="own texts",
        )

    def _path(self, root: Path, name: str) -> Path:
        path = below(root, name, "data set 'text_files'")
        if path.suffix not in SUFFIXES:
            raise DataError(f"data set 'text_files': {name}: {', '.join(SUFFIXES)} would be right")
        if not os.path.isfile(path):
            raise DataError(f"data set 'text_files': no file '{name}' below '{root}'; set data.root or data.options")
        return path


def read(path: Path, text: str, label: str) -> list[tuple[str, str]]:
    """Read (text, class) of every row; DataError names the file, the line and what is wrong with it."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    rows = json_lines(path, content) if path.suffix == ".jsonl" else table(path, content)
    found = []
    for line, row in rows:
        for key in (text, label):
            value = row.get(key)
            if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
                known = ", ".join(str(name) for name in row) or "nothing"
                raise DataError(f"{path}: line {line}: no text in '{key}'; the row has {known}")
            if has_surrogates(str(value)):
                raise DataError(f"{path}: line {line}: '{key}' holds half of a surrogate pair, which is no character")
        found.append((str(row[text]), str(row[label])))
    if not found:
        raise DataError(f"{path}: holds no rows")
    return found


def table(path: Path, content: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a table, each with the number of its last line."""
    lines = io.StringIO(content, newline="")  # a text may hold what only Unicode takes for the end of a line
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    hint = "a text with a comma, a tab or a quote in it belongs in quotes, and its own quotes are doubled"
    begun = 1  # the line that the row under way begins in
    try:
        begun += len(reader.fieldnames or ()) > 0
        twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if twice:
            raise DataError(f"{path}: line 1: names the column '{twice[0]}' twice; each column needs its own name")
        for row in reader:
            if extra := row.get(None):  # type: ignore[call-overload]  # where csv puts what has no column
                columns = len(row) - 1
                raise DataError(
                    f"{path}: line {reader.line_num}: {columns + len(extra)} columns, the first row names {columns}; "
                    f"{hint}"
                )
            rows.append((reader.line_num, row))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {begun}: {error}; {hint}") from error
    return rows


def json_lines(path: Path, content: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a file, each with its line number; empty lines are left out."""
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: is not JSON: {error}") from error
        except RecursionError as error:
            raise DataError(f"{path}: line {number}: is nested too deeply") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: is no JSON object")
        rows.append((number, row))
    return rows
