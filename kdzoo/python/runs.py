"""Running a recipe from Python, and what a finished run holds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdzoo.errors import ExportError, UnfinishedError
from kdzoo.python.recipes import Source, content_of, texts_of
from kdzoo.python.session import check_alone, data_frame, process_as_before, screen, stop_asked
from kdzoo.report.notebook import run_html
from kdzoo.report.results import parse_results
from kdzoo.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas
    from torch import nn


class Run:
    """A finished run, read from its folder. ``kdzoo.run`` and ``kdzoo.load`` return it.

    In a notebook it shows its table and its verdict.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Compare every file with the manifest. Raises ReportError, UnfinishedError or CorruptError."""
        self.folder = Path(folder)
        self._files = RunFolder.view(self.folder)
        if not self._files.finished:
            raise UnfinishedError(
                f"{self.folder}: not finished, so there are no results; kdzoo.run with its recipe goes on with it"
            )
        self._files.verify()

    @cached_property
    def results(self) -> dict[str, Any]:
        """What results.json holds: teacher, control, student and every exported file, measured."""
        return self._files.read_json("results.json")

    def history(self) -> pandas.DataFrame:
        """Return metrics.jsonl, a row an epoch and split; KdzooError without pandas.

        Columns are stage, epoch and step (from 0), split, and what was logged: loss terms, lr, top1_percent ...
        """
        return data_frame(self._files.log.rows())

    def student(self) -> nn.Module:
        """Return the student with its weights, in eval mode on the CPU: a plain network of timm or of a plugin.

        It takes normalised inputs; ``report()`` and student.json say which.
        """
        from kdzoo.models.delivered import delivered_model

        return delivered_model(self.folder, self._files.read_json("student.json"))

    def report(self) -> Path:
        """Return the path of report.html."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        return f"kdzoo.Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        return run_html(parse_results(self.results), self.folder)


def load(folder: str | os.PathLike[str]) -> Run:
    """Open a finished run and compare each of its files with the manifest; raises as ``Run``."""
    return Run(folder)


def run(
    recipe: Source,
    overrides: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] = "runs",
    new: bool = False,
    progress: bool = True,
) -> Run:
    """Run a recipe as ``kdzoo run`` does, to the same bits, and return the finished run.

    ``recipe`` is a file, the name of a bundled recipe, a mapping or a ``kdzoo.Recipe``; ``overrides`` are those of
    ``-o``: ``{"train.epochs": 2}``. A run that was interrupted goes on, and one that is finished is returned at once
    unless ``new``. Ctrl-C, or a notebook's stop button, ends the step, saves, and raises Interrupted; a second one
    raises KeyboardInterrupt at once, and what was saved last stays. Raises the errors of the command line, all of them
    KdzooErrors; an exported file that is rejected is a warning, as the run is whole without it.
    """
    from kdzoo.plan.opening import open_recipe
    from kdzoo.storage.atomic import probe_writable

    check_alone("kdzoo.run")
    out = Path(out)
    probe_writable(out)
    with process_as_before():
        loaded, plan, zoo = open_recipe(content_of(recipe), texts_of(overrides))
        from kdzoo.run.exporting import check_rejected
        from kdzoo.run.running import run_plan
        from kdzoo.terminal import Display
        from kdzoo.training.parallel import Ranks

        with loaded.located(), stop_asked() as stop:
            ranks = Ranks(plan.recipe.device)
            folder, results, _ = run_plan(plan, zoo, out, ranks, screen(Display, progress), stop, new=new, resume=False)
    assert results is not None, "one process has the results"
    try:
        check_rejected(results["exports"])
    except ExportError as error:
        warnings.warn(str(error), stacklevel=2)
    return Run(folder)
