"""The manifest of a finished run: the sha256 of every file that the run delivers.

A file that changes after the end is recorded twice: first, as pending, what it will be, and once it is in its place
what it is. A kill in between leaves a file that is as it was or as it is to be, and either of them verifies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kdzoo.errors import CorruptError
from kdzoo.storage.atomic import replace_files, writing
from kdzoo.storage.owner import sweep
from kdzoo.storage.runs import Record
from kdzoo.storage.sealed import Files, differences, listed, read_manifest, record_files, write_sealed
from kdzoo.storage.uses import USES

#: Not in the manifest: sealed on their own, gone after the run, or written by a tracker as it likes.
UNLISTED = ("run.json", "manifest.json", "lock", USES, "checkpoints", "planning", "tensorboard", "trackers")


class Manifest:
    """The file manifest.json of one run; ``record`` is what the run's run.json holds."""

    def __init__(self, root: Path, record: Record) -> None:
        self.root, self.path = root, root / "manifest.json"
        self._run = {"run_id": record["run_id"], "recipe_hash": record["recipe_hash"]}

    def create(self) -> None:
        """Record every file of the run."""
        with writing(self.root):
            files = record_files(self.root, lambda name: name.split("/")[0] in UNLISTED)
        self._write(files)

    def replace(self, files: Mapping[str, bytes | None]) -> None:
        """Write files, and remove those that are None; whenever this is killed, what is there then verifies."""
        for place in {self.root, *((self.root / name).parent for name in files)}:
            sweep(place)  # what such a kill left half written
        self._write(self.files(), {name: None if data is None else _record(data) for name, data in files.items()})
        replace_files(self.root, files)
        self._write(self.files())

    def files(self) -> Files:
        """What is recorded of the files on disk; CorruptError where the manifest is damaged or of another run."""
        content = read_manifest(self.path, run_id=str)
        if content["run_id"] != self._run["run_id"]:
            raise CorruptError(f"{self.path}: of run '{content['run_id']}', not of '{self._run['run_id']}'")
        if content.get("recipe_hash", self._run["recipe_hash"]) != self._run["recipe_hash"]:
            raise CorruptError(f"{self.path}: of a run of another recipe than run.json")
        files = content["files"]
        for name, record in content["pending"].items():
            if record is None and not (self.root / name).exists():
                files.pop(name, None)
            elif record is not None and not differences(self.root, {name: record}):
                files[name] = record
        return files

    def verify(self, leave_out: Collection[str]) -> int:
        """Compare the recorded files but ``leave_out`` with those on disk; return how many, or raise CorruptError."""
        files = {name: record for name, record in self.files().items() if name not in leave_out}
        problems = differences(self.root, files)
        if problems:
            raise CorruptError(f"{self.root}: {len(problems)} of {len(files)} files do not verify{listed(problems)}")
        return len(files)

    def _write(self, files: Files, pending: Mapping[str, Any] | None = None) -> None:
        write_sealed(self.path, {**self._run, "files": files} | ({"pending": pending} if pending else {}))


def _record(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
