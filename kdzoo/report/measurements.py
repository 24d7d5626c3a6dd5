"""The numbers of a run, rounded for people and side by side.

results.json keeps full floats; COLUMNS says how those of a network or file are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdzoo.report.results import Entry, Measurements, Results, Variant
from kdzoo.report.rounding import NOTHING, counted, significant, sized


def item_text(value: Any) -> str:
    """A word or number that an algorithm shows: whole numbers in full, others to two places or three digits."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if 10 <= abs(value) < 1000 or value == 0 else significant(value)


@dataclass(frozen=True)
class Head:
    """The head of a column."""

    title: str
    unit: str = ""

    @property
    def text(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True)
class Column:
    """One number of an entry: its head, which it is, how it is rounded, and which is better."""

    head: Head
    value: Callable[[Any], float | None]
    show: Callable[[float], str]
    best: Callable[..., float]

    def text(self, entry: Measurements) -> str:
        value = self.value(entry)
        return NOTHING if value is None else self.show(value)


def p50(entry: Measurements) -> float | None:
    return entry.latency_ms.p50 if entry.latency_ms else None


def p95(entry: Measurements) -> float | None:
    return entry.latency_ms.p95 if entry.latency_ms else None


ALWAYS_SHOWN = (
    Column(Head("Accuracy", "%"), lambda e: e.top1_percent, "{:.2f}".format, max),
    Column(Head("Agreement", "% with teacher"), lambda e: e.agreement_percent, "{:.2f}".format, max),
    Column(Head("ECE", "0 to 1"), lambda e: e.ece, "{:.3f}".format, min),
    Column(Head("Parameters"), lambda e: e.params_m, lambda millions: counted(millions * 1e6), min),
    Column(Head("Size"), lambda e: e.size_mib, sized, min),
    Column(Head("MACs"), lambda e: e.macs_g, lambda billions: counted(billions * 1e9), min),
    Column(Head("Latency p50", "ms"), p50, significant, min),
)
COLUMNS = (*ALWAYS_SHOWN, Column(Head("p95", "ms"), p95, significant, min))
#: Latency of variants is timed in turn with the student's alone, so it is shown relative to that.
VARIANT_COLUMNS = (
    *ALWAYS_SHOWN,
    Column(Head("Latency", "of the student's"), lambda e: e.latency_ratio, "{:.2f} x".format, min),
)


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, a few words about it, its cells, and what is wrong with it."""

    name: str
    cells: tuple[Cell, ...]
    about: str = ""
    role: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table: the heads, the first being that of the rows' names, and the rows."""

    heads: tuple[Head, ...]
    rows: tuple[Row, ...]


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    """A table of plain texts; the first of each row is its name."""
    return Grid(
        tuple(Head(head) for head in heads),
        tuple(Row(row[0], tuple(Cell(text) for text in row[1:])) for row in rows),
    )


def comparison(results: Results) -> Grid:
    """Every network and file side by side.

    The best of a column is marked among what could be deployed: no teacher, no rejected file, and only where the
    numbers differ as shown.
    """
    entries = list(results.entries())
    best = [marked(column, entries) for column in COLUMNS]
    rows = [
        Row(
            name=entry.label,
            about=f"{entry.model} · {entry.file}" if entry.file else entry.model,
            role=entry.role,
            cells=tuple(Cell(column.text(entry), entry in marks) for column, marks in zip(COLUMNS, best, strict=True)),
            problems=tuple(entry.rejected),
        )
        for entry in entries
    ]
    return Grid((Head("Model"), *(column.head for column in COLUMNS)), tuple(rows))


def marked(column: Column, entries: Sequence[Entry]) -> list[Entry]:
    """Those entries that show the best of a column; none where all show the same."""
    running = [e for e in entries if e.network != "teacher" and not e.rejected and column.value(e) is not None]
    texts = {column.text(entry) for entry in running}
    if len(texts) < 2:
        return []
    best = column.show(column.best(value for entry in running if (value := column.value(entry)) is not None))
    return [entry for entry in running if column.text(entry) == best]


def variants(found: Sequence[Variant]) -> Grid:
    """What else the algorithm measured, such as exits or an ensemble."""
    rows = [Row(entry.label, tuple(Cell(column.text(entry)) for column in VARIANT_COLUMNS)) for entry in found]
    return Grid((Head("Variant"), *(column.head for column in VARIANT_COLUMNS)), tuple(rows))
