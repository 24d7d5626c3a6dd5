"""Networks of one run, and several runs, side by side on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from kdzoo.errors import plain
from kdzoo.report.measurements import comparison
from kdzoo.report.results import parse_results
from kdzoo.report.tables import text_table, wrapped
from kdzoo.report.verdict import verdict

#: Longest name that is shown whole.
LONGEST_NAME = 40


def comparison_table(results: Mapping[str, Any], width: int | None = None) -> str:
    """Return the comparison of one run as aligned text, the verdict below it.

    Where it is wider than ``width`` characters, it has fewer columns.
    """
    return "\n".join(text for text, _ in comparison_parts(results, width))


def comparison_parts(results: Mapping[str, Any], width: int | None = None) -> list[tuple[str, str]]:
    """Return what ``comparison_table`` consists of, each text with its tone: that of a verdict, ``bad``, or none."""
    parsed = parse_results(results)
    found = comparison(parsed)
    models = [entry.model for entry in parsed.entries()]
    rows = [
        [plain(row.name, LONGEST_NAME), plain(model, LONGEST_NAME), *(cell.text for cell in row.cells)]
        for row, model in zip(found.rows, models, strict=True)
    ]
    header = [
        "",
        "model",
        *(f"{head.title}\n{wrapped(head.unit, max(6, len(head.title)))}".strip() for head in found.heads[1:]),
    ]
    model, agreement, ece, parameters, macs, p95 = 1, 3, 4, 5, 7, 9
    table = text_table(header, rows, left=2, width=width, spare=(p95, macs, ece, parameters, agreement, model))
    judged = verdict(parsed)
    rejected = [f"Rejected: {plain(row.name)}: {plain(problem, 400)}" for row in found.rows for problem in row.problems]
    said = [*((text, "bad") for text in rejected), (f"{judged.headline}.", judged.tone), (judged.sentence, "")]
    return [
        (f"{table}\n", ""),
        *((text if width is None else textwrap.fill(text, width, break_on_hyphens=False), tone) for text, tone in said),
    ]
