"""A task for an executor's worker: finish a run when all its stages are stored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from kdzoo.contract.execution import Worker
from kdzoo.report.writing import write_report
from kdzoo.run.runner import Runner
from kdzoo.run.stage_task import Origin, Telling, opened
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.training.parallel import Ranks


@dataclass(frozen=True)
class RunTask:
    """A run to finish: its folder, begun by the process that hands out the task, and warnings found so far."""

    origin: Origin
    root: Path
    warnings: tuple[str, ...] = ()


def finish_run(worker: Worker, task: RunTask) -> float:
    """Evaluate, export and report a run whose stages are all stored; return the seconds that it took.

    Its owner calls it finished. Raises as ``train_stage``.
    """
    begin = time.monotonic()
    origin = task.origin
    plan, zoo = opened(origin)
    folder = RunFolder.view(task.root, owner=origin.owner)
    folder.warnings += task.warnings
    runner = Runner(plan, zoo, folder, Store(origin.store, folder.uses), Ranks(), Telling(worker), worker.stop)
    runner.run()
    write_report(folder.root)
    return time.monotonic() - begin
