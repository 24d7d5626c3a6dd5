"""Collecting what nobody needs: stored results that no run and no study refers to, and what dead processes left.

A result is needed while its name is in the record of a run's or a study's folder (see ``Uses``). The record is written
before the result is looked for or stored, and the entries of the store are listed before the records are read: so what
is listed and needed is recorded by then. What is found in the store after that gets a new time, which is compared
inside a lock before the entry goes.

Stages that a study began and did not finish are in the store too, each with a lock that names the process that trains
it. One is needed while its stage is, and never touched while that process runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdzoo.errors import CorruptError, LockedError
from kdzoo.storage.atomic import writing
from kdzoo.storage.json_reading import JsonError, parse_object, read_file
from kdzoo.storage.lock import Lock, owner_of, write_lock
from kdzoo.storage.owner import TEMPORARY, discard, left_by_the_dead, temporary_in
from kdzoo.storage.room import Room, room_of
from kdzoo.storage.runs import read_run_record, run_folders
from kdzoo.storage.sealed import listed
from kdzoo.storage.store import ENTRY
from kdzoo.storage.uses import USES, Uses

#: The kind of entries that are stages which a study began.
UNFINISHED = "unfinished"
#: Characters of a key in results.json.
SHORT_KEY = 12


@dataclass
class Amount:
    """A number of things, and the room that they take."""

    count: int = 0
    size_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        self.count, self.size_bytes = self.count + 1, self.size_bytes + size_bytes


@dataclass
class Collected:
    """What was removed, by kind of result; what is needed; what is not but was used lately; leftovers removed."""

    removed: dict[str, Amount] = field(default_factory=dict)
    needed: Amount = field(default_factory=Amount)
    recent: Amount = field(default_factory=Amount)
    leftovers: Amount = field(default_factory=Amount)


@dataclass(frozen=True)
class Entry:
    """A stored result, or an unfinished stage; ``used_ns``: when it was used last, nanoseconds since 1970."""

    kind: str
    place: Path
    used_ns: int

    @property
    def names(self) -> tuple[str, str]:
        """What a record may call it: by its whole key, or, where a run has no record, by the beginning of it."""
        kind = "stage" if self.kind == UNFINISHED else self.kind
        return f"{kind}/{self.place.name}", f"{kind}/{self.place.name[:SHORT_KEY]}..."


def collect(out: Path, older_s: float, dry_run: bool = False) -> Collected:
    """Remove from the store below ``out`` what nobody refers to and nobody used for ``older_s`` seconds.

    Also remove what dead processes left half-written below ``out``. With ``dry_run`` only say what would go. Raise
    CorruptError where it cannot be known what a run needs; nothing is removed then.
    """
    found = Collected()
    entries = list(_entries(out / ".store"))
    finished = {entry.place.name for entry in entries if entry.kind == "stage"}
    needed = needed_results(out)
    before = time.time() - older_s
    for entry in entries:
        room = room_of(entry.place)
        left = entry.kind == UNFINISHED and entry.place.name in finished  # its process died when it was done
        if not left and needed.intersection(entry.names):
            found.needed.add(room.size_bytes)
        elif _used_since(before, entry, room):
            found.recent.add(room.size_bytes)
        elif dry_run or _remove(entry):
            found.removed.setdefault(entry.kind, Amount()).add(room.size_bytes)
    for path in _leftovers(out):
        found.leftovers.add(room_of(path).size_bytes)
        if not dry_run:
            discard(path)
    return found


def needed_results(out: Path) -> set[str]:
    """The names of all stored results that runs and studies below ``out`` refer to."""
    needed: set[str] = set()
    problems = []
    for folder in [*run_folders(out), *_studies(out)]:
        try:
            needed |= Uses(folder).read() if (folder / USES).exists() else _of_results(folder)
        except CorruptError as error:
            if folder.is_dir():  # else it was removed just now
                problems.append(str(error))
    if problems:
        raise CorruptError(
            f"{out}: it cannot be known which stored results these runs need, so nothing is removed{listed(problems)}\n"
            "remove these runs with `kdzoo rm`, or put the files back"
        )
    return needed


def _of_results(root: Path) -> set[str]:
    """The stages of a finished run that has no record, as one of an older kdzoo."""
    if read_run_record(root)["status"] != "finished":
        raise CorruptError(f"{root / USES}: missing; it was begun by an older kdzoo")
    path = root / "results.json"
    try:
        stages = parse_object(read_file(path))["stages"]
        return {f"stage/{stage['key'][:SHORT_KEY]}..." for stage in stages}
    except (OSError, JsonError, KeyError, TypeError) as error:
        raise CorruptError(f"{path}: cannot be read: {error}") from None


def _studies(out: Path) -> list[Path]:
    """Folders of studies, which refer to the results of stages that are not in a run yet."""
    return [path.parent for path in out.glob(f"*/study/{USES}")]


def _entries(store: Path) -> Iterator[Entry]:
    for kind in _folders(store):
        for place in _folders(kind):
            try:
                yield Entry(kind.name, place, place.stat().st_mtime_ns)
            except FileNotFoundError:  # collected by another process
                continue


def _folders(above: Path) -> list[Path]:
    if not above.is_dir():
        return []
    return sorted(path for path in above.iterdir() if ENTRY.fullmatch(path.name) and path.is_dir())


def _used_since(before: float, entry: Entry, room: Room) -> bool:
    if entry.kind != UNFINISHED:
        return entry.used_ns / 1e9 > before
    return room.changed > before or owner_of(entry.place / "lock")[1] != "dead"  # nobody finds it: it is written


def _remove(entry: Entry) -> bool:
    """Remove an entry, unless it was used since it was listed, or is a stage that a process trains."""
    if entry.kind != UNFINISHED:
        return _take_away(entry)
    lock = Lock(entry.place / "lock", lambda text: None)
    try:
        lock.hold()
        return _take_away(entry)
    except LockedError:
        return False
    finally:
        lock.release(clear=False)


def _take_away(entry: Entry) -> bool:
    temporary = temporary_in(entry.place.parent)
    with writing(entry.place, 0, "it could not be removed"), write_lock(entry.place.parent):
        try:
            if entry.place.stat().st_mtime_ns != entry.used_ns:
                return False
            os.rename(entry.place, temporary)
        except FileNotFoundError:
            return False
    discard(temporary)
    return True


def _leftovers(out: Path) -> Iterator[Path]:
    for above, folders, _ in os.walk(out):
        yield from left_by_the_dead(Path(above))
        folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]
