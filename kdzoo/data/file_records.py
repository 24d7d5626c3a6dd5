"""What is known of the files of a data set, so that unchanged ones are not read again at every start.

A file is the same as long as its path, size, inode and times of change are. A few are read again each time: where one
of them has other content, nothing that was remembered is trusted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kdzoo.contract.extension_points import FileSplit
from kdzoo.errors import DataError, KdzooError
from kdzoo.storage.atomic import write_bytes
from kdzoo.storage.cache_folder import cache_folder

#: Of remembered files, the share that is read again each time, and the least number of them.
RECHECKED_SHARE, RECHECKED_LEAST = 0.001, 8
#: A file changed this recently may change again without a new time; it is not remembered.
SETTLED_NS = 2 * 10**9
#: Files of other recipes that a file of records keeps.
MOST_OTHERS = 1_000_000
#: Threads that hash files; hashing releases the interpreter, so they run side by side.
HASHING_THREADS = 8

#: In place of the hash of rules, if it is not known that the file can be read.
UNREAD = "-" * 8
#: Hexadecimal digits of a digest.
DIGITS = 32
RECORD = re.compile(r"\d+ -?\d+ -?\d+ \d+ [0-9a-f]{32} [0-9a-f-]{8}")


def files_hashed(split: FileSplit, rows: Sequence[int]) -> list[str]:
    """Hash some samples of a file split, reading each."""

    def of_file(i: int) -> str:
        if split.digest is not None:
            return split.digest(i)
        return hashlib.blake2b(split.content(i), digest_size=16).hexdigest()

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(pool.map(of_file, rows))


class FileRecords:
    """Digests of files, and which of them can be read, by path; kept in the user's cache, one file a data root.

    A record is one line: the file's state, its digest, and a hash of the rules under which it was read.
    """

    def __init__(self, root: Path | None = None) -> None:
        """``root`` is the data root; None: what is found out is forgotten with the process."""
        folder = cache_folder()
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24] if root is not None else ""
        self._place = folder / "files" / f"{name}.json" if folder is not None and root is not None else None
        self._known: dict[str, str] | None = None
        self._seen: set[str] = set()
        self._changed = False
        self.notes: list[str] = []  # what a user should hear of

    def digests(self, split: FileSplit) -> list[str]:
        """Return the digest of each file of a split. Raises DataError for one that cannot be read."""
        known, empty, keys = self._load(), "", _keys(split)
        of_file = {path: _state(path) for path in dict.fromkeys(split.files)}
        states = [of_file[path] for path in split.files]
        records = [known.get(key, empty) for key in keys]
        same = [i for i, record in enumerate(records) if record.startswith(states[i])]
        if same:
            count = min(len(same), max(RECHECKED_LEAST, int(RECHECKED_SHARE * len(same))))
            again = random.SystemRandom().sample(same, count)
            found = files_hashed(split, again)
            other = sum(_digest(records[i]) != digest for i, digest in zip(again, found, strict=True))
            if other:
                self.notes.append(
                    f"{other} of {count} files that were read again have other content, though size, times and inode "
                    "are the same; all files were read anew"
                )
                same = []
        if len(same) < len(states):
            fresh = sorted(set(range(len(states))).difference(same))
            for i, digest in zip(fresh, files_hashed(split, fresh), strict=True):
                known[keys[i]] = records[i] = f"{states[i]}{digest} {UNREAD}"
            self._changed = True
        self._seen.update(keys)
        return [_digest(record) for record in records]

    def unread(self, split: FileSplit, rules: str) -> list[int]:
        """Return the samples that are not known to be readable under ``rules``. Raises DataError as above."""
        if not split.files:
            return list(range(len(split.names)))
        keys = _keys(split)
        if not self._seen.issuperset(keys):
            self.digests(split)
        known, short = self._load(), _short(rules)
        return [i for i, key in enumerate(keys) if not known[key].endswith(short)]

    def mark_readable(self, split: FileSplit, i: int, rules: str) -> None:
        """Remember that a file can be read under ``rules``."""
        if split.files:
            known, key = self._load(), _key(split, i)
            known[key] = known[key][: -len(UNREAD)] + _short(rules)
            self._changed = True

    def save(self) -> None:
        """Write what was found out to the cache; a cache that cannot be written is no error."""
        if self._place is None or not self._changed:
            return
        known, now = self._load(), time.time_ns()
        others = [key for key in known if key not in self._seen][:MOST_OTHERS]
        kept = {key: known[key] for key in (*others, *self._seen) if now - _changed_ns(known[key]) > SETTLED_NS}
        self._changed = False
        if kept:
            with contextlib.suppress(OSError, KdzooError):
                self._place.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(self._place, json.dumps(kept, separators=(",", ":")).encode())

    def _load(self) -> dict[str, str]:
        if self._known is None:
            self._known = {}
            with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
                content: Any = json.loads(self._place.read_bytes()) if self._place is not None else {}
                if isinstance(content, dict) and all(map(RECORD.fullmatch, content.values())):
                    self._known = content
        return self._known


def _key(split: FileSplit, i: int) -> str:
    """Under which name a sample is remembered."""
    return f"{split.files[i]}\0{split.members[i]}" if split.members else split.files[i]


def _keys(split: FileSplit) -> Sequence[str]:
    return [_key(split, i) for i in range(len(split.files))] if split.members else split.files


def _state(path: str) -> str:
    """Return size, times of change of content and of the inode in ns, and inode, each with a space after it."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino} "


def _changed_ns(record: str) -> int:
    return int(record.split(" ", 2)[1])


def _digest(record: str) -> str:
    return record[-DIGITS - len(UNREAD) - 1 : -len(UNREAD) - 1]


@functools.cache
def _short(rules: str) -> str:
    return hashlib.sha256(rules.encode()).hexdigest()[: len(UNREAD)]
