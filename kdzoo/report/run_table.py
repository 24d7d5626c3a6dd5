"""The runs of a folder as a table on a terminal, and as plain data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kdzoo.errors import CorruptError, UnknownName, nearest, plain
from kdzoo.report.rounding import NOTHING, aged, sized
from kdzoo.report.tables import text_table
from kdzoo.storage.json_reading import JsonError, parse_object, read_file
from kdzoo.storage.run_list import ListedRun, list_runs


def run_rows(out: Path, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row of full floats for each run below ``out``, of all recipes or of those with these names or patterns.

    Files are read, and not compared with their hashes. Raise UnknownName where no recipe has one of the names.
    """
    found = list_runs(out)
    recipes = sorted({run.recipe for run in found})
    for name in names:
        if not any(fnmatchcase(recipe, name) for recipe in recipes):
            known = f"known: {', '.join(recipes[:20])}" if recipes else "there are none"
            raise UnknownName(f"{out}: no run of a recipe '{plain(name)}'{nearest(name, recipes) or ';'} {known}")
    return [_row(run) for run in found if not names or any(fnmatchcase(run.recipe, name) for name in names)]


def _row(run: ListedRun) -> dict[str, Any]:
    reached: tuple[float | None, float | None, float | None] = (None, None, None)
    if run.state == "finished":
        try:
            reached = _reached(run.folder)
        except CorruptError as error:
            run = replace(run, state="damaged", problem=str(error))
    stage, epoch = _progress(run)
    return {
        "run": str(run.folder),
        "recipe": run.recipe,
        "seed": run.seed,
        "state": run.state,
        "problem": run.problem,
        "owner": run.owner,
        "stage": stage,
        "epoch": epoch,
        "top1_percent": reached[0],
        "control_top1_percent": reached[1],
        "gain_points": reached[2],
        "age_seconds": max(0.0, time.time() - run.changed),
        "size_bytes": run.size_bytes,
    }


def _reached(folder: Path) -> tuple[float | None, float | None, float | None]:
    """Accuracy of student and control, percent, and the gain; None for what was not measured."""
    from kdzoo.contract.classification import QUALITY, quality  # needs numpy, and an unfinished run does not

    path = folder / "results.json"
    try:
        results = parse_object(read_file(path))
        student, control = results["student"], results["control"]
        gain = None if control is None else quality(student) - quality(control)
        return student[QUALITY], None if control is None else control[QUALITY], gain
    except (OSError, JsonError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path}: cannot be read: {error}") from None


def _progress(run: ListedRun) -> tuple[str | None, int | None]:
    """The stage that an unfinished run is in, and how many of its epochs are over; None where neither is known."""
    row: Mapping[str, Any] = run.last_row or {}
    begun = [str(name) for name in run.record.get("checkpointed", [])]
    stage, epoch = row.get("stage"), row.get("epoch")
    if begun and stage not in begun:
        return ", ".join(begun), None
    return (str(stage), epoch + 1) if isinstance(stage, str) and isinstance(epoch, int) else (None, None)


def run_table(rows: Sequence[Mapping[str, Any]], out: Path, width: int | None = None) -> str:
    """Return the rows of ``run_rows`` as aligned text, and below it what is damaged and how much room all take."""
    if not rows:
        return f"no runs in {plain(str(out), 200)}"
    header = ["run", "state", "stage", "epoch", "student\n%", "gain", "age", "size"]
    table = [
        [
            plain(str(Path(row["run"]).relative_to(out)), 200),
            row["state"],
            plain(row["stage"] or NOTHING),
            NOTHING if row["epoch"] is None else str(row["epoch"]),
            NOTHING if row["top1_percent"] is None else f"{row['top1_percent']:.2f}",
            NOTHING if row["gain_points"] is None else f"{row['gain_points']:+.2f}",
            aged(row["age_seconds"]),
            sized(row["size_bytes"] / 2**20),
        ]
        for row in rows
    ]
    epoch, student, age, size = 3, 4, 6, 7
    lines = [text_table(header, table, left=3, width=width, spare=(student, age, size, epoch))]
    lines += [f"damaged: {plain(' '.join(row['problem'].split()), 400)}" for row in rows if row["problem"]]
    elsewhere = [row for row in rows if row["state"] == "elsewhere"]
    lines += [f"elsewhere: {row['run']}: {row['owner']}; nobody can tell from here if it runs" for row in elsewhere]
    whole = sized(sum(row["size_bytes"] for row in rows) / 2**20)
    return "\n".join([*lines, f"{len(rows)} run{'s' if len(rows) > 1 else ''}, {whole}"])
