"""Tables as aligned text for a terminal, and as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from kdzoo.errors import plain

#: Characters that a line of words has, however narrow a table is asked to be.
LEAST_WIDTH = 40
#: What stands between two columns.
GAP = "  "


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    width: int | None = None,
    spare: Sequence[int] = (),
) -> str:
    """Align columns with spaces; the first ``left`` of them to the left. A cell may hold several lines.

    ``width`` is how many characters a line may have. Where the table is wider, the columns in ``spare`` are left out,
    the first one first, and a last line names them; then the cells of the left columns are broken between words.
    No word is ever broken.
    """
    kept = list(range(len(header)))
    given_up = []
    for column in spare:
        if width is None or total([natural_width(header, rows, i) for i in kept]) <= width:
            break
        kept.remove(column)
        given_up.append(column)
    table = [[row[i] for i in kept] for row in (header, *rows)]
    left = sum(i < left for i in kept)
    widths = [natural_width(table[0], table[1:], i) for i in range(len(kept))]
    if width is not None and total(widths) > width:
        widths = narrowed(table, widths, left, width)
        table = [[wrapped(cell, widths[i]) if i < left else cell for i, cell in enumerate(row)] for row in table]
        widths = [natural_width(table[0], table[1:], i) for i in range(len(kept))]
    text = "\n".join(line for row in table for line in aligned(row, widths, left, bottom=row is table[0]))
    if given_up:
        names = ", ".join(header[i].split("\n")[0] for i in sorted(given_up))
        left_out = f"Not shown, for want of width: {names}."
        text += "\n" + "\n".join(textwrap.wrap(left_out, max(width or 0, LEAST_WIDTH), break_long_words=False))
    return text


def natural_width(header: Sequence[str], rows: Sequence[Sequence[str]], column: int) -> int:
    """The longest line of a column's cells."""
    return max(len(line) for row in (header, *rows) for line in row[column].split("\n"))


def total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def narrowed(table: Sequence[Sequence[str]], widths: Sequence[int], left: int, width: int) -> list[int]:
    """Take characters from the widest of the left columns until the table fits, or no word leaves room."""
    widths = list(widths)
    least = [max(len(word) for row in table for word in words(row[i])) for i in range(left)]
    while total(widths) > width:
        wide = [i for i in range(left) if widths[i] > least[i]]
        if not wide:
            break
        widest = max(wide, key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


#: A run of letters with what may end it: a slash, a dash, a dot or an underscore, but not the point of a number.
_WORD = re.compile(r"(?:[^\s/_.-]|\.(?=\d))*(?:[/_-]|\.(?!\d))+|(?:[^\s/_.-]|\.(?=\d))+ ?|\n| +")


def words(text: str) -> list[str]:
    """What must not be broken: a name may be broken after a slash, a dash, a dot or an underscore."""
    return _WORD.findall(text) or [""]


def wrapped(text: str, width: int) -> str:
    """Break lines between words, so that none is longer than ``width`` unless a word is."""
    lines = [""]
    for word in words(text):
        if word == "\n":
            lines.append("")
        elif lines[-1] and len((lines[-1] + word).rstrip()) > width:
            lines[-1] = lines[-1].rstrip()
            lines.append(word.lstrip())
        else:
            lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def aligned(row: Sequence[str], widths: Sequence[int], left: int, bottom: bool) -> list[str]:
    """The lines of one row; cells with fewer lines begin at the top, or end at the ``bottom``."""
    cells = [cell.split("\n") for cell in row]
    height = max(len(cell) for cell in cells)
    filled = [[""] * (height - len(c)) + c if bottom else c + [""] * (height - len(c)) for c in cells]
    return [
        GAP.join(
            lines[k].ljust(width) if i < left else lines[k].rjust(width)
            for i, (lines, width) in enumerate(zip(filled, widths, strict=True))
        ).rstrip()
        for k in range(height)
    ]


def markdown_text(value: Any) -> str:
    """Make text literal in Markdown, in a table too."""
    text = plain(str(value), 1000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~" else c for c in text)
