"""How much room files take, and when they changed last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """What a folder takes: bytes of its files, and when the last of them was written, in seconds since 1970."""

    size_bytes: int
    changed: float


def room_of(folder: Path) -> Room:
    """Look at every file below a folder, or at a single file; what vanishes meanwhile takes none."""
    size, changed = 0, 0.0
    waiting = [os.fspath(folder)]
    while waiting:
        for entry in _inside(waiting.pop()):
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    found = entry.stat(follow_symlinks=False)
                    size, changed = size + found.st_size, max(changed, found.st_mtime)
    if not changed:
        with contextlib.suppress(OSError):
            found = os.lstat(folder)
            changed, size = found.st_mtime, 0 if os.path.isdir(folder) else found.st_size
    return Room(size, changed)


def _inside(folder: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
