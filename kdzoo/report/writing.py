"""Writing report.html and the model card of a run folder."""

from __future__ import annotations

from pathlib import Path

from kdzoo.report.model_card import card
from kdzoo.report.page import page
from kdzoo.report.reading import read_run
from kdzoo.storage.atomic import write_bytes


def write_report(folder: Path) -> None:
    """Write report.html and README.md into a run folder, from its files alone.

    Raises ReportError naming a file that is missing or not right, and OutputError when the folder cannot be written.
    """
    run = read_run(folder)
    for name, text in {"report.html": page(run), "README.md": card(run)}.items():
        write_bytes(folder / name, text.encode())
