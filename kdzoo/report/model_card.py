"""README.md of a run: a model card, so that the folder explains itself to whoever finds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdzoo import __version__
from kdzoo.report.reading import Run, algorithm_of
from kdzoo.report.tables import (
    VARIANT_COLUMNS,
    cells,
    entries,
    heads,
    item_cell,
    markdown_table,
    markdown_text,
    variants,
)
from kdzoo.report.verdict import CAVEAT, verdict

#: More classes than this are counted, not listed.
MOST_CLASSES = 30


def card(run: Run) -> str:
    """Return the card: what it is, how good, how to use it, how it was made, and what is not known."""
    return (
        "\n\n".join(part for part in (what(run), numbers(run), shown(run), use(run), making(run), limits(run)) if part)
        + "\n"
    )


def what(run: Run) -> str:
    results = run.results
    rows = entries(results)
    teachers = [text(entry["model"]) for role, entry in rows if role == "teacher" and not entry.get("file")]
    taught = f" It learnt from {' and '.join(teachers)}" if teachers else " It learnt without a teacher"
    judged = verdict(results)
    kind = "A text" if run.student.get("tokens") else "A" if run.student.get("floats") else "An image"
    return "\n\n".join(
        [
            f"# {text(run.recipe.get('name') or run.folder.name)}: {text(results['student']['model'])}",
            f"{kind} classifier, distilled by kdzoo with the algorithm {text(algorithm_of(run))}.{taught}.",
            f"**{judged.headline}.** {judged.sentence}",
        ]
    )


def numbers(run: Run) -> str:
    rows = []
    for role, entry, row in cells(run.results):
        name = f"**{text(entry['label'])}**" if role == "student" else text(entry["label"])
        rows.append([name, text(entry["model"]), *(f"**{cell.text}**" if cell.best else cell.text for cell in row)])
    table = markdown_table(["", "model", *heads()], rows, left=2)
    caveat = f" {CAVEAT}" if run.results.get("paired") else ""
    return f"## Results on the test split\n\n{table}\n\nBold numbers are the best of a column, teachers aside.{caveat}"


def shown(run: Run) -> str:
    """What else was measured, and the tables that the algorithm shows; the report has its pictures too."""
    parts = []
    if others := variants(run.results):
        rows = [[text(entry["label"]), *texts] for entry, texts in others]
        header = ["", *(f"{c.title} ({c.unit})" if c.unit else c.title for c in VARIANT_COLUMNS)]
        parts.append(f"### Other ways to answer\n\n{markdown_table(header, rows, left=1)}")
    for item in run.results.get("report_items") or []:
        if item["kind"] == "table":
            rows = [[text(item_cell(cell)) for cell in row] for row in item["rows"]]
            table = markdown_table([text(title) for title in item["columns"]], rows, left=1)
            note = f"\n\n{text(item['note'])}" if item["note"] else ""
            parts.append(f"### {text(item['title'])}\n\n{table}{note}")
    return "\n\n".join(parts)


def use(run: Run) -> str:
    """How to feed and load the student; nothing where the folder has no student.json."""
    student, usage = run.student, run.results.get("usage")
    if not student or not usage:
        return ""
    classes, text_read = student["classes"], student.get("tokens")
    named = (
        ", ".join(text(name) for name in classes) if len(classes) <= MOST_CLASSES else "see `classes` in student.json"
    )
    parts = [
        "## Use",
        f"It tells {len(classes)} classes apart ({named}) in {'texts' if text_read else 'images'} like those it was "
        "trained on. Nothing is known of how it answers to anything else: it always names one of its classes.",
        f"Inputs: {usage['inputs']} Outputs: logits `(N, {len(classes)})`.",
        f"{usage['title']}:",
        fenced(usage["code"]),
    ]
    files = [entry["usage"] for role, entry in entries(run.results) if role == "export" and entry.get("usage")]
    parts += [part for usage in files[:1] for part in (f"{usage['title']}:", fenced(usage["code"]))]
    return "\n\n".join(parts)


def making(run: Run) -> str:
    """Data, training and environment, as far as the files tell."""
    provenance = run.provenance
    data, environment = provenance.get("data") or {}, provenance.get("environment") or {}
    recipe, train = run.recipe, run.recipe.get("train") or {}
    splits = data.get("splits") or {}
    lines = [
        ("Data set", data.get("name")),
        ("Samples", ", ".join(f"{count:,} {split}" for split, count in splits.items() if isinstance(count, int))),
        ("Source of the data", data.get("source")),
        ("Licence of the data", data.get("licence")),
        ("Fingerprint of the data", data.get("fingerprint")),
        ("Augmentation", (recipe.get("data") or {}).get("augment")),
        ("Epochs", train.get("epochs")),
        ("Optimizer", short(train.get("optimizer"))),
        ("Schedule", short(train.get("schedule"))),
        ("Batch size", (recipe.get("data") or {}).get("batch_size")),
        ("Algorithm's options", short((recipe.get("algorithm") or {}).get("options"))),
        ("Loss weights", short((recipe.get("algorithm") or {}).get("loss_weights"))),
        ("Seed", provenance.get("seed")),
        ("Versions", short({key: environment.get(key) for key in ("kdzoo", "torch", "timm", "python")})),
        ("Hardware", short({key: environment.get(key) for key in ("device", "cpu", "isa", "threads")})),
        ("Commit", provenance.get("commit")),
    ]
    listed = "\n".join(f"- {name}: {text(value)}" for name, value in lines if value not in (None, "", {}))
    rest = "The whole recipe is recipe.yaml beside this file; provenance.json has the rest."
    return f"## Data and training\n\n{listed}\n\n{rest}"


def limits(run: Run) -> str:
    lines = [
        "One training run with one seed, unless its recipe's page says more.",
        "Accuracy holds for data like the test split; nothing was measured on other data, rare groups or attacks.",
        "Latency holds for the machine above, at batch 1.",
        *(f"Warning of the run: {text(warning)}" for warning in run.results.get("warnings") or []),
    ]
    return (
        "## Limits\n\n"
        + "\n".join(f"- {line}" for line in lines)
        + f"\n\nWritten by kdzoo {__version__}; report.html tells more."
    )


def text(value: Any) -> str:
    return markdown_text(value)


def short(value: Any) -> str:
    """Nested options on one line."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    return ", ".join(f"{key} {short(inner)}" for key, inner in value.items() if inner not in (None, {}, ""))


def fenced(source: str) -> str:
    return f"```python\n{source}\n```"
