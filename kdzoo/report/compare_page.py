"""Several runs side by side as a page that loads nothing and escapes every name; its tables sort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdzoo.errors import plain
from kdzoo.report.compared_runs import NUMBERS, OVER_SEEDS, ComparedRuns, folder_above, recipe_label, run_name
from kdzoo.report.compared_runs import spread_text as mean_text
from kdzoo.report.drawing import place
from kdzoo.report.measurements import Head
from kdzoo.report.rendering import render
from kdzoo.report.rounding import NOTHING
from kdzoo.report.study_summary import RankCell, RankRow
from kdzoo.version import __version__

#: The heads of numbers, with their units.
HEADS = {
    "seed": Head("Seed"),
    "teacher_top1_percent": Head("Teacher", "%"),
    "control_top1_percent": Head("Control", "%"),
    "top1_percent": Head("Accuracy", "%"),
    "gain_points": Head("Over the control", "points"),
    "agreement_percent": Head("Agreement", "% with teacher"),
    "ece": Head("ECE", "0 to 1"),
    "params_m": Head("Parameters"),
    "latency_p50_ms": Head("Latency", "ms, p50"),
}
#: What describes a run besides its folder.
ABOUT = ("algorithm", "student")


def compare_page(found: ComparedRuns) -> str:
    """Return the page; ``found`` has at least one run."""
    above = folder_above([Path(row["run"]) for row in found.runs])
    several = any(len(row["seeds"]) > 1 for row in found.recipes)
    return render(
        "compare.html.j2",
        above=plain(str(above), 200) if above.parts else "",
        heads=(Head("Run"), *HEADS.values()),
        rows=[_run_row(row, above) for row in found.runs],
        recipe_heads=(Head("Recipe"), Head("Seeds"), *(HEADS[key] for key in OVER_SEEDS)),
        recipes=[_recipe_row(row) for row in found.recipes] if several else [],
        problems=[" ".join(row["problem"].split()) for row in found.runs if row["problem"]],
        version=__version__,
        colour=place,
    )


def _run_row(row: Mapping[str, Any], above: Path) -> RankRow:
    cells = [_cell(NOTHING if row[key] is None else NUMBERS[key][1](row[key]), row[key]) for key in HEADS]
    return RankRow(run_name(row, above), _about(row, ("recipe", *ABOUT)), tuple(cells), baseline=False)


def _recipe_row(row: Mapping[str, Any]) -> RankRow:
    means = [_cell(mean_text(key, row[key]), row[key] and row[key]["mean"]) for key in OVER_SEEDS]
    count = len(row["seeds"])
    return RankRow(recipe_label(row), _about(row, ABOUT), (_cell(str(count), count), *means), baseline=False)


def _cell(text: str, value: float | None) -> RankCell:
    """A mean with its spread below it, or one number."""
    first, _, std = text.partition(" \N{PLUS-MINUS SIGN} ")
    return RankCell(first, (f"\N{PLUS-MINUS SIGN} {std}",) if std else (), value)


def _about(row: Mapping[str, Any], words: Sequence[str]) -> str:
    return " · ".join(plain(str(row[word]), 80) for word in words if row[word])
