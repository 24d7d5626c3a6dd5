"""The manifest of a finished run: the sha256 of every file that the run delivers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from kdzoo.errors import CorruptError
from kdzoo.storage.atomic import writing
from kdzoo.storage.runs import Record
from kdzoo.storage.sealed import Files, differences, listed, read_manifest, record_file, record_files, write_sealed

#: Not in the manifest: sealed on their own, gone after the run, or written by a tracker as it likes.
UNLISTED = ("run.json", "manifest.json", "lock", "checkpoints", "planning", "tensorboard")


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

    def update(self, names: Sequence[str]) -> None:
        """Record some files again."""
        files = self.files()
        for name in names:
            with writing(self.root / name):
                files |= {name: record_file(self.root / name)}
        self._write(files)

    def files(self) -> Files:
        """What is recorded; raise CorruptError where the manifest is damaged or of another run."""
        content = read_manifest(self.path, run_id=str)
        if content["run_id"] != self._run["run_id"]:
            raise CorruptError(f"{self.path}: of run '{content['run_id']}', not of '{self._run['run_id']}'")
        if content.get("recipe_hash", self._run["recipe_hash"]) != self._run["recipe_hash"]:
            raise CorruptError(f"{self.path}: of a run of another recipe than run.json")
        return content["files"]

    def verify(self, leave_out: Collection[str]) -> int:
        """Compare the recorded files but ``leave_out`` with those on disk; return how many, or raise CorruptError."""
        files = {name: record for name, record in self.files().items() if name not in leave_out}
        problems = differences(self.root, files)
        if problems:
            raise CorruptError(f"{self.root}: {len(problems)} of {len(files)} files do not verify{listed(problems)}")
        return len(files)

    def _write(self, files: Files) -> None:
        write_sealed(self.path, {**self._run, "files": files})
