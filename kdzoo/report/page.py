"""report.html: one page about one run that loads nothing and escapes every name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from kdzoo.report import charts
from kdzoo.report.charts import Chart
from kdzoo.report.drawing import place
from kdzoo.report.measurements import Grid
from kdzoo.report.reading import Run
from kdzoo.report.rendering import render
from kdzoo.report.results import HeatMap, Images, Scatter, Table
from kdzoo.report.run_summary import item_grid, summarize


@dataclass(frozen=True)
class Section:
    """One thing that the algorithm shows: a table, pictures (PNG in base64, caption) or a chart."""

    title: str
    note: str
    grid: Grid | None = None
    pictures: Sequence[tuple[str, str]] = ()
    chart: Chart | None = None


def page(run: Run) -> str:
    """Return report.html: one file that loads nothing."""
    accuracy = [charts.accuracy_against_latency(list(run.results.entries())), charts.learning_curves(run.rows)]
    logged_of = {stage.name: stage.logged_of for stage in run.results.stages}
    per_class = run.results.per_class
    more = [
        charts.loss_terms(run.rows, logged_of),
        charts.per_class_accuracy(per_class.classes, per_class.top1_percent),
    ]
    return render(
        "report.html.j2",
        run=summarize(run),
        sections=list(sections(run.results.report_items)),
        side_by_side=[chart for chart in accuracy if chart],
        charts=[chart for chart in more if chart],
        colour=place,
    )


def sections(items: Sequence[Any]) -> Iterator[Section]:
    """What the algorithm shows, in its order."""
    for number, item in enumerate(items):
        match item:
            case Table():
                yield Section(item.title, item.note, grid=item_grid(item))
            case Images():
                captions = item.captions[: len(item.images)]
                yield Section(item.title, item.note, pictures=list(zip_longest(item.images, captions, fillvalue="")))
            case HeatMap():
                yield Section(item.title, item.note, chart=charts.heat_map(item, number))
            case Scatter():
                yield Section(item.title, item.note, chart=charts.scatter(item, number))
