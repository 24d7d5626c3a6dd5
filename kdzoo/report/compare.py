"""Networks of one run, and several runs, side by side on a terminal."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdzoo.errors import CorruptError, ReportError, plain
from kdzoo.report.measurements import comparison, p50
from kdzoo.report.reading import read_recipe, read_run, section
from kdzoo.report.results import parse_results
from kdzoo.report.rounding import NOTHING, counted, significant
from kdzoo.report.tables import text_table, wrapped
from kdzoo.report.verdict import verdict
from kdzoo.storage.run_folder import RunFolder

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
    parameters, macs, p95, ece = 5, 7, 9, 4
    table = text_table(header, rows, left=2, width=width, spare=(p95, macs, ece, parameters))
    judged = verdict(parsed)
    rejected = [f"Rejected: {plain(row.name)}: {plain(problem, 400)}" for row in found.rows for problem in row.problems]
    said = [*((text, "bad") for text in rejected), (f"{judged.headline}.", judged.tone), (judged.sentence, "")]
    return [
        (f"{table}\n", ""),
        *((text if width is None else textwrap.fill(text, width, break_on_hyphens=False), tone) for text, tone in said),
    ]


def compare_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return one row of full floats for each run folder; the numbers of an unfinished run are None.

    Raises CorruptError or ReportError that names every folder that is damaged or is no run's.
    """
    rows, errors = [], []
    for folder in folders:
        try:
            rows.append(compared(folder))
        except (CorruptError, ReportError) as error:
            errors.append(error)
    if errors:
        raise type(errors[0])("\n".join(map(str, errors)))
    return rows


def compared(folder: Path) -> dict[str, Any]:
    """One row of ``compare_runs``."""
    if not is_finished(folder):
        recipe = read_recipe(folder)
        return dict.fromkeys([*WORDS, *NUMBERS]) | {
            "run": str(folder),
            "finished": False,
            "recipe": recipe.get("name"),
            "algorithm": section(recipe, "algorithm").get("name"),
            "student": section(section(recipe, "models"), "student").get("name"),
            "seed": recipe.get("seed"),
        }
    run = read_run(folder)
    student, control, teacher = run.results.student, run.results.control, run.results.best_teacher
    return {
        "run": str(folder),
        "finished": True,
        "recipe": run.name,
        "algorithm": run.algorithm,
        "student": student.model,
        "seed": run.provenance.get("seed"),
        "teacher_top1_percent": teacher.top1_percent if teacher else None,
        "control_top1_percent": control.top1_percent if control else None,
        "top1_percent": student.top1_percent,
        "gain_points": student.quality - control.quality if control else None,
        "agreement_percent": student.agreement_percent,
        "ece": student.ece,
        "params_m": student.params_m,
        "latency_p50_ms": p50(student),
    }


def is_finished(folder: Path) -> bool:
    """Whether a run has finished; a finished one is held against its manifest."""
    run = RunFolder.view(folder)
    if run.finished:
        run.verify()
    return run.finished


#: Columns of compare_table, with their heads.
WORDS = {"run": "run", "recipe": "recipe", "algorithm": "algorithm", "student": "student"}
#: How the numbers of compare_runs are headed and rounded.
NUMBERS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "seed": ("seed", str),
    "teacher_top1_percent": ("teacher\n%", "{:.2f}".format),
    "control_top1_percent": ("control\n%", "{:.2f}".format),
    "top1_percent": ("student\n%", "{:.2f}".format),
    "gain_points": ("gain", "{:+.2f}".format),
    "agreement_percent": ("agreement\n%", "{:.2f}".format),
    "ece": ("ECE", "{:.3f}".format),
    "params_m": ("params", lambda millions: counted(millions * 1e6)),
    "latency_p50_ms": ("p50\nms", significant),
}
#: What is left out first where the table is too wide.
SPARE = ("ece", "agreement_percent", "params_m", "latency_p50_ms", "seed")


def compare_table(folders: Sequence[Path], width: int | None = None) -> str:
    """Return run folders side by side, as aligned text. What all have in common comes first, on a line of its own.

    Where the table is wider than ``width`` characters, it has fewer columns.
    """
    found = compare_runs(folders)
    alike = [word for word in WORDS if len(found) > 1 and len({str(row[word]) for row in found}) == 1]
    above = folder_above(folders)
    words, keys = [word for word in WORDS if word not in alike], list(NUMBERS)
    rows = []
    for folder, row in zip(folders, found, strict=True):
        name = plain(str(folder.relative_to(above) if above.parts else folder), 200)
        name += "" if row["finished"] else " (unfinished)"
        texts = [name if word == "run" else plain(str(row[word] or NOTHING), 200) for word in words]
        rows.append(texts + [NOTHING if row[key] is None else NUMBERS[key][1](row[key]) for key in keys])
    header = [*(WORDS[word] for word in words), *(NUMBERS[key][0] for key in keys)]
    spare = [len(words) + keys.index(key) for key in SPARE]
    lines = [f"in {plain(str(above), 200)}"] if above.parts else []
    lines += [f"{WORDS[word]}: {plain(str(found[0][word] or NOTHING), 200)}" for word in alike]
    return "\n".join([*lines, text_table(header, rows, left=len(words), width=width, spare=spare)])


def folder_above(folders: Sequence[Path]) -> Path:
    """The folder that all of them are in; the working folder where there is no other."""
    if len({folder.is_absolute() for folder in folders}) > 1:
        return Path()
    return Path(os.path.commonpath([folder.parent for folder in folders]))
