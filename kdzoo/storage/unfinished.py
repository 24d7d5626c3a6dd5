"""Stages that tasks of a study train: where their checkpoints are, ``<store>/unfinished/<key>/``, and whose they are.

The process that hands out the task holds the lock. The worker, on this machine or on another, writes for that process,
and is refused once another one has taken over.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from kdzoo.errors import CorruptError, LockedError, OutputError
from kdzoo.storage.atomic import json_bytes, remove_folder, replace_files, writing
from kdzoo.storage.checkpoints import Checkpoints, Warn, warn_in_python
from kdzoo.storage.lock import Lock, writing_for
from kdzoo.storage.owner import Owner, sweep

#: How often to try to lock a folder that others remove.
ATTEMPTS = 5


def place_of(store: Path, key: str) -> Path:
    """Return the folder of a stage that is not finished."""
    return store / "unfinished" / key


class Claim:
    """The right to train a stage. Raises LockedError where another process has it."""

    def __init__(self, store: Path, key: str, warn: Warn = warn_in_python) -> None:
        self.place = place_of(store, key)
        self._lock = Lock(self.place / "lock", warn)
        for attempt in range(ATTEMPTS):
            with writing(self.place):
                self.place.mkdir(parents=True, exist_ok=True)
            sweep(self.place.parent)
            try:
                self._lock.acquire()
            except OutputError as error:
                if attempt + 1 < ATTEMPTS and isinstance(error.__cause__, FileNotFoundError):
                    continue  # another process finished the stage just now, and removed the folder
                raise
            return

    def release(self) -> None:
        """Give the right up; what was saved stays for whoever takes it next."""
        self._lock.release()

    def remove(self) -> None:
        """Forget what was saved of a stage that is finished, and give the right up."""
        remove_folder(self.place)
        self._lock.release(clear=False)


def forget_stored(store: Path) -> None:
    """Remove what was saved of stages that are stored by now: their process was killed between the two."""
    for place in sorted((store / "unfinished").glob("*")):
        if (store / "stage" / place.name).exists():
            with contextlib.suppress(LockedError):  # another process is about to
                Claim(store, place.name).remove()


class UnfinishedStage:
    """The checkpoints of a stage, as a worker sees them; it writes for ``owner``, None: for itself."""

    def __init__(self, place: Path, owner: Owner | None = None, warn: Warn = warn_in_python) -> None:
        self.place, self._owner, self._warn = place, owner, warn

    def _commit(self) -> contextlib.AbstractContextManager[None]:
        if self._owner is None:
            return contextlib.nullcontext()
        return writing_for(self._owner, self.place, shared=True)

    def checkpoints(self, stage: str) -> UnfinishedCheckpoints:
        """The checkpoints; the name of the stage does not count, as its key does."""
        folder = self.place / "checkpoints"
        with self._commit(), writing(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
        return UnfinishedCheckpoints(folder, self.place.name[:12], warn=self._warn, commit=self._commit)

    def has_checkpoints(self, stage: str) -> bool:
        return (self.place / "checkpoints").exists()

    def drop_checkpoints(self, stage: str) -> None:
        remove_folder(self.place / "checkpoints", self._commit)

    def write_json(self, name: str, content: Any) -> Path:
        """Write a file next to the checkpoints."""
        replace_files(self.place, {name: json_bytes(content)}, self._commit)
        return self.place / name


class UnfinishedCheckpoints(Checkpoints):
    """Checkpoints whose loss costs one stage: it is trained again from its beginning once they are deleted."""

    def load(self) -> Any:
        try:
            return super().load()
        except CorruptError as error:
            text = str(error).rpartition("\n")[0]
            raise CorruptError(f"{text}\ndelete {self.folder.parent} to train this stage again") from None
