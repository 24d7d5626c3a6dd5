"""Running a study from Python, and what it found."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdzoo.errors import RecipeError
from kdzoo.python.recipes import texts_of, written
from kdzoo.python.session import check_alone, data_frame, process_as_before, screen, stop_asked
from kdzoo.recipe.bundled import find_recipe
from kdzoo.recipe.study_sections import LoadedStudy, load_study, parse_study_file
from kdzoo.recipe.yaml_text import write_yaml
from kdzoo.report.notebook import study_html
from kdzoo.study.writing import read_study

if TYPE_CHECKING:
    import pandas


class Study:
    """A study that was run, read from its folder. In a notebook it shows its ranking and its verdict."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """``folder`` is ``<out>/<name>/study``. Raises ReportError where no study is, CorruptError where it changed."""
        self.folder = Path(folder)
        #: What study.json holds: the arms with their runs, the ranking, and the verdict.
        self.results = read_study(self.folder)

    def table(self) -> pandas.DataFrame:
        """Return the ranking, a row an arm; KdzooError without pandas.

        Accuracies are in percent. ``over_control`` and ``over_baseline`` are mean differences in points, with their
        interval as ``_low`` and ``_high``, and the p value corrected for all comparisons as ``_p_holm``.
        """
        return data_frame([_row(arm) for arm in self.results["ranking"]])

    def report(self) -> Path:
        """Return the path of report.html."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        return f"kdzoo.Study({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        return study_html(self.results, self.folder)


def _row(arm: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the ranking without sections."""
    row: dict[str, Any] = {}
    for key, value in arm.items():
        if key in ("over_control", "over_baseline"):
            for part in ("mean", "low", "high", "p_holm", "outcome"):
                name = key if part == "mean" else f"{key}_{part}"
                row[name] = None if value is None else value.get(part)
        else:
            row[key] = value
    return row


def study(
    source: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    /,
    overrides: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] = "runs",
    on: str = "local",
    workers: int | None = None,
    progress: bool = True,
    **keys: Any,
) -> Study:
    """Run a study as ``kdzoo study`` does and return what it found.

    The study is a file, the name of a bundled one, a mapping, or its keys: ``kdzoo.study(version=1, name="losses",
    recipe="digits/kd", algorithms=["kd", "dkd"], seeds=3)``. ``overrides`` are of its recipes, ``on`` names an
    executor, and ``workers`` is how many tasks run at once. Stages that are trained are not trained again, so an
    interrupted study goes on. Raises the errors of the command line; a run that failed is a warning, and the others
    are ranked.
    """
    check_alone("kdzoo.study")
    loaded, out = _loaded(source, keys), Path(out)
    with process_as_before():
        from kdzoo.storage.atomic import probe_writable
        from kdzoo.study.driver import first_line
        from kdzoo.study.executors import opened_executor
        from kdzoo.study.studies import log_of, plan_of, run_study
        from kdzoo.terminal import StudyScreen
        from kdzoo.zoo.loading import load_zoo

        probe_writable(out)
        zoo = load_zoo()
        plan = plan_of(loaded, zoo, texts_of(overrides))
        opened = opened_executor(on, workers, plan.folder(out), zoo)
        with stop_asked() as stop, opened as executor, screen(StudyScreen, progress) as watch:
            outcome = run_study(plan, executor, out, zoo, stop=stop, watch=watch)
    for run in outcome.failed:
        assert run.error is not None, "a failed run says why"
        log = log_of(outcome.folder, run)
        warnings.warn(f"failed: {run.run.title}: {first_line(run.error)}; log: {log}", stacklevel=2)
    return Study(outcome.folder)


def _loaded(source: Any, keys: Mapping[str, Any]) -> LoadedStudy:
    if (source is None) == (not keys):
        raise RecipeError("a study is made of one thing: a file, a name, a mapping, or keys such as name=...")
    if isinstance(source, str | os.PathLike):
        return load_study(find_recipe(Path(source)))
    text = written("", keys if source is None else source, write_yaml)
    return parse_study_file(text.encode(), Path("study"), in_file=False)
