"""Tasks in workers that share no files with the process that asks: what is needed arrives, what was made goes back.

A worker keeps what arrived in a folder of its own, so that a parent of several stages is unpacked once.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdzoo.contract.execution import Worker
from kdzoo.contract.stage import Stage, StageResult
from kdzoo.errors import Interrupted, OutputError
from kdzoo.run.run_task import RunTask, finish_run
from kdzoo.run.stage_task import StageTask, train_stage
from kdzoo.storage.arrival import own_folder
from kdzoo.storage.atomic import remove_folder
from kdzoo.storage.parcel import pack, unpack
from kdzoo.storage.store import Store
from kdzoo.storage.unfinished import place_of

#: Results that a worker keeps of earlier tasks.
KEPT_RESULTS = 16

Entry = tuple[str, str]  # kind and key of a result in the store


@dataclass(frozen=True)
class Parcel:
    """What comes back: a folder as bytes. ``stopped`` says that the task was, and how; then it is what was saved."""

    content: bytes | None
    stopped: str = ""
    exit_code: int = 0


def train_stage_elsewhere(
    worker: Worker, task: StageTask, entries: Sequence[Entry], saved: bytes | None, *contents: bytes
) -> Parcel:
    """Train a stage as ``train_stage``; ``contents`` are the results named by ``entries``, ``saved`` its checkpoints.

    Where it is asked to stop, what it saved comes back.
    """
    store = _received(entries, contents)
    place = place_of(store.root, task.key)
    if place.exists():
        remove_folder(place)  # of an earlier attempt; what counts of it has arrived
    if saved is not None:
        unpack(saved, place / "checkpoints")
    origin = replace(task.origin, store=store.root, owner=None, uses=None)
    stage = at_home(task.stage, store)
    try:
        key = train_stage(worker, replace(task, origin=origin, stage=stage, place=place))
    except Interrupted as error:
        checkpoints = place / "checkpoints"
        return Parcel(pack(checkpoints) if checkpoints.exists() else None, str(error), error.exit_code)
    found = store.find("stage", key)
    if found is None:
        raise OutputError(f"stage '{task.stage.name}': its result is not in the worker's store {store.root}")
    return Parcel(pack(found))


def finish_run_elsewhere(
    worker: Worker, task: RunTask, folder: bytes, entries: Sequence[Entry], *contents: bytes
) -> Parcel:
    """Finish a run as ``finish_run``; ``folder`` is its folder, which comes back with all that the run left."""
    store = _received(entries, contents)
    root = store.root.parent / task.root.parent.name / task.root.name
    if root.exists():
        remove_folder(root)
    unpack(folder, root)
    origin = replace(task.origin, store=store.root, owner=None, uses=None)
    finish_run(worker, replace(task, origin=origin, root=root))
    content = pack(root)
    remove_folder(root)
    return Parcel(content)


@functools.cache
def _home() -> Store:
    """The store of this process, in the folder for temporary files."""
    return Store(own_folder(Path(tempfile.gettempdir())) / ".store")


_kept: dict[Entry, None] = {}  # what arrived, the one used last at the end


def _received(entries: Sequence[Entry], contents: Sequence[bytes]) -> Store:
    """Unpack what is not here yet, and forget what was not used for long, and what earlier tasks made."""
    store = _home()
    for folder in store.root.glob("*/*"):
        if folder.parent.name != "unfinished" and (folder.parent.name, folder.name) not in _kept:
            remove_folder(folder)
    for (kind, key), content in zip(entries, contents, strict=True):
        if (kind, key) not in _kept:
            store.receive(kind, key, content)
        _kept.pop((kind, key), None)
        _kept[kind, key] = None
    for kind, key in list(_kept)[: max(len(_kept) - max(KEPT_RESULTS, len(entries)), 0)]:
        del _kept[kind, key]
        remove_folder(store.root / kind / key)
    return store


def at_home(stage: Stage, store: Store) -> Stage:
    """A stage with its parents' results where they are in another store."""
    start = None if stage.start is None else _moved(stage.start, store)
    return replace(stage, teachers=tuple(_moved(teacher, store) for teacher in stage.teachers), start=start)


def _moved(result: StageResult, store: Store) -> StageResult:
    folder = None if result.model.answers is not None else store.find("stage", result.key)
    if folder is None:  # stored answers, which every machine has under the same path
        return result
    return replace(result, folder=folder, weights={path.stem: path for path in sorted(folder.glob("*.safetensors"))})
