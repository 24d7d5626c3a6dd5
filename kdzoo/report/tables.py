"""The numbers of a run, rounded for people, and tables as text and Markdown.

results.json keeps full floats; COLUMNS says how those of a model or file are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdzoo.errors import plain

Entry = Mapping[str, Any]


def significant(value: float) -> str:
    """Three significant digits, whole numbers from 100 on: 0.0120, 4.56, 1,230."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def counted(value: float) -> str:
    """A count in the unit that suits it: 868, 78.0 k, 1.73 M, 4.09 G."""
    return scaled(value, ("", " k", " M", " G"), 1000)


def sized(mib: float) -> str:
    """A size in the unit that suits it: 512 B, 4.63 KiB, 6.89 MiB."""
    return scaled(mib * 2**20, (" B", " KiB", " MiB", " GiB"), 1024)


def scaled(value: float, units: Sequence[str], step: int) -> str:
    power = 0
    while power + 1 < len(units) and value >= 0.9995 * step:
        value, power = value / step, power + 1
    return f"{value:.0f}" + units[0] if power == 0 else significant(value) + units[power]


@dataclass(frozen=True)
class Column:
    """One number of an entry: where it stands, how it is rounded, and which is better."""

    title: str
    unit: str
    value: Callable[[Entry], float | None]
    show: Callable[[float], str]
    best: Callable[..., float]


LATENCY = Column("Latency p50", "ms", lambda e: (e.get("latency_ms") or {}).get("p50"), significant, min)
LATENCY_P95 = Column("p95", "ms", lambda e: (e.get("latency_ms") or {}).get("p95"), significant, min)
COLUMNS = (
    Column("Accuracy", "%", lambda e: e.get("top1_percent"), "{:.2f}".format, max),
    Column("Agreement", "% with teacher", lambda e: e.get("agreement_percent"), "{:.2f}".format, max),
    Column("ECE", "0 to 1", lambda e: e.get("ece"), "{:.3f}".format, min),
    Column("Parameters", "", lambda e: e.get("params_m"), lambda millions: counted(millions * 1e6), min),
    Column("Size", "", lambda e: e.get("size_mib"), sized, min),
    Column("MACs", "", lambda e: e.get("macs_g"), lambda billions: counted(billions * 1e9), min),
    LATENCY,
    LATENCY_P95,
)
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False


def entries(results: Mapping[str, Any]) -> list[tuple[str, Entry]]:
    """Return (role, entry) pairs in the order of the table; roles are teacher, control, student, peer and export."""
    teachers = results.get("teachers") or [results.get("teacher")]
    files = [entry for entry in results.get("exports") or [] if not entry.get("rejected")]
    of = {who: [each for each in files if each.get("network", "student") == who] for who in ("teacher", "student")}
    groups = {
        "teacher": [*teachers, *of["teacher"]],
        "control": [results.get("control")],
        "student": [results["student"]],
        "peer": results.get("peers") or [],
        "export": of["student"],
    }
    return [(role, entry) for role, group in groups.items() for entry in group if entry]


def cells(results: Mapping[str, Any]) -> list[tuple[str, Entry, list[Cell]]]:
    """Return the comparison's rows. The best of a column is marked among what could be deployed, teachers aside, and
    only where they differ as shown."""
    rows = entries(results)
    shown: list[list[Cell]] = [[] for _ in rows]
    for column in COLUMNS:
        values = [column.value(entry) for _, entry in rows]
        texts = [NOTHING if value is None else column.show(value) for value in values]
        running = [
            value for (role, _), value in zip(rows, values, strict=True) if role != "teacher" and value is not None
        ]
        best = column.show(column.best(running)) if running else None
        differ = len({column.show(value) for value in running}) > 1
        for row, (role, _), text in zip(shown, rows, texts, strict=True):
            row.append(Cell(text, differ and role != "teacher" and text == best))
    return [(role, entry, row) for (role, entry), row in zip(rows, shown, strict=True)]


def variants(results: Mapping[str, Any]) -> list[tuple[Entry, list[str]]]:
    """Return the rows of what else was measured, e.g. exits or an ensemble: (entry, texts of VARIANT_COLUMNS)."""
    found = results.get("variants") or []
    return [
        (entry, [NOTHING if (value := c.value(entry)) is None else c.show(value) for c in VARIANT_COLUMNS])
        for entry in found
    ]


#: Latency of variants was taken in turn with the student's alone, so it is told beside that.
VARIANT_COLUMNS = (
    *(column for column in COLUMNS if column is not LATENCY_P95),
    Column("Latency", "of the student's", lambda e: e.get("latency_ratio"), lambda ratio: f"{ratio:.2f} x", min),
)


def item_cell(value: Any) -> str:
    """A word or number of an item: whole numbers in full, others to two places or three significant digits."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if 10 <= abs(value) < 1000 or value == 0 else significant(value)


def heads() -> list[str]:
    return [f"{column.title} ({column.unit})" if column.unit else column.title for column in COLUMNS]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align columns with spaces; the first ``left`` of them to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        parts = [
            value.ljust(width) if i < left else value.rjust(width)
            for i, (value, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Write a table whose cells are Markdown already."""
    rule = ["---" if i < left else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def markdown_text(value: Any) -> str:
    """Make text literal in Markdown, in a table too."""
    text = plain(str(value), 200).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~" else c for c in text)
