"""What a run folder says, read from its files alone: its numbers, rounded for people, and the verdict.

results.json keeps full floats; COLUMNS says how those of a model or file are rounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kdzoo.errors import ReportError
from kdzoo.metrics import paired_difference
from kdzoo.problems import plain

Entry = Mapping[str, Any]
Tone = Literal["good", "even", "bad", "unknown"]


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a finished run left."""

    folder: Path
    results: dict[str, Any]
    rows: list[dict[str, Any]]
    recipe_text: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    student: dict[str, Any]  # student.json; empty where there is none


def read_run(folder: Path) -> Run:
    """Read a run folder; ReportError names the file that is missing or cannot be read, and what it should be."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such run folder")
    results = read_json(folder / "results.json")
    if not isinstance(results.get("student"), dict) or "top1_percent" not in results["student"]:
        raise ReportError(
            f"{folder / 'results.json'}: has no 'student' entry with top1_percent; it is not of a finished run"
        )
    recipe_text = read_text(folder / "recipe.yaml")
    try:
        recipe = yaml.safe_load(recipe_text)
    except yaml.YAMLError as error:
        raise ReportError(f"{folder / 'recipe.yaml'}: is not YAML: {' '.join(str(error).split())}") from error
    student = folder / "student.json"
    return Run(
        folder=folder,
        results=results,
        rows=[
            parse(folder / "metrics.jsonl", line, i)
            for i, line in enumerate(read_text(folder / "metrics.jsonl").splitlines())
        ],
        recipe_text=recipe_text,
        recipe=recipe if isinstance(recipe, dict) else {},
        provenance=read_json(folder / "provenance.json"),
        student=read_json(student) if student.exists() else {},
    )


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReportError(f"{path}: is missing; a report needs it, and a finished run has it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    return parse(path, read_text(path))


def parse(path: Path, text: str, row: int = 0) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: line {row + error.lineno}: is not JSON: {error.msg}") from None
    if not isinstance(content, dict):
        raise ReportError(f"{path}: line {row + 1}: holds no JSON object but {plain(text.strip(), 40)}")
    return content


# --- what is shown of an entry --------------------------------------------------------------------


def significant(value: float) -> str:
    """Three significant digits, whole numbers from 100 on: 0.0120, 4.56, 1,230."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def counted(value: float) -> str:
    """A count in the unit that suits it: 868, 78.0 k, 1.73 M, 4.09 G."""
    return scaled(value, ("", " k", " M", " G"), 1000)


def sized(mib: float) -> str:
    """A size in the unit that suits it: 512 B, 4.63 KiB, 6.89 MiB."""
    return scaled(mib * 2**20, (" B", " KiB", " MiB", " GiB"), 1024)


def scaled(value: float, units: Sequence[str], step: int) -> str:
    power = 0
    while power + 1 < len(units) and value >= 0.9995 * step:
        value, power = value / step, power + 1
    return f"{value:.0f}" + units[0] if power == 0 else significant(value) + units[power]


@dataclass(frozen=True)
class Column:
    """One number of an entry: where it stands, how it is rounded, and which is better."""

    title: str
    unit: str
    value: Callable[[Entry], float | None]
    show: Callable[[float], str]
    best: Callable[..., float]


LATENCY = Column("Latency p50", "ms", lambda e: (e.get("latency_ms") or {}).get("p50"), significant, min)
LATENCY_P95 = Column("p95", "ms", lambda e: (e.get("latency_ms") or {}).get("p95"), significant, min)
COLUMNS = (
    Column("Accuracy", "%", lambda e: e.get("top1_percent"), "{:.2f}".format, max),
    Column("Agreement", "% with teacher", lambda e: e.get("agreement_percent"), "{:.2f}".format, max),
    Column("ECE", "0 to 1", lambda e: e.get("ece"), "{:.3f}".format, min),
    Column("Parameters", "", lambda e: e.get("params_m"), lambda millions: counted(millions * 1e6), min),
    Column("Size", "", lambda e: e.get("size_mib"), sized, min),
    Column("MACs", "", lambda e: e.get("macs_g"), lambda billions: counted(billions * 1e9), min),
    LATENCY,
    LATENCY_P95,
)
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False


def entries(results: Mapping[str, Any]) -> list[tuple[str, Entry]]:
    """Return (role, entry) pairs in the order of the table; roles are teacher, control, student, peer and export."""
    teachers = results.get("teachers") or [results.get("teacher")]
    groups = {
        "teacher": [*teachers, *(results.get("teacher_exports") or [])],
        "control": [results.get("control")],
        "student": [results["student"]],
        "peer": results.get("peers") or [],
        "export": results.get("exports") or [],
    }
    return [(role, entry) for role, group in groups.items() for entry in group if entry]


def cells(results: Mapping[str, Any]) -> list[tuple[str, Entry, list[Cell]]]:
    """Return the comparison's rows. The best of a column is marked among what could be deployed, teachers aside, and
    only where they differ as shown."""
    rows = entries(results)
    shown: list[list[Cell]] = [[] for _ in rows]
    for column in COLUMNS:
        values = [column.value(entry) for _, entry in rows]
        texts = [NOTHING if value is None else column.show(value) for value in values]
        running = [
            value for (role, _), value in zip(rows, values, strict=True) if role != "teacher" and value is not None
        ]
        best = column.show(column.best(running)) if running else None
        differ = len({column.show(value) for value in running}) > 1
        for row, (role, _), text in zip(shown, rows, texts, strict=True):
            row.append(Cell(text, differ and role != "teacher" and text == best))
    return [(role, entry, row) for (role, entry), row in zip(rows, shown, strict=True)]


def variants(results: Mapping[str, Any]) -> list[tuple[Entry, list[str]]]:
    """Return the rows of what else was measured, e.g. exits or an ensemble: (entry, texts of VARIANT_COLUMNS)."""
    found = results.get("variants") or []
    return [
        (entry, [NOTHING if (value := c.value(entry)) is None else c.show(value) for c in VARIANT_COLUMNS])
        for entry in found
    ]


#: Latency of variants was taken in turn with the student's alone, so it is told beside that.
VARIANT_COLUMNS = (
    *(column for column in COLUMNS if column is not LATENCY_P95),
    Column("Latency", "of the student's", lambda e: e.get("latency_ratio"), lambda ratio: f"{ratio:.2f} x", min),
)


def exhibit_cell(value: Any) -> str:
    """A word or number of an exhibit: whole numbers in full, others to two places or three significant digits."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if 10 <= abs(value) < 1000 or value == 0 else significant(value)


# --- the verdict ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Whether distillation was worth it: a headline, the sentence behind it, and a few ratios (value, what of)."""

    tone: Tone
    headline: str
    sentence: str
    facts: tuple[tuple[str, str], ...]


#: What the interval of a paired difference says.
HEADLINES: Mapping[Tone, str] = {
    "good": "Distillation was worth it",
    "even": "No difference that this test set can show",
    "bad": "Distillation made it worse",
}


def verdict(results: Mapping[str, Any]) -> Verdict:
    """Judge student against control on the same test samples; ratios are against the best teacher."""
    student, control = results["student"], results.get("control")
    samples = (results.get("data") or {}).get("test_samples")
    paired = results.get("paired")
    reached = f"The distilled student reaches {student['top1_percent']:.2f} %"
    if paired:
        samples = sum(paired.values())
    if samples:
        reached += f" on {samples:,} test samples"
    compared = tuple(ratios(results))
    guess = (results.get("data") or {}).get("most_common_class_percent")
    if guess is not None and samples and student["top1_percent"] <= guess + chance(guess, samples):
        sentence = f"{reached}; naming the most common class each time would reach {guess:.2f} %."
        return Verdict("bad", "The student does not do better than guessing", sentence, compared)
    if not control:
        sentence = f"{reached}. The run has no control, so it cannot say whether distillation was worth it."
        return Verdict("unknown", "No control, no verdict", sentence, compared)
    gain = student["top1_percent"] - control["top1_percent"]
    if results.get("data_handed") == "none":
        fact = f"{gain:+.2f}", "points against the same network trained on the data"
        sentence = (
            f"{reached} and was handed no training sample; the control, the same network trained on them, reaches "
            f"{control['top1_percent']:.2f} %."
        )
        return Verdict("unknown", "Trained without data", sentence, (fact, *compared))
    if results.get("upper_bound"):
        other = f"the same network trained {results['upper_bound']}"
        fact = f"{gain:+.2f}", f"points against {other}"
        sentence = f"{reached}; the control, {other}, is an upper bound and reaches {control['top1_percent']:.2f} %."
        return Verdict("unknown", "Held against an upper bound", sentence, (fact, *compared))
    network = "the same network" if results.get("same_network", True) else "the recipe's student, another network,"
    fact = f"{gain:+.2f}", f"points against {network} trained alone"
    labelled = (results.get("data") or {}).get("labelled")
    labels = "" if labelled is None else f" on {labelled:,} labels"
    more = "more" if gain >= 0 else "less"
    than = f"{abs(gain):.2f} points {more} than {network} trained alone under the same budget{labels}"
    if not paired:
        sentence = f"{reached}, {than}. The run did not keep on which samples they differ."
        return Verdict("unknown", "A difference without an interval", sentence, (fact, *compared))
    _, low, high = paired_difference(paired)
    tone: Tone = "good" if low > 0 else "bad" if high < 0 else "even"
    sentence = f"{reached}, {than}; 95 % interval of the difference {low:+.2f} to {high:+.2f} points."
    return Verdict(tone, HEADLINES[tone], sentence, (fact, *compared))


def chance(percent: float, samples: int) -> float:
    """Points above ``percent`` that the choice of test samples alone explains: two standard errors."""
    return 2 * (percent * (100 - percent) / samples) ** 0.5


def ratios(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Compare the student, and the smallest file, with the best teacher."""
    rows = entries(results)
    teachers = [entry for role, entry in rows if role == "teacher" and not entry.get("file")]
    if not teachers:
        return []
    student, teacher = results["student"], max(teachers, key=lambda entry: entry["top1_percent"])
    facts = []
    if teacher["top1_percent"]:
        kept = 100 * student["top1_percent"] / teacher["top1_percent"]
        facts.append((f"{kept:.1f} %", "of the teacher's accuracy"))
    facts += ratio(teacher.get("params_m"), student.get("params_m"), "fewer parameters", "more parameters")
    files = [entry for role, entry in rows if role in ("student", "export") and entry.get("size_mib")]
    if files:
        smallest = min(files, key=lambda entry: entry["size_mib"])
        facts += ratio(
            teacher.get("size_mib"),
            smallest["size_mib"],
            f"smaller file ({smallest['label']})",
            f"larger file ({smallest['label']})",
        )
    theirs, ours = (LATENCY.value(entry) for entry in (teacher, student))
    facts += ratio(theirs, ours, "faster at batch 1", "slower at batch 1")
    return facts


def ratio(theirs: float | None, ours: float | None, less: str, more: str) -> list[tuple[str, str]]:
    if not theirs or not ours:
        return []
    times, what = (theirs / ours, less) if theirs >= ours else (ours / theirs, more)
    return [(f"{times:.1f}\N{MULTIPLICATION SIGN}", what)]


CAVEAT = (
    "The interval covers the choice of test samples. Another training seed moves the result too; only runs with "
    "several seeds show how much."
)


def algorithm_of(run: Run) -> str:
    written = run.recipe.get("algorithm")
    return str(run.results.get("algorithm") or (written.get("name") if isinstance(written, dict) else "") or "unknown")


# --- tables as text -------------------------------------------------------------------------------


def heads() -> list[str]:
    return [f"{column.title} ({column.unit})" if column.unit else column.title for column in COLUMNS]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align columns with spaces; the first ``left`` of them to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        parts = [
            value.ljust(width) if i < left else value.rjust(width)
            for i, (value, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Write a table whose cells are Markdown already."""
    rule = ["---" if i < left else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def markdown_text(value: Any) -> str:
    """Make text literal in Markdown, in a table too."""
    text = plain(str(value), 200).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~" else c for c in text)
