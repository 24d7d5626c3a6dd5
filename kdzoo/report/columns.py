"""Fitting lists and paragraphs to the width of a terminal: they wrap at words."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from kdzoo.report.tables import text_table


def listed(rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return rows of text as aligned columns without a head, at most ``width`` characters a line."""
    columns = max(map(len, rows), default=0)
    return text_table([""] * columns, rows, left=columns, width=width).removeprefix("\n") if rows else ""


def fitted_text(text: str, width: int | None) -> str:
    """Fit a text to ``width``: paragraphs are filled anew, items and indented lines wrap under their indentation."""
    if width is None:
        return text
    lines: list[str] = []
    for line in text.splitlines():
        if lines and _goes_on(lines[-1], line):
            lines[-1] = f"{lines[-1]} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(_filled(line, width) for line in lines)


def _goes_on(before: str, line: str) -> bool:
    """Whether a line was written as the rest of the one before: that was long, and this begins nothing of its own."""
    indent = len(line) - len(line.lstrip())
    return len(before) >= 60 and bool(line.strip()) and indent in (0, 3, 4) and not _ITEM.match(line)


def _filled(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    item = _ITEM.match(line)
    return textwrap.fill(
        line.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=" " * item.end() if item else indent + "  " * bool(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


#: What begins an item of a list, a row of a table or a labelled line.
_ITEM = re.compile(r"\s*(?:[0-9]+\. |[-*] |\|)|(?=[A-Za-z ]+: )")
