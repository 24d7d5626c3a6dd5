"""Independent stages of a run, trained at the same time by worker processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from kdzoo.contract.execution import Pending, Resources
from kdzoo.contract.stage import Stage
from kdzoo.errors import ContractError, Interrupted, KdzooError
from kdzoo.processes.local import LocalExecutor
from kdzoo.run.stage_runner import StageRunner
from kdzoo.run.stage_task import Origin, StageTask, train_stage
from kdzoo.run.versions import versions
from kdzoo.storage.owner import Owner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.unfinished import place_of

#: Seconds between two looks at the workers.
POLL_S = 0.05


class SideBySide:
    """Worker processes that train stages into the store of the run; there are none until they are needed."""

    def __init__(self, stages: StageRunner) -> None:
        self.stages, self.build, self.control = stages, stages.build, stages.control
        self._executor: LocalExecutor | None = None

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
        if self._executor is None:
            self._executor = LocalExecutor("", recipe.jobs, store.root)
            self._executor.open()
        for name in names:
            self.control.display.stage(name, f"training, {min(recipe.jobs, len(names))} side by side")
        resources = Resources(torch.get_num_threads())
        pending = [
            self._executor.submit(stage.name, train_stage, (self._task(key, stage),), resources)
            for key, stage in missing.items()
        ]
        if not self._wait(pending):
            raise self.control.interrupted(f"in stages {', '.join(names)}")

    def _task(self, key: str, stage: Stage) -> StageTask:
        build, folder = self.build, self.stages.folder
        root = folder.root if isinstance(folder, RunFolder) else None
        origin = Origin(
            recipe=build.recipe,
            path=build.plan.path,
            store=build.store.root,
            threads=torch.get_num_threads(),
            versions=versions(self.stages.zoo),
            owner=None if root is None else Owner.me(),
            uses=root,
        )
        place = place_of(build.store.root, key) if root is None else root
        return StageTask(origin, stage, key, build.environment, place, in_run=root is not None)

    def _wait(self, pending: Sequence[Pending]) -> bool:
        """Whether all ended well; False once the run is asked to stop. The first failure stops all and is raised."""
        assert self._executor is not None
        failures: dict[int, Exception] = {}
        open_ones = dict(enumerate(pending))
        while open_ones:
            for number, each in [(number, each) for number, each in open_ones.items() if each.done()]:
                del open_ones[number]
                try:
                    each.result()
                except (KdzooError, RuntimeError) as error:
                    failures[number] = error
            if failures or self.control.stop():
                self._executor.ask_to_stop()
            if open_ones:
                time.sleep(POLL_S)
        real = [failures[number] for number in sorted(failures) if not isinstance(failures[number], Interrupted)]
        if real:
            raise real[0]
        return not failures

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()
            self._executor = None
