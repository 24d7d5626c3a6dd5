"""How a study's tasks reach workers, and what they made comes back: by the files that both see, or as bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdzoo.contract.execution import Executor, Pending, Resources
from kdzoo.errors import Interrupted
from kdzoo.run.elsewhere import Entry, Parcel, finish_run_elsewhere, train_stage_elsewhere
from kdzoo.run.run_task import RunTask, finish_run
from kdzoo.run.stage_task import StageTask, train_stage
from kdzoo.storage.arrival import take_over
from kdzoo.storage.atomic import remove_folder
from kdzoo.storage.parcel import pack, unpack
from kdzoo.storage.store import Store

#: Results that are kept ready for further tasks, in the executor's memory.
KEPT_REFERENCES = 64


class Travel:
    """Submits tasks to an executor, and takes in what comes back."""

    def __init__(self, executor: Executor, store: Store) -> None:
        self.executor, self.store = executor, store
        self._references: OrderedDict[Entry, Any] = OrderedDict()

    def submit_stage(self, name: str, task: StageTask, resources: Resources) -> Pending:
        """Have a stage trained."""
        if self.executor.shares_files:
            return self.executor.submit(name, train_stage, (task,), resources)
        parents = [*task.stage.teachers, *([task.stage.start] if task.stage.start else [])]
        entries = tuple(dict.fromkeys(("stage", each.key) for each in parents if each.model.answers is None))
        checkpoints = task.place / "checkpoints"
        saved = pack(checkpoints) if checkpoints.is_dir() else None
        arguments = (task, entries, saved, *self._put(entries))
        return self.executor.submit(name, train_stage_elsewhere, arguments, resources)

    def take_stage(self, task: StageTask, answer: Any) -> None:
        """Store what a stage's task returned; raise Interrupted where it was stopped, after storing what it saved."""
        if not isinstance(answer, Parcel):
            return
        if answer.stopped:
            if answer.content is not None:
                take_over_checkpoints(answer.content, task.place)
            raise Interrupted(answer.stopped, answer.exit_code)
        assert answer.content is not None, "a stage that is not stopped has a result"
        self.store.receive("stage", task.key, answer.content)

    def submit_run(self, name: str, task: RunTask, entries: Iterable[Entry], resources: Resources) -> Pending:
        """Have a run finished; ``entries`` are the stored results that it needs."""
        if self.executor.shares_files:
            return self.executor.submit(name, finish_run, (task,), resources)
        needed = tuple(entry for entry in dict.fromkeys(entries) if self.store.root.joinpath(*entry).exists())
        folder = pack(task.root, leave_out=lambda name: name == "lock")
        arguments = (task, folder, needed, *self._put(needed))
        return self.executor.submit(name, finish_run_elsewhere, arguments, resources)

    def take_run(self, task: RunTask, answer: Any) -> None:
        """Put the files of a finished run into its folder."""
        if isinstance(answer, Parcel):
            assert answer.content is not None, "a run's folder is never empty"
            take_over(answer.content, task.root)

    def _put(self, entries: Iterable[Entry]) -> list[Any]:
        references = []
        for entry in entries:
            if entry not in self._references:
                found = self.store.find(*entry)
                assert found is not None, "a task is made when what it needs is stored"
                self._references[entry] = self.executor.put(pack(found))
            self._references.move_to_end(entry)
            references.append(self._references[entry])
        while len(self._references) > max(KEPT_REFERENCES, len(references)):
            self._references.popitem(last=False)
        return references


def take_over_checkpoints(content: bytes, place: Path) -> None:
    """Replace the checkpoints of an unfinished stage by those that arrived."""
    checkpoints = place / "checkpoints"
    if checkpoints.exists():
        remove_folder(checkpoints)
    unpack(content, checkpoints)
