"""The charts of a study: gains with intervals, gain against cost, and fronts of accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Literal

from kdzoo.errors import plain
from kdzoo.report.charts import HEIGHT, WIDTH, Chart, short
from kdzoo.report.drawing import INK, MARKERS, MUTED, PAPER, SERIES, plain_ticks, render
from kdzoo.report.point_names import name_points
from kdzoo.report.rounding import counted, significant
from kdzoo.report.study_results import Front, Study
from kdzoo.report.tables import wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: More arms than this are not drawn in one plot of gains; the caption says so.
MOST_ARMS = 60
#: More points than this are not all named, only those that no other beats.
MOST_NAMES = 12
#: Letters of a name next to a point.
LONGEST_POINT_NAME = 26
#: Letters of a name on one line at the left of a plot of gains.
LINE = 20
#: Largest over smallest value from which an axis is logarithmic.
WIDE = 4.0
#: How a cost of files is labelled, its unit, and how many of these the recorded unit has.
FRONT_AXES: Mapping[str, tuple[str, str, float]] = {
    "latency_p50_ms": ("latency of the file at batch 1, p50", "ms", 1.0),
    "size_mib": ("size of the file", "MiB", 1.0),
}
#: Largest over smallest cost below which all cost the same.
ALIKE = 1.02


@dataclass(frozen=True)
class Gain:
    """One arm of a plot: its mean gain in points with its interval, if it has one, and what it costs.

    ``decided``: whether the gain counts as shown. ``group`` gives arms a colour and a marker in common.
    """

    label: str
    mean: float
    low: float | None = None
    high: float | None = None
    decided: bool = False
    cost: float | None = None
    group: str = ""


def dot_plot(gains: Sequence[Gain], name: str = "gains", x_label: str = "gain over the control, points") -> str:
    """Return SVG text: a line an arm, the first at the top, with its mean gain and its interval.

    A filled point is a decided gain. An interval that does not fit ends at the edge. ``name`` begins the ids of the
    drawing, so it is given once a page; colours are the variables of report.css.
    """
    low, high = limits(gains)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=1)
        for y, gain in enumerate(gains):
            drawn_colour = colour_of(gain)
            if gain.low is not None and gain.high is not None:
                axes.plot([gain.low, gain.high], [y, y], color=drawn_colour, linewidth=1.8, solid_capstyle="round")
            axes.plot(gain.mean, y, "o", color=drawn_colour, markersize=6, zorder=3,
                      markerfacecolor=drawn_colour if gain.decided else PAPER, markeredgewidth=1.4)  # fmt: skip
        axes.set_yticks(range(len(gains)), [line_name(gain.label) for gain in gains])
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
        axes.set_ylim(len(gains) - 0.4, -0.6)
        axes.set_xlim(low, high)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)
        axes.spines["left"].set_visible(False)

    lines = sum(line_name(gain.label).count("\n") + 1 for gain in gains)
    words = f"{x_label}: " + "; ".join(described(gain) for gain in gains)
    return render(name, words, draw, 4.2, 0.75 + 0.2 * lines + 0.08 * len(gains))


def limits(gains: Sequence[Gain]) -> tuple[float, float]:
    """The ends of the axis: every mean and 0, and as much of the intervals as leaves the means apart."""
    means = [0.0, *(gain.mean for gain in gains)]
    halves = [gain.high - gain.mean for gain in gains if gain.high is not None]
    room = max(max(means) - min(means), 2 * median(halves) if halves else 0.0, 0.1)
    lows = [gain.low for gain in gains if gain.low is not None]
    highs = [gain.high for gain in gains if gain.high is not None]
    low = max(min([*means, *lows]), min(means) - room)
    high = min(max([*means, *highs]), max(means) + room)
    margin = max(0.04 * (high - low), 0.02)
    return low - margin, high + margin


def colour_of(gain: Gain) -> str:
    """Better, worse or not decided: the page's colours of a series, which are told apart in grey too."""
    if not gain.decided:
        return MUTED
    return SERIES[2] if gain.mean > 0 else SERIES[1]


def line_name(label: str) -> str:
    """A name at the left of a plot, on two lines where it is long."""
    lines = wrapped(short(label), LINE).split("\n")
    return "\n".join(lines if len(lines) <= 2 else [lines[0], short("".join(lines[1:]))])


def described(gain: Gain) -> str:
    """A gain in words."""
    text = f"{short(gain.label)} {gain.mean:+.2f}"
    if gain.low is not None and gain.high is not None:
        text += f" ({gain.low:+.2f} to {gain.high:+.2f})"
    return text + ("" if gain.decided else ", not decided")


def cost_plot(
    gains: Sequence[Gain], name: str = "cost", x_label: str = "training compute, MAC",
    y_label: str = "gain over the control, points",
) -> str:  # fmt: skip
    """Return SVG text: each arm that has a cost, its gain against it; of many arms those on the front are named."""
    known = [(gain, gain.cost) for gain in gains if gain.cost is not None]
    groups = list(dict.fromkeys(gain.group for gain, _ in known))
    best = [
        (gain, cost)
        for gain, cost in known
        if not any(g.mean >= gain.mean and c <= cost and (g.mean, c) != (gain.mean, cost) for g, c in known)
    ]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        spread_out(axes, [cost for _, cost in known])
        for i, group in enumerate(groups):
            members = [(gain, cost) for gain, cost in known if gain.group == group]
            xs, ys = [cost for _, cost in members], [gain.mean for gain, _ in members]
            axes.plot(xs, ys, MARKERS[i % 8], color=SERIES[i % 8], markersize=6, label=short(group) or None, zorder=3)
        axes.margins(x=0.12, y=0.15)
        axes.set(xlabel=x_label, ylabel=y_label)
        if min(gain.mean for gain, _ in known) <= 0 <= max(gain.mean for gain, _ in known):
            axes.axhline(0, color=MUTED, linewidth=1)
        if any(groups):
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handletextpad=0.2)
        named = [*best, *(one for one in known if one not in best and len(known) <= MOST_NAMES)]
        labels = [(plain(gain.label, LONGEST_POINT_NAME), cost, gain.mean) for gain, cost in named]
        name_points(figure, axes, labels, [(cost, gain.mean) for gain, cost in known])

    words = "; ".join(f"{short(gain.label)} {gain.mean:+.2f} at {counted(cost)}" for gain, cost in known)
    return render(name, words, draw, WIDTH, HEIGHT)


def spread_out(axes: Axes, costs: Sequence[float]) -> None:
    """Give the axis of costs a scale, and labels in the unit that suits them."""
    if min(costs) > 0 and max(costs) > WIDE * min(costs):
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    count_ticks(axes.xaxis, max(costs))


def count_ticks(axis: Axis, largest: float) -> None:
    """Label large numbers as 20 G."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if largest >= 1000:
        axis.set_major_formatter(FuncFormatter(lambda value, _: counted(value).replace(".00", "").replace(".0 ", " ")))
    if axis.get_scale() == "linear":
        axis.set_major_locator(MaxNLocator(nbins=5))


def front_plot(front: Front, name: str) -> str:
    """Return SVG text: every file by accuracy and cost, a marker for each kind; those on the front joined and named."""
    kinds = list(dict.fromkeys(point.file for point in front.points))
    label, unit, step = FRONT_AXES[front.cost]
    if front.cost == "size_mib" and max(point.cost for point in front.points) < 1:
        unit, step = "KiB", 1024.0
    best = sorted((p.cost * step, p.top1_percent) for p in front.points if p.on_front)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        spread_out(axes, [point.cost * step for point in front.points])
        xs, ys = zip(*best, strict=True)
        axes.plot(xs, ys, drawstyle="steps-post", color=MUTED, linewidth=1.2, zorder=1)
        for i, kind in enumerate(kinds):
            points = [(point.cost * step, point.top1_percent) for point in front.points if point.file == kind]
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, MARKERS[i % 8], color=SERIES[i % 8], markersize=6, label=short(kind), zorder=3)
        axes.margins(x=0.12, y=0.15)
        axes.set(xlabel=f"{label}, {unit}", ylabel="test accuracy of the file, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handletextpad=0.2)
        named = [point for point in front.points if len(front.points) <= MOST_NAMES or point.on_front]
        named.sort(key=lambda point: not point.on_front)
        labels = [(plain(p.label, LONGEST_POINT_NAME), p.cost * step, p.top1_percent) for p in named]
        name_points(figure, axes, labels, [(p.cost * step, p.top1_percent) for p in front.points], steps(best))

    words = "; ".join(
        f"{short(p.label)} {short(p.file)} {p.top1_percent:.2f} % at {significant(p.cost * step)} {unit}"
        f"{', on the front' if p.on_front else ''}"
        for p in front.points
    )
    return render(name, words, draw, WIDTH, HEIGHT)


def steps(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the line that joins a front: level up to the next cost, then up."""
    corners = [corner for a, b in pairwise(front) for corner in (a, (b[0], a[1]))]
    return [*corners, *front[-1:]]


def study_charts(study: Study) -> Iterator[Chart]:
    """Every chart of a study, in the order of the page."""
    for number in range(len(study.groups)):
        yield from gain_chart(study, number, "over_control")
        yield from gain_chart(study, number, "over_baseline")
    yield from cost_chart(study)
    for number, front in enumerate(study.fronts):
        what = "latency" if front.cost == "latency_p50_ms" else "size"
        yield Chart(f"Accuracy against {what}{of(front.title)}", FRONT, (front_plot(front, f"front{number}"),))


#: The caption of a front.
FRONT = (
    "Exported files, means over seeds. The line joins those that no other beats in both; where means are close, other "
    "seeds may join others."
)


def gain_chart(study: Study, number: int, which: Literal["over_control", "over_baseline"]) -> Iterator[Chart]:
    """The gains of one group over ``which``; nothing where none is known."""
    group, found = study.groups[number], [(r.label, d) for r in study.in_group(number) if (d := getattr(r, which))]
    if not found:
        return
    gains = [Gain(label, one.mean, one.low, one.high, one.outcome in ("better", "worse")) for label, one in found]
    bound = found[0][1].outcome == "upper bound"
    what = "Distance to" if bound else "Gain over"
    other = short(group.baseline) if which == "over_baseline" else "the control"
    shown = gains[:MOST_ARMS]
    caption = f"Mean over seeds with its {found[0][1].level * 100:.0f} % interval, the most accurate arm first."
    comparisons = getattr(study.families, which)
    if bound:
        caption += " The control is an upper bound and no competitor."
    elif not comparisons:
        caption = "One seed decides nothing, and has no interval."
    else:
        caption += " Filled: decided after Holm's correction" + (
            f" for {comparisons} comparisons; hollow: not decided." if comparisons > 1 else "; hollow: not decided."
        )
    low, high = limits(shown)
    if any(gain.low is not None and gain.high is not None and (gain.low < low or gain.high > high) for gain in shown):
        caption += " An interval that reaches the edge goes on."
    if len(shown) < len(gains):
        caption += f" The first {len(shown)} of {len(gains)} arms."
    axis = f"{what.lower()} {other if len(other) <= LINE else 'the baseline'}, points"
    drawing = dot_plot(shown, f"{which}{number}", axis)
    yield Chart(f"{what} {other}{of(group.title)}", caption, (drawing,))


def of(title: str) -> str:
    """What a chart is of, after its title; a study with one group has no need of it."""
    return f": {title}" if title else ""


def cost_chart(study: Study) -> Iterator[Chart]:
    """What arms gain over their controls against what they cost to train; nothing where no cost is known.

    The cost is the compute, or the time of a step where all arms take the same compute.
    """
    rows = [row for row in study.ranking if row.over_control and row.over_control.outcome != "upper bound"]
    compute = {row.label: row.training_pmacs * 1e15 for row in rows if row.training_pmacs}
    steps = {row.label: row.step_ms for row in rows if row.step_ms}
    costs, what, label = compute, "training compute", "training compute, MAC"
    caption = "All training that leads to the student, with teacher and search."
    if steps and (not compute or max(compute.values()) < ALIKE * min(compute.values())):
        costs, what, label, caption = steps, "step time", "training step, ms", "Mean time of one training step."
    gains = [
        Gain(row.label, row.over_control.mean, cost=costs[row.label], group=study.groups[row.group].title)
        for row in rows
        if row.over_control and row.label in costs
    ]
    if gains:
        caption += " Up and to the left is better."
        caption += "" if len(gains) <= MOST_NAMES else " Of the arms those that no other beats in both are named."
        yield Chart(f"Gain against {what}", caption, (cost_plot(gains, x_label=label),))
