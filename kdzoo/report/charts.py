"""Charts of a run as inline SVG that follows the page: its font, its light and dark colours.

matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)

#: Stand-ins that matplotlib draws with -> variables of report.css.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0506{i:02x}" for i in range(8))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "card"} | {c: f"c{i}" for i, c in enumerate(SERIES)}
#: Colours that mean the same in every chart; other names take the remaining ones in turn.
ROLES = {"student": 0, "control": 1, "teacher": 2, "export": 3}
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
#: What a training row of metrics.jsonl holds beside the loss terms.
BESIDE_TERMS = {"stage", "epoch", "step", "split", "lr", "grad_norm"}
#: More classes or panels than this are not drawn; the caption says so.
MOST_CLASSES, MOST_PANELS = 20, 9
#: More curves than this share names where only a number tells their stages apart, and no more names are listed.
MOST_CURVES = 12

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "kdzoo",  # equal content gives equal ids
    "text.parse_math": False,  # names may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Chart:
    """One drawing: what it shows, in words too, for those who do not see it."""

    title: str
    caption: str
    svg: str


def accuracy_against_latency(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Chart | None:
    """Draw (role, entry of results.json) pairs; None when nothing was timed."""
    timed = [(role, entry) for role, entry in entries if entry.get("latency_ms")]
    points = [(role, entry["label"], entry["latency_ms"]["p50"], entry["top1_percent"]) for role, entry in timed]
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

    told = "; ".join(f"{label} {accuracy:.2f} % at {latency:.3g} ms" for _, label, latency, accuracy in points)
    return Chart("Accuracy against latency", "Up and to the left is better.", render("latency", told, draw, 6.4, 3.9))


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Draw each stage's validation accuracy by epoch; None without a validation split."""
    stages: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.get("split") == "validation" and isinstance(row.get("top1_percent"), int | float):
            stages.setdefault(str(row["stage"]), []).append((row["epoch"] + 1, row["top1_percent"]))
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

    told = "; ".join(ends_at(name, [stages[stage] for stage in members]) for name, members in groups.items())
    caption = "Accuracy on the validation split after each epoch."
    if len(groups) < len(stages):
        caption += " Stages that only a number tells apart look alike."
    if len(named) < len(groups):
        caption += f" The first {len(named)} of {len(groups)} are named."
    return Chart("Learning curves", caption, render("curves", told, draw, 6.4, 3.9))


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


def loss_terms(
    rows: Sequence[Mapping[str, Any]], logged_of: Mapping[str, Mapping[str, str]] | None = None
) -> Chart | None:
    """Draw the mean of each loss term and note by epoch, one panel a stage that has any; None where none has.

    ``logged_of`` says, by stage and name, which network a term trains; a stage that trains several has a panel for
    the terms of each, and one for what its algorithm noted.
    """
    stages: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        if row.get("split") == "train":
            stage = str(row["stage"])
            trains = (logged_of or {}).get(stage, {})
            for name, value in row.items():
                if name in BESIDE_TERMS or name.startswith("grad_norm_") or not isinstance(value, int | float):
                    continue
                of = trains.get(name, "student")
                panel = stage if of == "student" else f"{stage}: {of}"
                stages.setdefault(panel, {}).setdefault(name, []).append((row["epoch"] + 1, value))
    drawn = dict(list(stages.items())[-MOST_PANELS:])
    if not drawn:
        return None
    columns = min(3, len(drawn))
    lines = math.ceil(len(drawn) / columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(lines, columns, squeeze=False)
        names = list(dict.fromkeys(name for terms in drawn.values() for name in terms))
        for axes in panels.flat[len(drawn) :]:
            axes.set_visible(False)
        for axes, (stage, terms) in zip(panels.flat, drawn.items(), strict=False):
            for name, values in terms.items():
                epochs, means = zip(*values, strict=True)
                i = names.index(name)
                marker = "o" if len(values) < 3 else ""
                axes.plot(epochs, means, DASHES[i % 4], marker=marker, color=SERIES[(i + len(ROLES)) % 8], label=name)
            everything = [value for values in terms.values() for _, value in values]
            if min(everything) > 0 and max(everything) > 30 * min(everything):
                axes.set_yscale("log")
                plain_ticks(axes.yaxis)
            axes.set_title(stage)
            axes.set_xlabel("epoch")
            whole_ticks(axes)
            axes.legend()

    left_out = f" The last {MOST_PANELS} of {len(stages)} panels." if len(stages) > len(drawn) else ""
    caption = f"Mean of each term over an epoch, before its weight.{left_out}"
    told = "; ".join(
        f"{stage}: " + ", ".join(f"{name} from {v[0][1]:.3g} to {v[-1][1]:.3g}" for name, v in terms.items())
        for stage, terms in drawn.items()
    )
    return Chart("Loss terms", caption, render("terms", told, draw, 4.3 * columns, 3.1 * lines))


def per_class_accuracy(classes: Sequence[str], accuracy: Mapping[str, Sequence[float | None]]) -> Chart | None:
    """Draw bars a class, those with the largest difference between student and control (or teacher) first."""
    other = next((label for label in ("control", "teacher") if label in accuracy), None)
    if "student" not in accuracy or not classes:
        return None

    def gain(k: int) -> float:
        ours, theirs = accuracy["student"][k], accuracy[other][k] if other else 0.0
        return ours - theirs if ours is not None and theirs is not None else 0.0

    order = sorted(range(len(classes)), key=lambda k: -abs(gain(k)))[:MOST_CLASSES]
    order.sort(key=gain)  # the first bar is drawn lowest
    labels = [label for label in ("teacher", "control", "student") if label in accuracy]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bar = 0.8 / len(labels)
        for i, label in enumerate(reversed(labels)):
            places = [y + bar * (i - (len(labels) - 1) / 2) for y in range(len(order))]
            values = [accuracy[label][k] or 0.0 for k in order]
            axes.barh(places, values, bar * 0.9, color=colour(label), label=label)
        axes.set_yticks(range(len(order)), [classes[k] for k in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("test accuracy, %")
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], names[::-1], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(labels))

    caption = f"Sorted by the student's gain over the {other}." if other else "The student's own."
    if len(order) < len(classes):
        caption += f" The {len(order)} of {len(classes)} classes that differ most."
    shown = {label: ["none" if value is None else f"{value:.1f} %" for value in accuracy[label]] for label in labels}
    told = "; ".join(
        f"{classes[k]}: " + ", ".join(f"{label} {shown[label][k]}" for label in labels) for k in reversed(order)
    )
    height = 1.0 + 0.13 * len(labels) * len(order)
    return Chart("Accuracy by class", caption, render("classes", told, draw, 8.0, height))


def heat_map(item: Mapping[str, Any], number: int) -> Chart:
    """Draw an item's numbers by row and column, the largest darkest."""
    rows, columns, values = item["rows"], item["columns"], item["values"]
    known = [value for line in values for value in line if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)

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
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(visible=False)
        axes.tick_params(length=0)

    told = "; ".join(
        f"{row}: " + ", ".join(f"{column} {value:.3g}" for column, value in zip(columns, line, strict=True)
                               if value is not None)
        for row, line in zip(rows, values, strict=True)
    )  # fmt: skip
    width, height = 2.0 + 0.8 * len(columns), 0.9 + 0.42 * len(rows)
    caption = " ".join(part for part in (f"In {item['unit']}." if item["unit"] else "", item["note"]) if part)
    return Chart(item["title"], caption, render(f"item{number}", told, draw, max(4.0, width), height))


def scatter(item: Mapping[str, Any], number: int) -> Chart:
    """Draw an item's points, a colour and a marker for each group, and join those of its front."""
    points = item["points"]
    groups = list(dict.fromkeys(point["group"] for point in points))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, group in enumerate(groups):
            mine = sorted((p["x"], p["y"], p["label"]) for p in points if p["group"] == group)
            xs, ys, labels = zip(*mine, strict=True)
            joined = "-" if item["front"] == group else ""
            axes.plot(xs, ys, joined + MARKERS[i % 8], color=SERIES[i % 8], markersize=7, label=group or None)
            for x, y, label in zip(xs, ys, labels, strict=True):
                above = highest_nearby(x, y, [(p["x"], p["y"]) for p in points])
                name_point(axes, label, (x, y), 7 if above else -7, 8)
        axes.margins(x=0.12, y=0.18)
        axes.set(xlabel=item["x_label"], ylabel=item["y_label"])
        if any(groups):
            axes.legend()

    told = "; ".join(f"{p['group']} {p['label']} {p['y']:.4g} at {p['x']:.4g}".strip() for p in points)
    return Chart(item["title"], item["note"], render(f"item{number}", told, draw, 6.4, 3.9))


def place(role: str, turn: int = 0) -> int:
    """The number of a role's colour and marker; names without a role take what the roles leave over."""
    spare = [i for i in range(len(SERIES)) if i not in ROLES.values()]
    return ROLES.get(role, spare[turn % len(spare)])


def colour(role: str, turn: int = 0) -> str:
    return SERIES[place(role, turn)]


def highest_nearby(x: float, y: float, points: Sequence[tuple[float, float]]) -> bool:
    """Whether the nearest other point along x lies lower, so that a name above runs into nothing."""
    others = [point for point in points if point != (x, y)]
    nearest = min(others, key=lambda point: abs(point[0] - x), default=(x, y))
    return nearest[1] <= y


def name_point(axes: Axes, label: str, point: tuple[float, float], offset: int, size: int) -> None:
    """Write a label so many typographic points above a point of the plot, or below it."""
    side = "bottom" if offset > 0 else "top"
    axes.annotate(label, point, (0, offset), textcoords="offset points", fontsize=size, ha="center", va=side)


def whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def render(name: str, told: str, draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Return the drawing as an SVG element; ``told`` is what a screen reader says of it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has a font for it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(name, told, written.getvalue(), width)


def inline(name: str, told: str, document: str, width: float) -> str:
    """Turn matplotlib's document, ``width`` inches wide, into an element of the page: its ids, colours and font.

    Only attributes are touched, so that no text in the drawing can be taken for markup.
    """
    root = ElementTree.fromstring(document)
    for child in [child for child in root if child.tag == f"{{{SVG}}}metadata"]:
        root.remove(child)
    for parent in root.iter():
        for child in [child for child in parent if child.tag == f"{{{SVG}}}style"]:
            parent.remove(child)  # it would apply to the whole page
        for key, value in parent.attrib.items():
            if key == "id":
                parent.set(key, f"{name}-{value}")
            elif key == f"{{{XLINK}}}href":
                parent.set(key, value.replace("#", f"#{name}-", 1))
            elif key == "clip-path":
                parent.set(key, value.replace("url(#", f"url(#{name}-"))
            elif key == "style":
                parent.set(key, page_style(value))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("class", "chart")
    # Its text is never larger than the page's, nor too small to read: on a narrow screen the figure scrolls.
    root.set("style", f"max-width: {width:g}in; min-width: {width / 2:g}in")
    root.set("role", "img")
    root.set("aria-label", told)
    return ElementTree.tostring(root, encoding="unicode")


def page_style(style: str) -> str:
    """Replace stand-in colours by the page's variables and drop the font family, which the page decides."""
    for stand_in, variable in VARIABLES.items():
        style = style.replace(stand_in, f"var(--{variable})")
    return "; ".join(part for part in style.split("; ") if not part.startswith("font-family"))
