"""A run as a notebook shows it: its verdict and the table of its networks and files."""

from __future__ import annotations

from pathlib import Path

from kdzoo.report.measurements import comparison
from kdzoo.report.rendering import render
from kdzoo.report.results import Results
from kdzoo.report.verdict import verdict


def run_html(results: Results, folder: Path) -> str:
    """Return a fragment of HTML without scripts and without styles of its own page; every name is escaped."""
    return render(
        "notebook.html.j2",
        verdict=verdict(results),
        grid=comparison(results),
        warnings=results.warnings,
        folder=str(folder),
    )
