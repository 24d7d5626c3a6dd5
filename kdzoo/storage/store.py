"""The store: results under the hash of all that determines them, written once, then only read."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from kdzoo.errors import CorruptError
from kdzoo.storage.atomic import rename_new, sync_folder, writing
from kdzoo.storage.lock import write_lock
from kdzoo.storage.owner import discarded, sweep, temporary_in
from kdzoo.storage.parcel import unpack
from kdzoo.storage.sealed import differences, listed, read_manifest, record_files, write_sealed
from kdzoo.storage.uses import Uses

ENTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Store:
    """Results under the hash of all that determines them: ``<root>/<kind>/<key>/``, written once, then only read.

    Several processes may publish one key at a time, on several machines: each writes a folder of its own and
    renames it into place; one wins, the others take its result. No lock is involved.

    What is asked for or stored is recorded in ``uses``, the record of the run or study that it is for, and stays for as
    long as that folder does; without one, only for as long as whoever collects leaves to what was used lately.
    """

    def __init__(self, root: Path, uses: Uses | None = None) -> None:
        self.root, self.uses = Path(root), uses

    def find(self, kind: str, key: str) -> Path | None:
        """Return the folder of a result after checking each of its files, or None; raise CorruptError if damaged."""
        place = self._place(kind, key)
        if not _take(place):
            return None
        problems = _problems(place, kind, key)
        if problems:
            raise CorruptError(f"stored {kind}: damaged{listed(problems)}\ndelete {place} and run again")
        return place

    def publish(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill an empty folder and store it under ``key``; return its place.

        When another process was first, its result is returned and ours dropped.
        """
        place = self._place(kind, key)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            sweep(place.parent)
            temporary = temporary_in(place.parent)
            temporary.mkdir()
        with discarded(temporary):
            write(temporary)
            with writing(place):
                files = record_files(temporary)
            write_sealed(temporary / "manifest.json", {"kind": kind, "key": key, "files": files})
            with writing(place):
                for folder in (path for path in temporary.rglob("*") if path.is_dir()):
                    sync_folder(folder)
                rename_new(temporary, place)
        found = self.find(kind, key)
        assert found is not None
        return found

    def receive(self, kind: str, key: str, content: bytes) -> Path:
        """Store a result that ``pack`` made of a store's folder on another machine; return its place, as ``publish``.

        Raise CorruptError where the content is damaged or of another key; nothing is stored then.
        """
        place = self._place(kind, key)

        def check(folder: Path) -> None:
            problems = _problems(folder, kind, key)
            if problems:
                raise CorruptError(f"{place}: the {kind} that arrived for it is damaged{listed(problems)}")

        unpack(content, place, check)
        found = self.find(kind, key)
        assert found is not None
        return found

    def _place(self, kind: str, key: str) -> Path:
        """Where a result is or will be; whoever asks refers to it from now on."""
        for name in (kind, key):
            if not ENTRY.fullmatch(name):
                raise ValueError(f"a kind or key of the store must be a plain name, got {name!r}")
        if self.uses is not None:
            self.uses.add(kind, key)
        return self.root / kind / key


def _problems(place: Path, kind: str, key: str) -> list[str]:
    """One line for each thing that is wrong with the folder of a result."""
    try:
        manifest = read_manifest(place / "manifest.json", kind=str, key=str)
        if (manifest["kind"], manifest["key"]) != (kind, key):
            raise CorruptError(f"{place}: holds {manifest['kind']} {manifest['key']}")
        return differences(place, manifest["files"])
    except CorruptError as error:
        return [str(error)]


def _take(place: Path) -> bool:
    """Whether a result is there; if so, its folder's time says that it is used now.

    Whoever collects looks at the time and removes the folder inside the same lock, so that it does either before this
    or not at all. Where a file system has no locks, it leaves alone what was used lately.
    """
    if not place.exists():
        return False
    with write_lock(place.parent, shared=True):
        now = time.time_ns()
        with contextlib.suppress(OSError):  # of another user, or on a disk that can only be read
            os.utime(place, ns=(now, now))
        return place.exists()
