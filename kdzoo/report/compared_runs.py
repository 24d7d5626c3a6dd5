"""Several runs side by side, and recipes over their seeds, with mean and spread."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdzoo.errors import CorruptError, ReportError, plain
from kdzoo.report.measurements import p50
from kdzoo.report.reading import read_recipe, read_run, section
from kdzoo.report.rounding import NOTHING, counted, significant
from kdzoo.report.statistics import spread
from kdzoo.report.tables import text_table
from kdzoo.storage.recipe_changes import diff_fields
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.runs import read_run_record, runs_in
from kdzoo.types import stable_hash

#: What a run is called by, with the heads of the columns.
WORDS = {"run": "run", "recipe": "recipe", "algorithm": "algorithm", "student": "student"}
#: How the numbers of a run are headed and rounded.
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
SPARE = ("ece", "agreement_percent", "params_m", "latency_p50_ms", "seed", "teacher_top1_percent")
#: The numbers that differ from seed to seed.
OVER_SEEDS = tuple(key for key in NUMBERS if key not in ("seed", "params_m"))
#: How many differing keys of two recipes of one name are shown.
MOST_SHOWN = 3


@dataclass(frozen=True)
class ComparedRuns:
    """One row of full floats for each run, and one for each recipe over its seeds.

    ``state`` of a run is finished, unfinished or damaged; the numbers of the latter two are None, and ``problem`` says
    what is damaged. A recipe's ``seeds`` are those of finished runs; each number has a ``mean`` and a ``std`` (n - 1;
    None of one seed).
    """

    runs: list[dict[str, Any]]
    recipes: list[dict[str, Any]]


def compare_runs(places: Sequence[Path]) -> ComparedRuns:
    """Compare run folders, the runs in the folder of a recipe, and all runs in a folder of runs.

    A damaged run in a folder of several is a row. Raises CorruptError or ReportError that names every run folder among
    ``places`` that is damaged, and every place without a run.
    """
    rows, recipes, errors = [], [], []
    for place in places:
        several = _several(place)
        for folder in several or [place]:
            try:
                rows.append(compared(folder))
                recipes.append(_recipe_of(folder))
            except (CorruptError, ReportError) as error:
                if several:
                    rows.append(_empty(folder, "damaged", problem=str(error)))
                    recipes.append({})
                else:
                    errors.append(error)
    if errors:
        raise type(errors[0])("\n".join(map(str, errors)))
    return ComparedRuns(rows, _over_seeds(rows, recipes))


def _several(place: Path) -> list[Path]:
    """The runs in a folder of runs; none where it is a run folder, or nothing that can be looked into."""
    try:
        own = (place / "run.json").exists() or (place / "manifest.json").exists()
        return [] if own else [folder for folder in runs_in(place) if folder != place]
    except (OSError, ValueError):  # a name that no file can have, too
        return []


def compared(folder: Path) -> dict[str, Any]:
    """One row of ``compare_runs``."""
    if not is_finished(folder):
        recipe = read_recipe(folder)
        return _empty(
            folder,
            "unfinished",
            recipe=recipe.get("name"),
            algorithm=section(recipe, "algorithm").get("name"),
            student=section(section(recipe, "models"), "student").get("name"),
            seed=recipe.get("seed"),
        )
    run = read_run(folder)
    student, control, teacher = run.results.student, run.results.control, run.results.best_teacher
    return {
        "run": str(folder),
        "state": "finished",
        "problem": "",
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


def _empty(folder: Path, state: str, **known: Any) -> dict[str, Any]:
    """The row of a run without numbers."""
    return {"run": str(folder), "state": state, "problem": ""} | dict.fromkeys([*list(WORDS)[1:], *NUMBERS]) | known


def is_finished(folder: Path) -> bool:
    """Whether a run has finished; a finished one is held against its manifest."""
    run = RunFolder.view(folder)
    if run.finished:
        run.verify()
    return run.finished


# --- over seeds -------------------------------------------------------------------------------


def _recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of a run but for its seed, with the run's place in the order of runs."""
    record = read_run_record(folder)
    return {"sequence": record["sequence"], "fields": {**record["recipe"], "seed": None}}


def _over_seeds(rows: Sequence[Mapping[str, Any]], recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each recipe that finished; of a seed that ran more than once, its newest run counts."""
    groups: dict[str, dict[Any, tuple[int, Mapping[str, Any]]]] = {}
    fields: dict[str, Mapping[str, Any]] = {}
    for row, recipe in zip(rows, recipes, strict=True):
        if row["state"] != "finished":
            continue
        key = stable_hash([row["recipe"], recipe["fields"]])
        fields[key] = recipe["fields"]
        runs = groups.setdefault(key, {})
        if row["seed"] not in runs or runs[row["seed"]][0] < recipe["sequence"]:
            runs[row["seed"]] = (recipe["sequence"], row)
    found: list[dict[str, Any]] = []
    first: dict[str, Mapping[str, Any]] = {}
    for key, runs in groups.items():
        members = [runs[seed][1] for seed in sorted(runs, key=str)]
        words = {word: members[0][word] for word in WORDS if word != "run"}
        differing = diff_fields(first.setdefault(str(words["recipe"]), fields[key]), fields[key])
        numbers = {number: _spread([row[number] for row in members]) for number in OVER_SEEDS}
        found.append(
            {
                **words,
                "changed": differing,
                "seeds": [row["seed"] for row in members],
                "runs": [row["run"] for row in members],
                **numbers,
                "params_m": members[0]["params_m"],
            }
        )
    return found


def _spread(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Mean and standard deviation of what was measured; None of nothing."""
    known = [value for value in values if value is not None]
    return {"mean": (found := spread(known)).mean, "std": found.std} if known else None


def recipe_label(row: Mapping[str, Any]) -> str:
    """A recipe's name, and how it differs from an earlier one of the same name."""
    changed = row["changed"]
    more = f"; and {len(changed) - MOST_SHOWN} more" if len(changed) > MOST_SHOWN else ""
    shown = f" ({'; '.join(changed[:MOST_SHOWN])}{more})" if changed else ""
    return plain(f"{row['recipe'] or NOTHING}{shown}", 200)


def spread_text(key: str, value: Mapping[str, float | None] | None) -> str:
    """A mean with its spread, rounded as a run's number is."""
    if value is None:
        return NOTHING
    show = NUMBERS[key][1]
    return show(value["mean"]) + ("" if value["std"] is None else f" ± {show(value['std']).lstrip('+')}")


# --- on a terminal ----------------------------------------------------------------------------


def compare_table(found: ComparedRuns, width: int | None = None) -> str:
    """Return runs side by side as aligned text, then recipes over seeds where one has several.

    What all runs have in common comes first, on a line of its own. Where a table is wider than ``width`` characters, it
    has fewer columns.
    """
    rows = found.runs
    alike = [word for word in WORDS if len(rows) > 1 and len({str(row[word]) for row in rows}) == 1]
    above = folder_above([Path(row["run"]) for row in rows])
    words, keys = [word for word in WORDS if word not in alike], list(NUMBERS)
    table = []
    for row in rows:
        texts = [run_name(row, above) if word == "run" else plain(str(row[word] or NOTHING), 200) for word in words]
        table.append(texts + [NOTHING if row[key] is None else NUMBERS[key][1](row[key]) for key in keys])
    header = [*(WORDS[word] for word in words), *(NUMBERS[key][0] for key in keys)]
    spare = [len(words) + keys.index(key) for key in SPARE]
    lines = [f"in {plain(str(above), 200)}"] if above.parts else []
    lines += [f"{WORDS[word]}: {plain(str(rows[0][word] or NOTHING), 200)}" for word in alike]
    lines.append(text_table(header, table, left=len(words), width=width, spare=spare))
    lines += [f"damaged: {plain(' '.join(row['problem'].split()), 400)}" for row in rows if row["problem"]]
    if any(len(row["seeds"]) > 1 for row in found.recipes):
        lines += ["", "mean ± standard deviation over seeds", _recipe_table(found.recipes, width)]
    return "\n".join(lines)


def _recipe_table(recipes: Sequence[Mapping[str, Any]], width: int | None) -> str:
    header = ["recipe", "seeds", *(NUMBERS[key][0] for key in OVER_SEEDS)]
    table = [
        [recipe_label(row), str(len(row["seeds"])), *(spread_text(key, row[key]) for key in OVER_SEEDS)]
        for row in recipes
    ]
    spare = [2 + OVER_SEEDS.index(key) for key in SPARE if key in OVER_SEEDS]
    return text_table(header, table, left=1, width=width, spare=spare)


def run_name(row: Mapping[str, Any], above: Path) -> str:
    """A run's folder below ``above``, and its state unless it finished."""
    folder = Path(row["run"])
    name = plain(str(folder.relative_to(above) if above.parts else folder), 200)
    return name if row["state"] == "finished" else f"{name} ({row['state']})"


def folder_above(folders: Sequence[Path]) -> Path:
    """The folder that all of them are in; the working folder where there is no other."""
    if len({folder.is_absolute() for folder in folders}) > 1:
        return Path()
    return Path(os.path.commonpath([folder.parent for folder in folders]))
