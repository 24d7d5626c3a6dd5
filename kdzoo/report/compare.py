"""Runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdzoo.errors import plain
from kdzoo.report.reading import algorithm_of, read_finished
from kdzoo.report.tables import LATENCY, NOTHING, cells, counted, entries, heads, significant, text_table
from kdzoo.report.verdict import verdict


def comparison_table(results: Mapping[str, Any]) -> str:
    """Return the comparison as aligned text, the verdict below it."""
    rows = [
        [plain(entry["label"], 40), plain(entry["model"], 40), *(cell.text for cell in row)]
        for _, entry, row in cells(results)
    ]
    judged = verdict(results)
    return "\n".join([text_table(["", "model", *heads()], rows, left=2), "", f"{judged.headline}. {judged.sentence}"])


def compare_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return one row of full floats for each run folder.

    Raise ReportError for one that is not of a finished run, CorruptError for one that does not verify.
    """
    rows = []
    for folder in folders:
        run = read_finished(folder)
        results, student, control = run.results, run.results["student"], run.results.get("control")
        teachers = [entry for role, entry in entries(results) if role == "teacher"]
        rows.append(
            {
                "run": str(folder),
                "recipe": str(run.recipe.get("name", "")),
                "algorithm": algorithm_of(run),
                "student": student["model"],
                "seed": run.provenance.get("seed"),
                "teacher_top1_percent": max((entry["top1_percent"] for entry in teachers), default=None),
                "control_top1_percent": control["top1_percent"] if control else None,
                "top1_percent": student["top1_percent"],
                "gain_points": student["top1_percent"] - control["top1_percent"] if control else None,
                "agreement_percent": student.get("agreement_percent"),
                "ece": student.get("ece"),
                "params_m": student.get("params_m"),
                "latency_p50_ms": LATENCY.value(student),
            }
        )
    return rows


#: How compare_table heads and rounds the numbers of compare_runs.
COMPARED: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("seed", "seed", str),
    ("teacher_top1_percent", "teacher %", "{:.2f}".format),
    ("control_top1_percent", "control %", "{:.2f}".format),
    ("top1_percent", "student %", "{:.2f}".format),
    ("gain_points", "gain", "{:+.2f}".format),
    ("agreement_percent", "agreement %", "{:.2f}".format),
    ("ece", "ECE", "{:.3f}".format),
    ("params_m", "params", lambda millions: counted(millions * 1e6)),
    ("latency_p50_ms", "p50 ms", significant),
)


def compare_table(folders: Sequence[Path]) -> str:
    """Return run folders side by side, as aligned text."""
    words = ("run", "recipe", "algorithm", "student")
    rows = []
    for row in compare_runs(folders):
        shown = [plain(str(row[word]), 200) for word in words]
        rows.append(shown + [NOTHING if row[key] is None else show(row[key]) for key, _, show in COMPARED])
    header = [*words, *(title for _, title, _ in COMPARED)]
    return text_table(header, rows, left=len(words))
