"""Runs on their way: each run's stages are followed over the store, and what is missing is what it waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdzoo.contract.execution import Resources
from kdzoo.contract.stage import Stage
from kdzoo.errors import KdzooError
from kdzoo.plan.filled import filled
from kdzoo.plan.resolve import Plan, resolve
from kdzoo.recipe.reading import recipe_hash
from kdzoo.run.replay import Replay
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.storage.uses import Uses
from kdzoo.study.compute import training_pmacs
from kdzoo.study.wanted import RunOutcome, WantedRun
from kdzoo.training.device import set_threads
from kdzoo.zoo.offered import Zoo

#: Runs whose data and networks are kept at hand.
KEPT_REPLAYS = 4


@dataclass
class FollowedRun:
    """A run on its way. ``waits`` are the stages without which it cannot go on, by their keys."""

    outcome: RunOutcome
    plan: Plan | None = None
    replay: Replay | None = None
    begun: bool = False
    queued: bool = False  # whether its evaluation is
    waits: dict[str, Stage] = field(default_factory=dict)
    folder: RunFolder | None = None
    keys: tuple[str, ...] = ()  # its result key and training key
    resources: Resources = field(default_factory=Resources)
    asked: _Asked = field(default_factory=lambda: _Asked(None))

    @property
    def wanted(self) -> WantedRun:
        return self.outcome.run

    @property
    def over(self) -> bool:
        return self.outcome.status != "stopped"

    def close(self) -> None:
        """Give its folder up."""
        if self.folder is not None:
            self.folder.__exit__()


class _Asked(Uses):
    """Which stored results a run asked for, and the record of them."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder or Path())
        self._recorded, self.entries = folder is not None, dict[tuple[str, str], None]()

    def add(self, kind: str, key: str) -> None:
        self.entries[kind, key] = None
        if self._recorded:
            super().add(kind, key)


class Followed:
    """Follows the stages of runs, and keeps the data and networks of a few of them at hand."""

    def __init__(self, out: Path, zoo: Zoo, finish: bool, uses: Path | None) -> None:
        """As for ``run_all``; threads are those that torch has now."""
        self.out, self.zoo, self.finish, self.uses = out, zoo, finish, uses
        self.threads = torch.get_num_threads()
        self.live: list[FollowedRun] = []  # that have a replay, the one used last at the end
        self.rehearsed: dict[str, Exception | None] = {}  # by the arm's label

    def go_on(self, run: FollowedRun) -> None:
        """Find the stages that a run waits for: none where all are stored, or where it is over, finished before."""
        replay = run.replay or self._opened(run)
        if run.over:
            return
        torch.set_num_threads(self.threads)
        set_threads(replay.build.recipe.threads)  # as what the algorithm asks a network is computed here
        run.waits = dict(replay.missing())
        if run.waits:
            self._rehearse(run, replay)
        else:
            _note_stages(run, replay)

    def _opened(self, run: FollowedRun) -> Replay:
        """Build what a run's stages are followed with; a run that is finished already is over then."""
        torch.set_num_threads(self.threads)
        if run.plan is None:
            run.plan = resolve(run.wanted.loaded, self.zoo)
        asked = _Asked(self.uses)
        replay = Replay(run.plan, self.zoo, Store(self.out / ".store", asked))
        run.asked, run.resources = asked, Resources(torch.get_num_threads(), replay.gpus)
        if self.finish and not run.keys:
            run.keys = replay.result_keys()
            if self._finished_before(run):
                if not replay.missing():
                    _note_stages(run, replay)
                return replay
        run.replay = replay
        self.live = [*(each for each in self.live if each is not run and each.replay is not None), run]
        for old in self.live[:-KEPT_REPLAYS]:
            old.replay = None
        return replay

    def _finished_before(self, run: FollowedRun) -> bool:
        assert run.plan is not None, "it is resolved first"
        recipe = filled(run.plan.recipe, self.zoo)
        folder = RunFolder.find_finished(
            self.out,
            name=recipe.name,
            seed=recipe.seed,
            recipe_hash=recipe_hash(recipe),
            result_key=lambda: run.keys[0],
        )
        if folder is None:
            return False
        run.outcome.folder, run.outcome.results = folder.root, folder.read_json("results.json")
        run.outcome.status, run.outcome.finished_before = "finished", True
        return True

    def _rehearse(self, run: FollowedRun, replay: Replay) -> None:
        """Refuse an arm before its first training, once for all its seeds."""
        label = run.wanted.label
        if label not in self.rehearsed:
            self.rehearsed[label] = None
            try:
                replay.rehearse()
            except KdzooError as error:
                self.rehearsed[label] = error
        if (problem := self.rehearsed[label]) is not None:
            raise problem


def _note_stages(run: FollowedRun, replay: Replay) -> None:
    assert replay.walked is not None, "nothing is missing"
    run.outcome.stages, run.outcome.student = tuple(replay.stages.trained), replay.walked.student
    run.outcome.training_pmacs = training_pmacs(replay)
