"""Anybody's own labelled texts in .csv, .tsv or .jsonl files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field

from kdzoo.api.data import DataError, DataSource, DataSplits, table_rows
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
    found = []
    for where, row in table_rows(path):
        for key in (text, label):
            value = row.get(key)
            if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
                known = ", ".join(str(name) for name in row) or "nothing"
                raise DataError(f"{path}: {where}: no text in '{key}'; the row has {known}")
            if has_surrogates(str(value)):
                raise DataError(f"{path}: {where}: '{key}' holds half of a surrogate pair, which is no character")
        found.append((str(row[text]), str(row[label])))
    if not found:
        raise DataError(f"{path}: holds no rows")
    return found
