"""The log of a run's stages: metrics.jsonl, and the trackers that the recipe names."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdzoo.contract.extension_points import TrackedRun
from kdzoo.errors import Interrupted
from kdzoo.recipe.sections import Recipe
from kdzoo.run.tracking import Trackers
from kdzoo.storage.run_folder import RunFolder

#: What of a row says where it belongs; the rest are numbers.
PLACE = ("stage", "split", "step", "epoch")


class StageLog:
    """Logs each row once, in the order of the stages; where ``folder`` is None, nothing is logged."""

    def __init__(self, folder: RunFolder | None, trackers: Trackers) -> None:
        self.folder, self.trackers = folder, trackers
        self._logged = 0  # rows of the stage in progress that are logged already

    def begin(self, recipe: Recipe) -> None:
        """Empty the log: stages that are already stored log their rows again. ``recipe`` is whole, for trackers."""
        if self.folder is None:
            return
        self.folder.log.truncate(0)
        shutil.rmtree(self.folder.path("tensorboard"), ignore_errors=True)
        fields, resumed = recipe.model_dump(mode="json"), self.folder.resumed
        self.trackers.start(TrackedRun(self.folder.uid, self.folder.root, recipe.name, recipe.seed, fields, resumed))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the rows of the stage in progress that are new; ``rows`` are all that it has so far."""
        new, self._logged = rows[self._logged :], len(rows)
        if self.folder is None:
            return
        for row in new:
            self.folder.log.append(row)
            of = "validation/" if row["split"] == "validation" else ""
            numbers = {f"{of}{key}": float(value) for key, value in row.items() if key not in PLACE}
            self.trackers.log(row["stage"], row["step"], numbers)

    def end_stage(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log what is new of a finished stage's rows."""
        self.add(rows)
        self._logged = 0

    def close(self) -> None:
        self.trackers.close()

    @contextlib.contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Within this the run goes on; say to the trackers where it ends otherwise than by ``finish``."""
        try:
            yield
        except BaseException as error:
            self.trackers.finish("stopped" if isinstance(error, Interrupted) else "failed", {})
            raise

    def finish(self, results: Mapping[str, Any]) -> None:
        """Say to the trackers that the run has finished, its folder sealed."""
        self.trackers.finish("finished", results)
