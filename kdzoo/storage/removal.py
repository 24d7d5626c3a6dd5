"""Removing runs: whole, and never one that is in use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdzoo.errors import OutputError, ReportError, plain
from kdzoo.storage.atomic import remove_folder
from kdzoo.storage.lock import PATIENCE_S, Lock, write_lock
from kdzoo.storage.room import room_of
from kdzoo.storage.runs import RUN_ID, runs_in


@dataclass(frozen=True)
class RemovedRun:
    """A run that is gone, and the room that it took."""

    folder: Path
    size_bytes: int


def remove_runs(folders: Sequence[Path], warn: Callable[[str], None], dry_run: bool = False) -> list[RemovedRun]:
    """Remove run folders, damaged ones too; with ``dry_run`` only say what would go.

    All are checked first: raise ReportError where one is no run folder, LockedError where a process uses it or may do
    so, and OutputError where it cannot be removed. What they stored stays in the store.
    """
    runs = list({folder.resolve(): removable(folder) for folder in folders}.values())
    with contextlib.ExitStack() as held:
        for root in runs:
            lock = Lock(root / "lock", warn)
            lock.hold()
            held.callback(lock.release, clear=False)
        found = [RemovedRun(root, room_of(root).size_bytes) for root in runs]
        for root in [] if dry_run else runs:
            left = remove_folder(root, lambda root=root: write_lock(root, PATIENCE_S))  # type: ignore[misc]
            if left is not None:
                raise OutputError(f"{root}: removed but for files that could not be deleted; what is left is {left}")
    return found


def removable(folder: Path) -> Path:
    """Return ``folder`` if it is a run's, whole or damaged; raise ReportError if not."""
    shown = plain(str(folder), 200)
    try:
        if folder.is_symlink():
            raise ReportError(f"{shown}: a link; name the run folder itself")
        if not folder.is_dir():
            raise ReportError(f"{shown}: no such run folder")
        if RUN_ID.fullmatch(folder.name):
            return folder
        inside = runs_in(folder)
    except OSError as error:
        raise ReportError(f"{shown}: no such run folder: {error.strerror}") from None
    example = f"; name the runs in it, such as {inside[0]}" if inside else ""
    raise ReportError(f"{shown}: not a run folder{example}")
