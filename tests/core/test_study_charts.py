"""The charts of a study, by what their drawings hold."""

from __future__ import annotations

import re

from kdzoo.report.study_charts import Gain, cost_plot, dot_plot, limits


def texts(drawing: str) -> list[str]:
    return [re.sub("<[^>]+>", "", text) for text in re.findall(r"<text.*?</text>", drawing, re.DOTALL)]


def test_dots_are_filled_where_the_gain_is_decided():
    decided, open_ = Gain("dkd", 1.2, 0.4, 2.0, True), Gain("kd", 0.3, -0.2, 0.8)
    drawing = dot_plot([decided, open_])
    assert {"dkd", "kd"} <= set(texts(drawing))
    assert "dkd +1.20 (+0.40 to +2.00); kd +0.30 (-0.20 to +0.80), not decided" in drawing
    assert "fill: var(--c2)" in drawing
    assert "fill: var(--card)" in drawing
    assert "fill: var(--c2)" not in dot_plot([open_])


def test_an_interval_without_end_leaves_the_means_apart():
    low, high = limits([Gain("two-seeds", 0.5, -40.0, 41.0), Gain("a", 0.4, 0.2, 0.6), Gain("b", 0.2, 0.0, 0.4)])
    assert low > -2
    assert high < 2


def test_of_many_arms_those_that_no_other_beats_are_named():
    gains = [Gain(f"arm{i}", 1.0 - i * 0.01, cost=1e12 * (1 + i)) for i in range(20)]
    drawn = set(texts(cost_plot(gains)))
    assert "arm0" in drawn
    assert "arm1" not in drawn
    few = set(texts(cost_plot(gains[:5])))
    assert {f"arm{i}" for i in range(5)} <= few
