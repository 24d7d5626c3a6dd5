"""A study's own folder: study.json, study.csv and report.html, each under its sha256."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdzoo.errors import CorruptError, ReportError
from kdzoo.report.study_page import study_page
from kdzoo.report.study_results import Arm, ArmRun, Study, parse_study
from kdzoo.storage.atomic import json_bytes
from kdzoo.storage.json_reading import JsonError, parse_object
from kdzoo.storage.sealed_folder import MANIFEST, read_together, write_together

#: What the manifest says that the files belong to.
OF = "a study"


def write_study(folder: Path, study: Mapping[str, Any]) -> None:
    """Write study.json, study.csv and report.html of a ranked study, and a manifest of the three.

    Raises ReportError where ``study`` is not as ``ranked`` returns it, OutputError when the folder cannot be written.
    """
    parsed = parse_study(study)
    files = {
        "study.json": json_bytes(study),
        "study.csv": csv_text(parsed).encode(),
        "report.html": study_page(study).encode(),
    }
    write_together(folder, files, OF)


def read_study(folder: Path) -> dict[str, Any]:
    """Return the content of study.json after comparing it with the manifest.

    Raises ReportError where no study was written, CorruptError where its files are not as they were written.
    """
    path = folder / "study.json"
    if not (folder / MANIFEST).exists():
        raise ReportError(f"{folder}: holds no study; `kdzoo study FILE` writes one")
    try:
        content = parse_object(read_together(folder, path.name, OF))
    except JsonError as error:
        raise CorruptError(f"{path}: damaged: {error}") from None
    parse_study(content, path)
    return content


def csv_text(study: Study) -> str:
    """Return one row a run, an arm with one seed; what was not measured is empty."""
    rows = [dict(cells(arm, run)) for arm in study.arms for run in arm.runs]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def cells(arm: Arm, run: ArmRun) -> Iterator[tuple[str, Any]]:
    """Column and value of one row; each exported file has columns of its own."""
    yield from (("arm", arm.label), ("algorithm", arm.algorithm), ("student", arm.student), ("recipe", arm.recipe))
    yield from (("data", arm.data), ("upper_bound", arm.upper_bound))
    yield from ((f"settings.{key}", value) for key, value in arm.settings.items())
    yield from run.model_dump(exclude={"training_pmacs", "files"}).items()
    if run.training_pmacs is not None:
        yield from ((f"training_pmacs.{of}", value) for of, value in run.training_pmacs.model_dump().items())
    for file in run.files:
        yield from ((f"{file.label}.{of}", value) for of, value in file.model_dump(exclude={"label"}).items())
