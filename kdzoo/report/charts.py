"""The charts of a run: what is drawn, and what a screen reader says of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdzoo.errors import plain
from kdzoo.report.drawing import (
    DASHES,
    GRID,
    MARKERS,
    ROLES,
    SERIES,
    colour,
    highest_nearby,
    name_point,
    place,
    plain_ticks,
    render,
    whole_ticks,
)
from kdzoo.report.results import Entry, HeatMap, Scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a training row of metrics.jsonl holds besides the loss terms.
NOT_TERMS = {"stage", "epoch", "step", "split", "lr", "grad_norm"}
#: More classes or panels than this are not drawn; the caption says so.
MOST_CLASSES, MOST_PANELS = 20, 9
#: More curves than this share names where only a number tells their stages apart, and no more names are listed.
MOST_CURVES = 12
#: Characters of a name in a chart.
LONGEST_NAME = 40
#: Inches, little more than a phone is wide, so that text is readable there.
WIDTH, HEIGHT = 4.0, 2.8
#: Inches that a letter of a name takes.
LETTER = 0.09


@dataclass(frozen=True)
class Chart:
    """One chart: its title, its caption, and its drawings as SVG, each of which is described in words too."""

    title: str
    caption: str
    drawings: tuple[str, ...]


def short(name: Any) -> str:
    """A name as a chart shows it."""
    return plain(str(name), LONGEST_NAME)


def accuracy_against_latency(entries: Sequence[Entry]) -> Chart | None:
    """Draw networks and the files of teachers and students; None when nothing was timed."""
    points = [
        (entry.role, short(entry.label), entry.latency_ms.p50, entry.top1_percent)
        for entry in entries
        if entry.latency_ms and entry.top1_percent is not None and not entry.rejected
        if entry.network != "control" or entry.format is None
    ]
    if not points:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for role, label, latency, accuracy in points:
            axes.plot(latency, accuracy, MARKERS[place(role) % 8], color=colour(role), markersize=9, zorder=3)
            others = [(math.log(latency), accuracy) for _, _, latency, accuracy in points]
            above = highest_nearby(math.log(latency), accuracy, others)
            name_point(axes, label, (latency, accuracy), 9 if above else -9, 9)
        axes.margins(x=0.18, y=0.22)
        plain_ticks(axes.xaxis)
        axes.set(xlabel="latency at batch 1, p50, ms (logarithmic)", ylabel="test accuracy, %")

    words = "; ".join(f"{label} {accuracy:.2f} % at {latency:.3g} ms" for _, label, latency, accuracy in points)
    drawing = render("latency", words, draw, WIDTH, HEIGHT)
    return Chart("Accuracy against latency", "Up and to the left is better.", (drawing,))


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Draw each stage's validation accuracy by epoch; None without a validation split."""
    stages: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.get("split") == "validation" and isinstance(row.get("top1_percent"), int | float):
            stages.setdefault(short(row["stage"]), []).append((row["epoch"] + 1, row["top1_percent"]))
    if not stages:
        return None

    groups = curve_groups(list(stages))
    named = list(groups)[:MOST_CURVES]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, members) in enumerate(groups.items()):
            single = len(members) == 1
            for stage in members:
                marker = "o" if len(stages[stage]) < 3 else ""
                epochs, accuracy = zip(*stages[stage], strict=True)
                label = name if name in named and stage == members[0] else None
                axes.plot(epochs, accuracy, DASHES[i % 4] if single else "-", marker=marker, color=colour(name, i),
                          label=label, alpha=None if single else 0.6, linewidth=1.8 if single else 0.9)  # fmt: skip
        whole_ticks(axes)
        axes.set(xlabel="epoch", ylabel="validation accuracy, %")
        axes.legend()

    words = "; ".join(ends_at(name, [stages[stage] for stage in members]) for name, members in groups.items())
    caption = "Accuracy on the validation split after each epoch."
    if len(groups) < len(stages):
        caption += " Stages that only a number tells apart look alike."
    if len(named) < len(groups):
        caption += f" The first {len(named)} of {len(groups)} are named."
    return Chart("Learning curves", caption, (render("curves", words, draw, WIDTH, HEIGHT),))


def curve_groups(stages: Sequence[str]) -> dict[str, list[str]]:
    """Name in the legend -> the stages that share it: one each, unless they are many and only a number differs."""
    stems = [re.sub(r"[ _-]?\d+$", "", stage) for stage in stages]
    groups: dict[str, list[str]] = {}
    for stage, stem in zip(stages, stems, strict=True):
        shared = len(stages) > MOST_CURVES and stems.count(stem) > 1
        groups.setdefault(f"{stem} ({stems.count(stem)})" if shared else stage, []).append(stage)
    return groups


def ends_at(name: str, curves: Sequence[Sequence[tuple[int, float]]]) -> str:
    """Where a curve, or a group of curves that share a name, ends, in words."""
    last = [curve[-1] for curve in curves]
    if len(last) == 1:
        return f"{name} ends at {last[0][1]:.2f} % after {last[0][0]} epochs"
    accuracies = [accuracy for _, accuracy in last]
    return f"{name} end between {min(accuracies):.2f} and {max(accuracies):.2f} %"


#: Values of one loss term by epoch.
Values = list[tuple[int, float]]


def loss_terms(
    rows: Sequence[Mapping[str, Any]], logged_of: Mapping[str, Mapping[str, str]] | None = None
) -> Chart | None:
    """Draw the mean of each loss term and note by epoch, one panel a stage that has any; None where none has.

    ``logged_of`` says, by stage and name, which network a term trains; a stage that trains several has a panel for
    the terms of each, and one for what its algorithm noted.
    """
    panels = term_panels(rows, logged_of or {})
    drawn = dict(list(panels.items())[-MOST_PANELS:])
    if not drawn:
        return None
    names = list(dict.fromkeys(name for terms in drawn.values() for name in terms))
    drawings = tuple(
        panel(f"terms{number}", title, terms, names) for number, (title, terms) in enumerate(drawn.items())
    )
    left_out = f" The last {MOST_PANELS} of {len(panels)} panels." if len(panels) > len(drawn) else ""
    return Chart("Loss terms", f"Mean of each term over an epoch, before its weight.{left_out}", drawings)


def term_panels(
    rows: Sequence[Mapping[str, Any]], logged_of: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Values]]:
    """Panel -> term -> its values."""
    panels: dict[str, dict[str, Values]] = {}
    for row in rows:
        if row.get("split") != "train":
            continue
        trains = logged_of.get(str(row["stage"]), {})
        for name, value in row.items():
            if name in NOT_TERMS or name.startswith("grad_norm_") or not isinstance(value, int | float):
                continue
            network = trains.get(name, "student")
            title = short(row["stage"]) if network == "student" else f"{short(row['stage'])}: {short(network)}"
            panels.setdefault(title, {}).setdefault(short(name), []).append((row["epoch"] + 1, value))
    return panels


def panel(name: str, title: str, terms: Mapping[str, Values], names: Sequence[str]) -> str:
    """Draw the terms of one panel; a term has one colour in all of them, by its place in ``names``."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for term, values in terms.items():
            epochs, means = zip(*values, strict=True)
            i = names.index(term)
            marker = "o" if len(values) < 3 else ""
            axes.plot(epochs, means, DASHES[i % 4], marker=marker, color=SERIES[(i + len(ROLES)) % 8], label=term)
        everything = [value for values in terms.values() for _, value in values]
        if min(everything) > 0 and max(everything) > 30 * min(everything):
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        whole_ticks(axes)
        axes.legend()

    words = ", ".join(f"{term} from {v[0][1]:.3g} to {v[-1][1]:.3g}" for term, v in terms.items())
    return render(name, f"{title}: {words}", draw, 3.8, 2.9)


def per_class_accuracy(classes: Sequence[str], accuracy: Mapping[str, Sequence[float | None]]) -> Chart | None:
    """Draw a line a class with a point a network, those with the largest difference between student and control (or
    teacher) first. The axis begins near the lowest point."""
    other = next((label for label in ("control", "teacher") if label in accuracy), None)
    if "student" not in accuracy or not classes:
        return None

    def gain(k: int) -> float:
        ours, theirs = accuracy["student"][k], accuracy[other][k] if other else 0.0
        return ours - theirs if ours is not None and theirs is not None else 0.0

    order = sorted(range(len(classes)), key=lambda k: -abs(gain(k)))[:MOST_CLASSES]
    order.sort(key=gain)  # the first line is drawn lowest
    labels = [label for label in ("teacher", "control", "student") if label in accuracy]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, k in enumerate(order):
            known = [value for label in labels if (value := accuracy[label][k]) is not None]
            if known:
                axes.plot([min(known), max(known)], [y, y], color=GRID, linewidth=2.5, zorder=1)
        for label, size in zip(labels, (10, 8, 6)[-len(labels) :], strict=True):  # of equal ones each can be seen
            points = [(value, y) for y, k in enumerate(order) if (value := accuracy[label][k]) is not None]
            xs, ys = zip(*points, strict=True) if points else ((), ())
            marker = MARKERS[place(label) % 8]
            axes.plot(xs, ys, marker, color=colour(label), label=label, markersize=size, clip_on=False)
        axes.set_yticks(range(len(order)), [short(classes[k]) for k in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xmargin(0.04)
        axes.set_xlabel("test accuracy, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(labels), handletextpad=0.2)

    caption = f"Sorted by the student's gain over the {other}." if other else "The student's own."
    if len(order) < len(classes):
        caption += f" The {len(order)} of {len(classes)} classes that differ most."
    shown = {label: ["none" if value is None else f"{value:.1f} %" for value in accuracy[label]] for label in labels}
    words = "; ".join(
        f"{short(classes[k])}: " + ", ".join(f"{label} {shown[label][k]}" for label in labels) for k in reversed(order)
    )
    drawing = render("classes", words, draw, 4.4, 1.1 + 0.27 * len(order))
    return Chart("Accuracy by class", caption, (drawing,))


def heat_map(item: HeatMap, number: int) -> Chart:
    """Draw an item's numbers by row and column, the largest darkest."""
    rows, columns, values = [short(row) for row in item.rows], [short(column) for column in item.columns], item.values
    known = [value for line in values for value in line if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    longest, widest = max(map(len, rows), default=0), max(map(len, columns), default=0)

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value is not None:
                    share = (value - low) / (high - low) if high > low else 1.0
                    tile = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=SERIES[0], alpha=0.08 + 0.5 * share, lw=0)
                    axes.add_patch(tile)
                    axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=9)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns, rotation=0 if widest <= 10 else 90)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(visible=False)
        axes.tick_params(length=0)

    words = "; ".join(
        f"{row}: " + ", ".join(f"{column} {value:.3g}" for column, value in zip(columns, line, strict=True)
                               if value is not None)
        for row, line in zip(rows, values, strict=True)
    )  # fmt: skip
    width = max(4.0, 0.8 + LETTER * longest + 0.8 * len(columns))
    height = 0.7 + 0.42 * len(rows) + (0.2 if widest <= 10 else LETTER * widest)
    caption = " ".join(part for part in (f"In {item.unit}." if item.unit else "", item.note) if part)
    return Chart(item.title, caption, (render(f"item{number}", words, draw, width, height),))


def scatter(item: Scatter, number: int) -> Chart:
    """Draw an item's points, a colour and a marker for each group, and join those of its front."""
    points = [(point.x, point.y, short(point.label), short(point.group)) for point in item.points]
    groups = list(dict.fromkeys(group for *_, group in points))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, group in enumerate(groups):
            xs, ys, labels = zip(*sorted((x, y, label) for x, y, label, of in points if of == group), strict=True)
            joined = "-" if item.front is not None and short(item.front) == group else ""
            axes.plot(xs, ys, joined + MARKERS[i % 8], color=SERIES[i % 8], markersize=7, label=group or None)
            for x, y, label in zip(xs, ys, labels, strict=True):
                above = highest_nearby(x, y, [(x, y) for x, y, *_ in points])
                name_point(axes, label, (x, y), 7 if above else -7, 9)
        axes.margins(x=0.12, y=0.18)
        axes.set(xlabel=short(item.x_label), ylabel=short(item.y_label))
        if any(groups):
            axes.legend()

    words = "; ".join(f"{group} {label} {y:.4g} at {x:.4g}".strip() for x, y, label, group in points)
    return Chart(item.title, item.note, (render(f"item{number}", words, draw, 4.4, 3.2),))
