"""report.html of a study: one page that loads nothing and escapes every name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdzoo.report.rendering import render
from kdzoo.report.study_results import parse_study


def study_page(study: Mapping[str, Any]) -> str:
    """Return report.html of what study.json holds; ReportError where that is not as a study writes it."""
    return render("study.html.j2", study=parse_study(study))
