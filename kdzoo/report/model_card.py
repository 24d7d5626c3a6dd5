"""README.md of a run: a model card, so that the folder explains itself to whoever finds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from kdzoo.report.measurements import Cell, Row
from kdzoo.report.reading import Run, section
from kdzoo.report.rendering import render
from kdzoo.report.results import Table
from kdzoo.report.run_summary import item_grid, summarize
from kdzoo.report.tables import markdown_text

#: More classes than this are counted, not listed.
MOST_CLASSES = 30


def card(run: Run) -> str:
    """Return the card: what it is, how good, how to use it, how it was made, and what is not known."""
    return render(
        "README.md.j2",
        filters={"fenced": fenced, "inline_code": inline_code, "mark": mark},
        finalize=literal,
        run=summarize(run),
        what={"text": "A text", "measurements": "A"}.get(kind_of_inputs(run), "An image"),
        inputs={"text": "texts", "measurements": "measurements"}.get(kind_of_inputs(run), "images"),
        classes=run.student.get("classes") or [],
        most_classes=MOST_CLASSES,
        feeding=run.results.usage.inputs if run.results.usage else "",
        tables=[(item, item_grid(item)) for item in run.results.report_items if isinstance(item, Table)],
        facts=[(name, value) for name, value in facts(run) if value not in (None, "", {})],
    )


def kind_of_inputs(run: Run) -> str:
    """What the student reads: image, text or measurements."""
    return run.results.usage.kind if run.results.usage else "image"


def literal(value: Any) -> Markup:
    """Make a value literal in Markdown, unless a filter has made it Markdown, which Markup says."""
    return value if isinstance(value, Markup) else Markup(markdown_text(value))


def inline_code(text: str) -> Markup:
    """Make text literal except for what stands between backticks, which becomes code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return Markup(markdown_text(text))
    return Markup("".join(f"`{part}`" if i % 2 else markdown_text(part) for i, part in enumerate(parts)))


def fenced(source: str) -> Markup:
    """Python in a fence that is longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", source)), default=0))
    return Markup(f"{fence}python\n{source}\n{fence}")


def mark(part: Cell | Row) -> Markup:
    """A cell, or the name of a row: bold for the best of a column and for the student."""
    text, bold = (part.text, part.best) if isinstance(part, Cell) else (part.name, part.role == "student")
    return Markup(f"**{markdown_text(text)}**" if bold else markdown_text(text))


def facts(run: Run) -> list[tuple[str, Any]]:
    """Data, training and environment, as far as the files say."""
    provenance, train, recipe_data = run.provenance, section(run.recipe, "train"), section(run.recipe, "data")
    data, environment = section(provenance, "data"), section(provenance, "environment")
    algorithm, splits = section(run.recipe, "algorithm"), section(data, "splits")
    return [
        ("Data set", data.get("name")),
        ("Samples", ", ".join(f"{count:,} {split}" for split, count in splits.items() if isinstance(count, int))),
        ("Source of the data", data.get("source")),
        ("Licence of the data", data.get("licence")),
        ("Fingerprint of the data", data.get("fingerprint")),
        ("Augmentation", on_one_line(recipe_data.get("augment"))),
        ("Epochs", train.get("epochs")),
        ("Optimizer", on_one_line(train.get("optimizer"))),
        ("Schedule", on_one_line(train.get("schedule"))),
        ("Batch size", recipe_data.get("batch_size")),
        ("Algorithm's options", on_one_line(algorithm.get("options"))),
        ("Loss weights", on_one_line(algorithm.get("loss_weights"))),
        ("Seed", provenance.get("seed")),
        ("Versions", on_one_line({key: environment.get(key) for key in ("kdzoo", "torch", "timm", "python")})),
        ("Hardware", on_one_line({key: environment.get(key) for key in ("device", "cpu", "isa", "threads")})),
        ("Commit", provenance.get("commit")),
    ]


def on_one_line(value: Any) -> str:
    """Nested options on one line."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    return ", ".join(f"{key} {on_one_line(inner)}" for key, inner in value.items() if inner not in (None, {}, ""))
