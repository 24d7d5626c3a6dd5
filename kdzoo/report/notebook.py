"""Runs and studies as a notebook shows them: a verdict and a table, as a fragment of HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdzoo.report.measurements import comparison
from kdzoo.report.rendering import render
from kdzoo.report.results import Results
from kdzoo.report.study_results import GroupVerdict, parse_study
from kdzoo.report.study_summary import summarize_study
from kdzoo.report.verdict import verdict

#: Name and a few words about it, then the lines of its cells and whether each stands out as good.
Row = tuple[str, str, Sequence[tuple[Sequence[str], bool]]]


def run_html(results: Results, folder: Path) -> str:
    """Return a run's verdict and table as HTML without scripts and without styles; every name is escaped."""
    judged, grid = verdict(results), comparison(results)
    rejected = [f"Rejected: {row.name}: {problem}" for row in grid.rows for problem in row.problems]
    return fragment(
        judged.headline,
        [judged.sentence],
        [head.text for head in grid.heads],
        [(row.name, row.about, [([cell.text], cell.best) for cell in row.cells]) for row in grid.rows],
        [*rejected, *(f"Warning: {text}" for text in results.warnings)],
        folder,
    )


def study_html(study: Mapping[str, Any], folder: Path) -> str:
    """Return a study's verdict and ranking as ``run_html``; ReportError where it is not as study.json holds it."""
    shown = summarize_study(parse_study(study))
    rows = [
        (row.name, row.about, [([cell.text, *cell.below], cell.tone == "good") for cell in row.cells])
        for row in shown.rows
    ]
    groups = shown.verdict.groups
    said = [sentence for group in groups for sentence in (*_head(group, len(groups)), *group.sentences)]
    failed = [] if shown.failed is None else [f"Failed: {row.name}" for row in shown.failed.rows]
    notes = [*failed, *([shown.verdict.caveat] if shown.verdict.caveat else [])]
    return fragment(shown.verdict.headline, said, [head.text for head in shown.heads], rows, notes, folder)


def _head(group: GroupVerdict, groups: int) -> tuple[str, ...]:
    """The headline of one of several groups; that of a single one is the study's."""
    return (f"{group.title}: {group.headline}.",) if groups > 1 else ()


def fragment(
    headline: str, said: Sequence[str], heads: Sequence[str], rows: Iterable[Row], notes: Sequence[str], folder: Path
) -> str:
    """Fill in the template."""
    return render(
        "notebook.html.j2", headline=headline, said=said, heads=heads, rows=rows, notes=notes, folder=str(folder)
    )
