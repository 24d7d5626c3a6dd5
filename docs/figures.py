"""The figures of the evidence: what recipes gain over their controls, with intervals, and against what a step costs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from kdzoo.report.statistics import LEVEL, Difference, family, mean_difference
from kdzoo.report.study_charts import Gain, cost_plot, dot_plot

#: From this p on, after Holm's correction, a difference counts as chance.
CHANCE = 1 - LEVEL
#: Fewer points than this are a table and no figure.
FEWEST = 3


def gain_figures(name: str, gains: Mapping[str, Sequence[float]], step_times: Mapping[str, float]) -> str:
    """Return figures as HTML: the gains of recipes, one a seed, as dots with intervals, and the means against cost.

    ``name`` begins the ids of the drawings. ``step_times`` is the time of a step in steps of the control; recipes that
    are not in it are left out of the second figure. Empty where there are too few recipes for a figure.
    """
    if len(gains) < FEWEST:
        return ""
    found = family({label: mean_difference(each) for label, each in gains.items()})
    points = [_point(label, difference, step_times.get(label)) for label, difference in found.items()]
    drawings = [_figure(dot_plot(points, f"{name}-gains"), _caption(found))]
    if sum(point.cost is not None for point in points) >= FEWEST:
        cost = cost_plot(points, f"{name}-cost", "time of a training step, in steps of the control")
        drawings.append(_figure(cost, "Up and to the left is better. Recipes that no other beats in both are named."))
    return f'<div class="drawings" data-search-exclude>\n{"".join(drawings)}\n</div>'


def _point(label: str, found: Difference, cost: float | None) -> Gain:
    decided = found.p_holm is not None and found.p_holm < CHANCE
    return Gain(label, found.mean, found.low, found.high, decided, cost)


def _caption(found: Mapping[str, Difference]) -> str:
    tested = sum(each.p is not None for each in found.values())
    seeds = sorted({each.seeds for each in found.values()})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"Mean gain over {over} seeds with its {100 * LEVEL:.0f} % interval, of each recipe alone. Filled: not chance, "
        f"even as one of {tested} comparisons (Holm's correction); hollow: not decided with so few seeds. Intervals "
        "that reach the edge go on."
    )


def _figure(drawing: str, caption: str) -> str:
    """One drawing in one line: a blank line would end the HTML."""
    return (
        f'<figure class="drawing">{" ".join(drawing.split())}<figcaption>{html.escape(caption)}</figcaption></figure>'
    )
