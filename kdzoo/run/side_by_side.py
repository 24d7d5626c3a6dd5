"""Independent stages of a run, trained side by side in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kdzoo.contract.stage import Stage
from kdzoo.errors import ContractError
from kdzoo.plan.resolve import resolve
from kdzoo.recipe.problems import Positions
from kdzoo.recipe.reading import LoadedRecipe
from kdzoo.recipe.sections import Recipe
from kdzoo.run.builder import Builder
from kdzoo.run.control import Control
from kdzoo.run.stage_log import StageLog
from kdzoo.run.stage_runner import StageRunner
from kdzoo.run.tracking import Trackers
from kdzoo.run.workers import Workers
from kdzoo.storage.owner import Owner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.loading import load_zoo


class SideBySide:
    """Worker processes that train stages into the store of the run; there are none until they are needed."""

    def __init__(self, stages: StageRunner) -> None:
        self.stages, self.build, self.control = stages, stages.build, stages.control
        self._workers: Workers | None = None

    def train(self, stages: Sequence[Stage]) -> None:
        """Train what is not in the store yet; do nothing where the recipe wants one job at a time."""
        recipe, store = self.build.recipe, self.build.store
        if recipe.jobs == 1:
            return
        keys = {self.stages.key(stage): stage for stage in map(self.stages.started, stages)}
        missing = {key: stage for key, stage in keys.items() if store.find("stage", key) is None}
        if len(missing) < 2:
            return
        names = [stage.name for stage in missing.values()]
        if len(set(names)) < len(names):
            raise ContractError(f"independent stages need different names, got {', '.join(names)}")
        self.control.check_stop(f"before stages {', '.join(names)}")
        if self._workers is None:
            folder = self.stages.folder
            place = (folder.root, Owner.me()) if folder is not None else None
            given = (recipe, self.build.plan.path, store.root, place, torch.get_num_threads())
            self._workers = Workers(recipe.jobs, begin_work, given)
        for name in names:
            self.control.display.stage(name, f"training, {min(recipe.jobs, len(names))} side by side")
        done = self._workers.run(list(missing.values()), self.control.stop)
        if done is None:
            raise self.control.interrupted(f"in stages {', '.join(names)}")
        if done != list(missing):
            raise ContractError(
                f"stages {', '.join(names)}: a worker process sees other code, versions or hardware than this one"
            )

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()


def begin_work(
    recipe: Recipe, path: Path, store: Path, place: tuple[Path, Owner] | None, threads: int, stop: Callable[[], int]
) -> Callable[[Stage], str]:
    """In a worker: return what trains a stage into the store and gives its key.

    ``place`` is the run folder and the process that owns it.
    """
    torch.set_num_threads(threads)
    zoo = load_zoo()
    plan = resolve(LoadedRecipe(recipe, path, Positions()), zoo)
    folder = None if place is None else RunFolder.view(place[0], owner=place[1])
    control = Control(Ranks(recipe.device), stop=stop)
    log = StageLog(None, Trackers((), control.display.note))  # the first process writes the log
    results = Store(store, None if folder is None else folder.uses)
    stages = StageRunner(Builder(plan, results, control.ranks), zoo, folder, control, log, [])
    return lambda stage: stages.train(stage).key
