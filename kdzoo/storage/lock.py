"""An exclusive lock on a run folder, with a record of who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdzoo.errors import LockedError
from kdzoo.storage.atomic import writing
from kdzoo.storage.checkpoints import Warn
from kdzoo.storage.owner import Owner


class Lock:
    """An exclusive lock on a run folder, with a record of who holds it.

    The kernel's lock ends with its process. The record names the owner to whoever comes second, and still guards
    where a file system's locks mean nothing. A child process gives its inherited share back, so that workers which
    outlive a killed run do not keep it locked.
    """

    def __init__(self, path: Path, warn: Warn) -> None:
        self.path, self._warn = path, warn
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, from a dead owner too; raise LockedError if another process is or may be the owner."""
        with writing(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)

    def _take(self, descriptor: int) -> None:
        taken = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = False
        except OSError as error:
            self._warn(f"{self.path}: this file system cannot lock files ({error.strerror}); only the record guards it")
        record = _read_record(descriptor)
        owner = record["owner"] if record else None
        fate = owner.fate() if owner else "dead"
        if not taken or (fate == "alive" and owner != Owner.me()):
            raise LockedError(
                f"{self.path.parent}: in use by {_named(record)}; wait for it to end, or start another run with --new"
            )
        if fate == "remote":
            raise LockedError(
                f"{self.path.parent}: in use by {_named(record)}, and from here nobody can tell whether it still runs; "
                f"if it does not, delete {self.path}, or start another run with --new"
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())  # a label: nothing is ordered by it
        data = json.dumps({"owner": asdict(Owner.me()), "since": since}).encode()
        with writing(self.path, len(data)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, data, 0)
            os.fsync(descriptor)

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def release(self, clear: bool = True) -> None:
        """Give the lock up; ``clear`` also removes the record, which a child process must not do."""
        if self._descriptor is None:
            return
        if clear:
            with contextlib.suppress(OSError):  # a record that stays will name a dead owner
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None
        _held.discard(self)

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.release()
            raise


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _in_child() -> None:
    for lock in list(_held):
        lock.release(clear=False)


os.register_at_fork(after_in_child=_in_child)


def _read_record(descriptor: int) -> dict[str, Any] | None:
    """Who holds the lock, as it wrote; None when nobody does, or it has not written yet."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        return {"owner": Owner(**record["owner"]), "since": str(record["since"])}
    except (ValueError, TypeError, KeyError):
        return None


def _named(record: dict[str, Any] | None) -> str:
    if record is None:
        return "a process that has not said its name yet"
    return f"process {record['owner'].pid} on host '{record['owner'].host}' since {record['since']}"
