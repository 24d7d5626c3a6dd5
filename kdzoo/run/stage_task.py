"""A task for an executor's worker: train one stage into the store."""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdzoo.contract.execution import Worker
from kdzoo.contract.stage import Stage
from kdzoo.errors import ExecutorError
from kdzoo.plan.resolve import Plan, resolve
from kdzoo.recipe.problems import Positions
from kdzoo.recipe.reading import LoadedRecipe, recipe_hash
from kdzoo.recipe.sections import Recipe
from kdzoo.run.builder import Builder
from kdzoo.run.control import Control
from kdzoo.run.stage_log import StageLog
from kdzoo.run.stage_runner import StageRunner
from kdzoo.run.tracking import Trackers
from kdzoo.run.versions import check_versions, differing
from kdzoo.storage.owner import Owner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.storage.unfinished import UnfinishedStage
from kdzoo.storage.uses import Uses
from kdzoo.training.device import set_threads
from kdzoo.training.engine import Progress
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.loading import load_zoo
from kdzoo.zoo.offered import Zoo

#: Runs of which a worker keeps what it built, most of all their data.
KEPT_BUILDERS = 2


@dataclass(frozen=True)
class Origin:
    """Where a task comes from: the recipe, its file, the store, and what has to be the same in the worker.

    ``threads`` is the default number of threads where the recipe gives none; ``owner`` is the process that hands out
    the task and owns the folder that it writes into, None where the worker has folders of its own. ``uses`` is the
    folder of the run or study that records which stored results it uses.
    """

    recipe: Recipe
    path: Path
    store: Path
    threads: int
    versions: Mapping[str, str]
    owner: Owner | None
    uses: Path | None = None


@dataclass(frozen=True)
class StageTask:
    """A stage to train, with the key that it has where it comes from.

    Its checkpoints are below ``place``: the folder of the run that it belongs to, or, unless ``in_run``, its own.
    """

    origin: Origin
    stage: Stage
    key: str
    environment: Mapping[str, Any]  # where the task comes from, to say what differs
    place: Path
    in_run: bool = False


def train_stage(worker: Worker, task: StageTask) -> str:
    """Train a stage into the store, or go on with its checkpoints; return its key.

    Raises ExecutorError in a worker of other versions or hardware, Interrupted once the worker is asked to stop.
    """
    origin = task.origin
    build, zoo = _built(origin)
    place: RunFolder | UnfinishedStage
    place = (RunFolder.view if task.in_run else UnfinishedStage)(task.place, owner=origin.owner)
    build.store.uses = None if origin.uses is None else Uses(origin.uses)
    control = Control(build.ranks, Telling(worker), worker.stop)
    log = StageLog(None, Trackers((), control.display.note))  # the run's own process writes the log
    stages = StageRunner(build, zoo, place, control, log, [])
    mine = stages.key(task.stage)
    if mine != task.key:
        found = differing(task.environment, build.environment) or "code, data or files"
        raise ExecutorError(
            f"stage '{task.stage.name}': the worker on {socket.gethostname()} would not train the same bits, because "
            f"it differs in {found}"
        )
    return stages.train(task.stage).key


class Telling:
    """A display that tells a worker what there is to show."""

    def __init__(self, worker: Worker) -> None:
        self._tell = worker.tell

    def note(self, text: str) -> None:
        """Nobody looks at the worker; what matters is in the results."""

    def stage(self, name: str, state: str) -> None:
        self._tell({"stage": name, "state": state})

    def progress(self, progress: Progress) -> None:
        if not progress.end_of_epoch:
            self._tell(vars(progress))


_builders: OrderedDict[tuple[str, ...], tuple[Builder, Zoo]] = OrderedDict()


def opened(origin: Origin) -> tuple[Plan, Zoo]:
    """In a worker: the plan of a task's recipe, with the threads that it asks for; ExecutorError for other versions."""
    zoo = load_zoo()
    check_versions(origin.versions, zoo)
    torch.set_num_threads(origin.threads)
    set_threads(origin.recipe.threads)
    return resolve(LoadedRecipe(origin.recipe, origin.path, Positions()), zoo), zoo


def _built(origin: Origin) -> tuple[Builder, Zoo]:
    """What stages of a task's recipe are built with; that of the last few recipes is kept."""
    plan, zoo = opened(origin)
    key = recipe_hash(origin.recipe), str(origin.path), str(origin.store), str(origin.threads)
    if key not in _builders:
        while len(_builders) >= KEPT_BUILDERS:
            _builders.popitem(last=False)
        _builders[key] = Builder(plan, Store(origin.store), Ranks(origin.recipe.device)), zoo
    _builders.move_to_end(key)
    return _builders[key]
