"""Who may write into a run folder: the process that holds its lock, and the workers of that process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from kdzoo.errors import LockedError, plain
from kdzoo.storage.atomic import writing
from kdzoo.storage.json_reading import parse_object
from kdzoo.storage.owner import Owner

#: Seconds that an owner waits for another process that is in the middle of a write.
PATIENCE_S = 20.0


class Lock:
    """An exclusive lock on a run folder, with a record of who holds it.

    The kernel's lock ends with its process. The record names the owner to whoever comes second, and still guards
    where a file system's locks mean nothing. A child process gives its inherited share back, so that workers which
    outlive a killed run do not keep it locked.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self._warn = path, warn
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, from a dead owner too; raise LockedError if another process is or may be the owner."""
        with writing(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with self._kept(descriptor):
            self._take(descriptor, ", or start another run with --new")
            self._sign(descriptor)

    def hold(self) -> None:
        """Take the lock like ``acquire`` and write nothing, as the disk may be full; do nothing where it is no file."""
        with writing(self.path):
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        with self._kept(descriptor):
            self._take(descriptor, "")

    @contextlib.contextmanager
    def _kept(self, descriptor: int) -> Iterator[None]:
        try:
            yield
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)

    def _take(self, descriptor: int, or_else: str) -> None:
        taken = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = False
        except OSError as error:
            self._warn(f"{self.path}: this file system cannot lock files ({error.strerror}); only the record guards it")
        record = _read_record(os.pread(descriptor, 4096, 0))
        owner = record["owner"] if record else None
        fate = owner.fate() if owner else "dead"
        if not taken or (fate == "alive" and owner != Owner.me()):
            raise LockedError(f"{self.path.parent}: in use by {_named(record)}; wait for it to end{or_else}")
        if fate == "remote":
            raise LockedError(
                f"{self.path.parent}: in use by {_named(record)}, and from here nobody can tell whether it still runs; "
                f"if it does not, delete {self.path}{or_else}"
            )

    def _sign(self, descriptor: int) -> None:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())  # a label: nothing is ordered by it
        data = json.dumps({"owner": asdict(Owner.me()), "since": since}).encode()
        with write_lock(self.path.parent, PATIENCE_S), writing(self.path, len(data)):
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


def _read_record(data: bytes) -> dict[str, Any] | None:
    """Who holds the lock, as it wrote; None when nobody does, or it has not written yet."""
    try:
        record = parse_object(data)
    except ValueError:
        return None
    owner = Owner.from_record(record.get("owner"))
    return None if owner is None else {"owner": owner, "since": plain(str(record.get("since")))}


def owner_of(path: Path) -> tuple[str, Literal["alive", "dead", "hidden", "remote"]]:
    """Who holds the lock at ``path``, in words, and whether that process runs; looking at it takes no lock."""
    try:
        record = _read_record(path.read_bytes()[:4096])
    except OSError:
        record = None
    return ("", "dead") if record is None else (_named(record), record["owner"].fate())


def _named(record: dict[str, Any] | None) -> str:
    if record is None:
        return "a process that has not said its name yet"
    return f"process {record['owner'].pid} on host '{plain(record['owner'].host)}' since {record['since']}"


# --- workers ----------------------------------------------------------------------------------


@contextlib.contextmanager
def write_lock(folder: Path, patience: float | None = None, shared: bool = False) -> Iterator[None]:
    """Let no other process change the folder meanwhile, or none but those that share the lock.

    The owner of a run and its workers take it for a moment, to put a file in its place; a new owner takes it to write
    its name. Raise LockedError when it was not free within ``patience`` seconds.
    """
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _wait(descriptor, folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience)
        yield
    finally:
        os.close(descriptor)  # which unlocks


def _wait(descriptor: int, folder: Path, kind: int, patience: float | None) -> None:
    end = None if patience is None else time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, kind if end is None else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if end is not None and time.monotonic() > end:
                raise LockedError(
                    f"{folder}: another process, perhaps a worker of its last owner, stopped in the middle of a write; "
                    "wait for that process or end it, or start another run with --new"
                ) from None
            time.sleep(0.05)
            continue
        except OSError:  # a file system without locks; what the record says still counts
            pass
        return


@contextlib.contextmanager
def writing_for(owner: Owner, folder: Path, shared: bool = False) -> Iterator[None]:
    """Write as a worker of ``owner``; raise LockedError where the run is no longer that owner's."""
    with write_lock(folder, shared=shared):
        try:
            record = _read_record((folder / "lock").read_bytes()[:4096])
        except OSError:
            record = None
        if record is None or record["owner"] != owner:
            now = f"in use by {_named(record)}" if record else "given up by its owner"
            raise LockedError(f"{folder}: {now}; this worker of process {owner.pid} must not write into it, and stops")
        yield
