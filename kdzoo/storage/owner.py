"""Which process made a temporary file, and whether it still runs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TEMPORARY = re.compile(r"\.kdzoo-(\w+)-(\w+)-(\w+)-(\d+)-(\d+)-\d+\.tmp")


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one of the same number by its start time and boot."""

    host: str
    boot: str  # of the kernel; empty where there is no /proc
    namespace: str  # of process numbers; containers have their own
    pid: int
    started: int  # clock ticks after boot; 0 where there is no /proc

    @staticmethod
    def me() -> Owner:
        return _owner(os.getpid())

    @staticmethod
    def from_record(record: Any) -> Owner | None:
        """The owner in a record that a process wrote as JSON; None where it is no such record."""
        kinds = {"host": str, "boot": str, "namespace": str, "pid": int, "started": int}
        if not isinstance(record, dict) or record.keys() != kinds.keys():
            return None
        if not all(type(record[name]) is kind for name, kind in kinds.items()) or not 0 < record["pid"] < 2**31:
            return None
        return Owner(**record)

    @property
    def tag(self) -> tuple[str, str, str, int, int]:
        """The same, short enough for a file name."""
        host, boot = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in (self.host, self.boot))
        return host, boot, self.namespace, self.pid, self.started

    def fate(self) -> Literal["alive", "dead", "hidden", "remote"]:
        """Whether the process runs; hidden: in another container of this machine; remote: on another machine."""
        return fate_of(self.tag)


@functools.lru_cache(maxsize=2)
def _owner(pid: int) -> Owner:
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return Owner(socket.gethostname(), "", "0", pid, 0)
    namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    return Owner(socket.gethostname(), boot.read_text().strip(), namespace, pid, _started(pid) or 0)


def _started(pid: int) -> int | None:
    """When a process was started, in clock ticks after boot; None when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _runs(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return _started(pid) in (started, None)  # another user's, perhaps hidden from us
    return _started(pid) == started if started else True


def fate_of(tag: tuple[str, str, str, int, int]) -> Literal["alive", "dead", "hidden", "remote"]:
    mine = Owner.me()
    host, boot, namespace, pid, started = tag
    if mine.boot and boot == mine.tag[1]:
        if namespace != mine.namespace:
            return "hidden"
        return "alive" if _runs(pid, started) else "dead"
    if host != mine.tag[0]:
        return "remote"
    if mine.boot:
        return "dead"  # this machine was started anew since
    return "alive" if _runs(pid, started) else "dead"


_serial = itertools.count()


def temporary_in(folder: Path) -> Path:
    """A name for a temporary file or folder that tells whose it is."""
    tag = "-".join(str(part) for part in Owner.me().tag)
    return folder / f".kdzoo-{tag}-{next(_serial)}.tmp"


def sweep(folder: Path, exclusive: bool = False) -> int:
    """Remove what dead processes left half-written; return how many. ``exclusive``: the caller owns the folder."""
    found = left_by_the_dead(folder, exclusive)
    for path in found:
        discard(path)
    return len(found)


def left_by_the_dead(folder: Path, exclusive: bool = False) -> list[Path]:
    """What ``sweep`` removes."""
    found: list[Path] = []
    try:
        inside = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # perhaps removed just now
        return found
    for path in inside:
        match = TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        host, boot, namespace, pid, started = match.groups()
        fate = fate_of((host, boot, namespace, int(pid), int(started)))
        if fate == "dead" or (exclusive and fate != "alive"):
            found.append(path)
    return found


def discard(path: Path) -> None:
    """Remove a temporary file or folder as well as it goes; what stays is swept at the next start."""
    # Another process may be sweeping too, so that parts of it may be gone already.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def discarded(temporary: Path) -> Iterator[None]:
    """A temporary file or folder is gone after this, unless it was renamed into its place."""
    try:
        yield
    finally:
        discard(temporary)
