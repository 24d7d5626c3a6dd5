"""Writing report.html and the model card of a run folder."""

from __future__ import annotations

from pathlib import Path

from kdzoo.errors import CorruptError
from kdzoo.report.model_card import card
from kdzoo.report.page import page
from kdzoo.report.reading import read_run
from kdzoo.storage.atomic import replace_files
from kdzoo.storage.run_folder import RunFolder

#: What write_report writes.
WRITTEN = ("report.html", "README.md")


def write_report(folder: Path) -> None:
    """Write report.html and README.md into a run folder, from its files alone.

    Raises ReportError naming a file that is missing or not right, and OutputError when the folder cannot be written.
    """
    replace_files(folder, written(folder))


def written(folder: Path) -> dict[str, bytes]:
    """The content of each file that a report is, by name; ReportError as ``write_report``."""
    run = read_run(folder)
    return {name: text.encode() for name, text in zip(WRITTEN, (page(run), card(run)), strict=True)}


def rewrite_report(folder: Path) -> None:
    """Write report.html and README.md of a finished run again, and record them in its manifest.

    Every file is compared with the manifest first, these two as well if they exist: CorruptError lists those that
    differ, and nothing is written. Raise ReportError where no finished run is.
    """
    run = RunFolder.view(folder)
    gone = [name for name in WRITTEN if not run.path(name).exists()]
    try:
        run.verify(leave_out=gone)
    except CorruptError as error:
        changed = [name for name in WRITTEN if f"{run.path(name)}: " in str(error)]
        remedy = f"\n`kdzoo report` writes {' and '.join(changed)} again once deleted" if changed else ""
        raise CorruptError(f"{error}{remedy}") from None
    run.replace(written(folder))
