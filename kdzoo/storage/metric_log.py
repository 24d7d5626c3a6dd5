"""The log of a run's metrics, metrics.jsonl: one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdzoo.errors import CorruptError
from kdzoo.storage.atomic import append_line, write_bytes
from kdzoo.storage.json_reading import JsonError, parse_object, read_file

#: No row is longer.
TAIL_BYTES = 2**16


class MetricLog:
    """Rows of numbers in the order of training, without wall-clock times, so that a resumed run has the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        append_line(self.path, json.dumps(row))

    def rows(self) -> list[dict[str, Any]]:
        """Every row; a last line torn by a kill is left out. Raise CorruptError for any other damaged line."""
        rows = []
        for number, line in enumerate(self._lines(), 1):
            try:
                rows.append(parse_object(line))
            except JsonError:
                raise CorruptError(f"{self.path}: line {number} is damaged") from None
        return rows

    def last_row(self) -> dict[str, Any] | None:
        """The last whole row, found from the end of the file; None where there is none that can be read."""
        try:
            with open(self.path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                lines = file.read(TAIL_BYTES).split(b"\n")
            return parse_object(lines[-2])
        except (OSError, IndexError, JsonError):
            return None

    def truncate(self, rows: int) -> None:
        """Keep the first ``rows``; raise CorruptError if there are fewer."""
        lines = self._lines()
        if len(lines) < rows:
            raise CorruptError(f"{self.path}: {len(lines)} rows, at least {rows} expected")
        write_bytes(self.path, b"".join(lines[:rows]))

    def drop_torn_line(self) -> None:
        whole = b"".join(self._lines())
        if self.path.exists() and len(whole) != self.path.stat().st_size:
            write_bytes(self.path, whole)

    def _lines(self) -> list[bytes]:
        try:
            lines = read_file(self.path).splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CorruptError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
