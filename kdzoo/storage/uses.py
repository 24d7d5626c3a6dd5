"""Which stored results a run or a study refers to, so that nobody takes one that it needs for one that nobody needs."""

from __future__ import annotations

import re
from pathlib import Path

from kdzoo.errors import CorruptError
from kdzoo.storage.atomic import append_line

#: Name of the file, in the folder of a run or of a study.
USES = "uses"

#: A line, or what a kill left of one.
_LINE = re.compile(r"[A-Za-z0-9_.-]*/?[A-Za-z0-9_.-]*")


class Uses:
    """The results that a folder refers to: a file with one ``kind/key`` a line, which only grows.

    A line is written before its result is looked for, so that it is there whoever stores the result, and when.
    Several processes may write.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / USES
        self._known: set[str] | None = None

    def add(self, kind: str, key: str) -> None:
        """Record a result, if it is not yet; raise OutputError where that cannot be written."""
        if self._known is None:
            before = self.path.read_text(errors="replace") if self.path.exists() else ""
            if before and not before.endswith("\n"):
                append_line(self.path, "")  # a kill cut the last line short
            self._known = set(before.splitlines())
        name = f"{kind}/{key}"
        if name not in self._known:
            append_line(self.path, name, durable=True)
            self._known.add(name)

    def read(self) -> set[str]:
        """Every ``kind/key``; raise CorruptError where the file is missing or damaged.

        A line that a kill cut short names nothing, and needs not: its result was not looked for yet.
        """
        try:
            text = self.path.read_bytes().decode()
        except FileNotFoundError:
            raise CorruptError(f"{self.path}: missing") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptError(f"{self.path}: cannot be read: {error}") from None
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if not _LINE.fullmatch(line):
                raise CorruptError(f"{self.path}: line {number} is damaged")
        return set(lines) - {""}
