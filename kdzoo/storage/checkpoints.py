"""Checkpoints of a stage: the last two states, each verified before it replaces an older one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdzoo.errors import CorruptError
from kdzoo.storage.atomic import check_room, json_bytes, sync_folder, tensor_bytes, write_through, writing
from kdzoo.storage.json_reading import parse_object
from kdzoo.storage.owner import discard, discarded, sweep, temporary_in
from kdzoo.storage.sealed import Files, listed, read_manifest, read_recorded, read_sealed, sealed_bytes, write_sealed
from kdzoo.storage.state_codec import packed, unpacked
from kdzoo.storage.store import ENTRY

if TYPE_CHECKING:
    from torch import Tensor

Warn = Callable[[str], None]


def warn_in_python(text: str) -> None:
    """Where warnings go that nobody asked for: loud, so that none is lost."""
    warnings.warn(text, stacklevel=3)


class Checkpoints:
    """The last two states of one stage of one run: ``<folder>/<sequence>/`` with tensors, state and manifest.

    One process writes at a time (the run folder's lock sees to it). The newest is the one with the highest sequence
    number in its manifest, whatever names and clocks say. ``expected``: there must be one, so that lost files are
    an error and never a fresh start. Each change of the folder is made inside ``commit()``, which may refuse it.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str = "",
        *,
        warn: Warn = warn_in_python,
        expected: bool = False,
        begun: Callable[[], None] = lambda: None,
        commit: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.folder, self.run_id = folder, run_id
        self._warn, self._expected, self._begun, self._commit = warn, expected, begun, commit
        self._damaged: set[Path] = set()
        sweep(folder)

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> int:
        """Store a state and return its sequence number; older ones go once it has been read back.

        ``state`` may nest dicts, lists, tuples, strings, numbers, booleans and None; all of them come back as they
        were, NaN and infinities too. Raise OutputError when it cannot be written; the last good one stays.
        """
        contents = {"tensors.safetensors": tensor_bytes(tensors, {}), "state.json": json_bytes(packed(state))}
        sequence = self._write(contents)
        self._begun()
        self._expected = True
        self._prune()
        return sequence

    def _write(self, contents: dict[str, bytes]) -> int:
        size = sum(len(data) for data in contents.values())
        with writing(self.folder, size):
            with self._commit():
                self.folder.mkdir(exist_ok=True)
            check_room(self.folder, size)
            sequence = 1 + max([0, *self._numbers()])
        files = {n: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for n, data in contents.items()}
        contents["manifest.json"] = sealed_bytes({"run_id": self.run_id, "sequence": sequence, "files": files})
        temporary, place = temporary_in(self.folder), self._place(sequence)
        with writing(place, size, "the checkpoint before it is unchanged"), discarded(temporary):
            temporary.mkdir()
            for name, data in contents.items():
                write_through(temporary / name, data)
            sync_folder(temporary)
            with self._commit():
                os.rename(temporary, place)
            sync_folder(self.folder)
        write_sealed(self.folder / "latest.json", {"run_id": self.run_id, "sequence": sequence}, self._commit)
        return sequence

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and state of the newest checkpoint that verifies, or None if none was ever saved.

        A damaged one is passed over with a warning. Raise CorruptError, naming each damaged part, if none is left.
        """
        from safetensors.torch import load

        found, problems = self._scan()
        latest, problem = self._latest()
        if problem:
            problems.append(problem)
        known = [0, *(sequence for sequence, _, _ in found)]
        if latest not in known and not (problems and self._place(latest).exists()):
            problems.append(f"{self.folder}: checkpoint {latest} is missing")
        for sequence, place, files in found:
            try:
                contents = {name: read_recorded(place / name, files, name) for name in files}
                tensors, state = load(contents["tensors.safetensors"]), unpacked(parse_object(contents["state.json"]))
            except CorruptError as error:
                problems.append(str(error))
                self._damaged.add(place)
                continue
            if problems:
                self._warn(
                    f"{self.folder}: checkpoint {sequence} is used, because others are not as saved{listed(problems)}"
                )
            return tensors, state
        if problems or self._expected:
            raise CorruptError(
                f"{self.folder}: no checkpoint can be used{listed(problems or ['all of them are gone'])}\n"
                "put the files back, or start a new run with --new"
            )
        return None

    def _scan(self) -> tuple[list[tuple[int, Path, Files]], list[str]]:
        """Checkpoints, newest first by the number in their manifests, and what is wrong with the rest."""
        found: list[tuple[int, Path, Files]] = []
        problems = []
        for place in self._places():
            try:
                manifest = read_manifest(place / "manifest.json", run_id=str, sequence=int)
                if manifest["run_id"] != self.run_id:
                    raise CorruptError(f"{place}: belongs to run '{manifest['run_id']}', not to '{self.run_id}'")
            except CorruptError as error:
                problems.append(str(error))
                self._damaged.add(place)
            else:
                found.append((manifest["sequence"], place, manifest["files"]))
        return sorted(found, key=lambda entry: entry[0], reverse=True), problems

    def _places(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and ENTRY.fullmatch(path.name))

    def _numbers(self) -> list[int]:
        """Every number in use, damaged ones too, so that none is given twice."""
        named = [int(path.name) for path in self._places() if path.name.isdecimal()]
        return [self._latest()[0], *(sequence for sequence, _, _ in self._scan()[0]), *named]

    def _latest(self) -> tuple[int, str]:
        """The newest number that was saved, 0 for none, and what is wrong with the note of it."""
        path = self.folder / "latest.json"
        try:
            return (read_sealed(path, sequence=int)["sequence"], "") if path.exists() else (0, "")
        except CorruptError as error:
            return 0, str(error)

    def _place(self, sequence: int) -> Path:
        return self.folder / f"{sequence:08d}"

    def _prune(self) -> None:
        keep = [place for _, place, _ in self._scan()[0] if place not in self._damaged][:2]
        for place in self._places():
            if place not in keep:
                # Renamed first, so that one half removed is never taken for a damaged one.
                temporary = temporary_in(self.folder)
                with writing(place, 0, "older checkpoints could not be removed"), self._commit():
                    os.rename(place, temporary)
                discard(temporary)
        self._damaged.clear()
