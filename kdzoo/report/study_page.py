"""report.html of a study: one page that loads nothing and escapes every name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdzoo.report.drawing import place
from kdzoo.report.rendering import render
from kdzoo.report.study_charts import study_charts
from kdzoo.report.study_results import parse_study
from kdzoo.report.study_summary import summarize_study


def study_page(study: Mapping[str, Any]) -> str:
    """Return report.html of what study.json holds; ReportError where that is not as a study writes it."""
    parsed = parse_study(study)
    return render("study.html.j2", study=summarize_study(parsed), charts=list(study_charts(parsed)), colour=place)
