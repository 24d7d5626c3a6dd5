"""Rows of a table that a person wrote: .csv, .tsv, .jsonl or .parquet."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdzoo.errors import DataError


def table_rows(path: Path, columns: Sequence[str] | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a file, each with where it is: "line 3", or "row 3" in a .parquet file.

    The first row of a .csv or .tsv file names its columns; a .jsonl file has one object per line. ``columns`` are all
    that is read of a .parquet file; None: every column. Raises DataError that names the file, the line and what is
    wrong with it.
    """
    if path.suffix == ".parquet":
        return _parquet(path, columns)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return _json_lines(path, content) if path.suffix == ".jsonl" else _table(path, content)


def _parquet(path: Path, columns: Sequence[str] | None) -> list[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f'{path}: needs pyarrow, which is not installed; pip install "kdzoo[parquet]"') from error
    try:
        with parquet.ParquetFile(path) as file:
            known = file.schema_arrow.names
            kept = None if columns is None else [name for name in known if name in columns]
            found = file.read(columns=kept).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error
    missing = [name for name in columns or () if name not in known]
    if missing:
        raise DataError(f"{path}: no column '{missing[0]}'; it has {', '.join(known)}")
    return [(f"row {number}", row) for number, row in enumerate(found, 1)]


def _table(path: Path, content: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a table, each with its last line."""
    lines = io.StringIO(content, newline="")  # a text may hold what only Unicode takes for the end of a line
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
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
            rows.append((f"line {reader.line_num}", row))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {begun}: {error}; {hint}") from error
    return rows


def _json_lines(path: Path, content: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a file, each with its line; empty lines are left out."""
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
        rows.append((f"line {number}", row))
    return rows
