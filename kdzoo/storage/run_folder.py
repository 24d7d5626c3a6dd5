"""The folder of one run, ``<out>/<recipe's name>/<run id>/``: who owns it, what may be resumed, what it holds.

``run.json`` is the run's identity and state, ``lock`` names its live owner, ``manifest.json`` (written last) holds
the sha256 of every file that the run delivers."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from kdzoo.errors import CorruptError, OutputError, ReportError, ResumeError, plain, shown
from kdzoo.storage.atomic import append_line, json_bytes, probe_writable, rename_new, write_bytes, write_text, writing
from kdzoo.storage.checkpoints import Checkpoints, Warn, warn_in_python
from kdzoo.storage.lock import Lock
from kdzoo.storage.owner import discard, discarded, sweep, temporary_in
from kdzoo.storage.sealed import (
    Files,
    differences,
    listed,
    read_recorded,
    read_sealed,
    record_file,
    record_files,
    write_sealed,
)
from kdzoo.types import NAME

RUN_ID = re.compile(r"(\d{4,})-seed(-?\d+)")

Outcome = Literal["new", "resumed", "finished", "viewed"]

#: Not in the manifest: sealed on their own, gone after the run, or written by a tracker as it likes.
UNLISTED = ("run.json", "manifest.json", "lock", "checkpoints", "planning", "tensorboard")


class RunFolder:
    """One run on disk. Use it as a context manager, so that its lock is given up.

    ``outcome``: "new"; "resumed"; "finished" when there was nothing left to do; "viewed" when only looked at.
    ``warnings`` holds what was found wrong but could be mended; ``warn`` is told at once.
    """

    def __init__(self, root: Path, record: dict[str, Any], outcome: Outcome, lock: Lock | None, warn: Warn) -> None:
        self.root, self.outcome = root, outcome
        self.warnings: list[str] = []
        self._record, self._lock, self._tell = record, lock, warn

    # --- opening ------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        out: Path,
        *,
        name: str,
        seed: int,
        recipe_text: str,
        recipe_hash: str,
        recipe_fields: Mapping[str, Any],
        new: bool = False,
        resume: bool = False,
        warn: Warn = warn_in_python,
    ) -> RunFolder:
        """Resume the latest run of this recipe and seed if it is unfinished, else begin a new one; lock it.

        ``new`` always begins one, ``resume`` never does. Raise OutputError if ``out`` cannot be written,
        LockedError if a live process owns the run, ResumeError if it cannot be resumed as asked, CorruptError if
        it is damaged.
        """
        if new and resume:
            raise ResumeError("--new and --resume exclude each other")
        parent = Path(out) / name
        probe_writable(parent)
        sweep(parent)
        recipe = {"recipe_hash": recipe_hash, "recipe": json.loads(json.dumps(recipe_fields))}
        while True:
            latest = None if new else _latest(parent, seed)
            if latest is None and resume:
                raise ResumeError(
                    f"nothing to resume: no run of '{name}' with seed {seed} in {out}; start one without --resume"
                )
            if latest is None or (latest[1]["status"] == "finished" and not resume):
                folder = cls._create(parent, {"name": name, "seed": seed, **recipe}, recipe_text, warn)
            elif latest[1]["status"] == "finished":
                _same_recipe(*latest, recipe)
                folder = cls(*latest, "finished", None, warn)
            else:
                folder = cls._resume(latest[0], recipe, recipe_text, warn)
            if folder is not None:
                return folder

    @classmethod
    def view(cls, root: Path, warn: Warn = warn_in_python) -> RunFolder:
        """Look at a run without owning it; raise ReportError where no folder is, CorruptError if it is no run's."""
        if not Path(root).is_dir():
            raise ReportError(f"{root}: no such run folder")
        return cls(Path(root), read_sealed(Path(root) / "run.json"), "viewed", None, warn)

    @classmethod
    def _create(cls, parent: Path, record: dict[str, Any], recipe_text: str, warn: Warn) -> RunFolder | None:
        """Make a new run's folder, whole from its first moment; None when another process took its number."""
        sequence = 1 + max([0, *_sequences(parent)])
        run_id = f"{sequence:04d}-seed{record['seed']}"
        record = {"run_id": run_id, "sequence": sequence, "status": "running", "checkpointed": [], **record}
        temporary, place = temporary_in(parent), parent / run_id
        with discarded(temporary):
            with writing(place):
                temporary.mkdir()
                (temporary / "checkpoints").mkdir()
            lock = Lock(temporary / "lock", warn)
            lock.acquire()
            with lock.released_on_error():
                write_text(temporary / "recipe.yaml", recipe_text)
                write_sealed(temporary / "run.json", record)
                with writing(place):
                    renamed = rename_new(temporary, place)
        if not renamed:
            lock.release()
            return None
        lock.path = place / "lock"
        return cls(place, record, "new", lock, warn)

    @classmethod
    def _resume(cls, root: Path, recipe: dict[str, Any], recipe_text: str, warn: Warn) -> RunFolder | None:
        """Take an unfinished run over; None when its owner finished it in this moment."""
        probe_writable(root)
        lock = Lock(root / "lock", warn)
        lock.acquire()
        with lock.released_on_error():
            record = read_sealed(root / "run.json")
            if record["status"] == "finished":
                lock.release()
                return None
            _same_recipe(root, record, recipe)
            for place in (root, *(path for path in root.rglob("*") if path.is_dir())):
                sweep(place, exclusive=True)
            folder = cls(root, record, "resumed", lock, warn)
            folder._drop_torn_line()
            folder.write_text("recipe.yaml", recipe_text)
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    # --- what it is ---------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        return self._record["run_id"]

    @property
    def finished(self) -> bool:
        return self._record["status"] == "finished"

    @property
    def resumed(self) -> bool:
        return self.outcome == "resumed"

    def path(self, name: str) -> Path:
        """Where ``name`` is in the folder; raise OutputError if that would be outside."""
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise OutputError(f"{name}: a file of a run must be inside its folder {self.root}")
        return self.root / name

    # --- writing ------------------------------------------------------------------------------

    def folder_of(self, name: str) -> Path:
        """Make sure that a folder below this one exists, for files that are written elsewhere."""
        path = self.path(name)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write or replace a file, atomically; in a finished run, its line of the manifest too."""
        path = self.path(name)
        with writing(path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
        if self.finished:
            self.record(name)
        return path

    def write_text(self, name: str, text: str) -> Path:
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, content: Any) -> Path:
        return self.write_bytes(name, json_bytes(content))

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl; it holds no wall-clock times, so that a resumed run has the same bytes."""
        append_line(self.path("metrics.jsonl"), json.dumps(row))

    def truncate_metrics(self, rows: int) -> None:
        """Keep the first ``rows`` of metrics.jsonl; raise CorruptError if there are fewer."""
        lines = self._metric_lines()
        if len(lines) < rows:
            raise CorruptError(f"{self.path('metrics.jsonl')}: {len(lines)} rows, at least {rows} expected")
        write_bytes(self.path("metrics.jsonl"), b"".join(lines[:rows]))

    # --- reading ------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line torn by a kill is left out."""
        rows = []
        for number, line in enumerate(self._metric_lines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise CorruptError(f"{self.path('metrics.jsonl')}: line {number} is damaged") from None
        return rows

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run, in a finished one after comparing it with the manifest."""
        path = self.path(name)
        if self.finished:
            return json.loads(read_recorded(path, self._manifest(), name))
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path}: cannot be read: {error}") from None

    def _metric_lines(self) -> list[bytes]:
        path = self.path("metrics.jsonl")
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines

    def _drop_torn_line(self) -> None:
        path, whole = self.path("metrics.jsonl"), b"".join(self._metric_lines())
        if path.exists() and len(whole) != path.stat().st_size:
            write_bytes(path, whole)

    # --- checkpoints --------------------------------------------------------------------------

    def checkpoints(self, stage: str) -> Checkpoints:
        """The checkpoints of a stage; once one was saved, losing them is an error and never a fresh start."""
        return Checkpoints(
            self._stage_folder(stage),
            self.run_id,
            warn=self._warn,
            expected=stage in self._record["checkpointed"],
            begun=lambda: self._mark(stage),
        )

    def has_checkpoints(self, stage: str) -> bool:
        """Whether the stage was begun and not finished."""
        return stage in self._record["checkpointed"] or self._stage_folder(stage).exists()

    def drop_checkpoints(self, stage: str) -> None:
        """Forget the checkpoints of a stage whose result is stored."""
        self._mark(stage, False)
        place, temporary = self._stage_folder(stage), temporary_in(self.root / "checkpoints")
        if place.exists():
            with writing(place, 0, "its checkpoints could not be removed"):
                os.rename(place, temporary)  # first, so that one half removed is never taken for a damaged one
        discard(temporary)

    def _stage_folder(self, stage: str) -> Path:
        name = stage
        if not re.fullmatch(NAME, stage):
            readable = re.sub("[^a-z0-9]+", "-", stage.lower()).strip("-")[:40]
            name = f"{readable or 'stage'}-{hashlib.sha256(stage.encode()).hexdigest()[:8]}"
        return self.root / "checkpoints" / name

    def _mark(self, stage: str, begun: bool = True) -> None:
        """Record whether a stage has checkpoints; workers of this run may do so at the same time."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._record = {**self._record, "checkpointed": read_sealed(self.path("run.json"))["checkpointed"]}
            if begun != (stage in self._record["checkpointed"]):
                others = [name for name in self._record["checkpointed"] if name != stage]
                self._update(checkpointed=[*others, stage] if begun else others)
        finally:
            os.close(descriptor)  # which unlocks

    # --- the end ------------------------------------------------------------------------------

    def finish(self) -> None:
        """Record every file's sha256 in the manifest, then call the run finished."""
        assert self.outcome != "viewed", "only the owner of a run can finish it"
        with writing(self.root):
            planning = self.root / "planning"
            if planning.is_dir() and not any(planning.iterdir()):
                planning.rmdir()  # most algorithms have nothing to remember
            files = record_files(self.root, lambda name: name.split("/")[0] in UNLISTED)
        write_sealed(self.path("manifest.json"), {"run_id": self.run_id, "files": files})
        self._update(status="finished")

    def abandon(self) -> None:
        """Remove a run that began just now and did nothing, so that it is in nobody's way."""
        if self.outcome == "new":
            temporary = temporary_in(self.root.parent)
            with writing(self.root, 0, "it could not be removed"):
                os.rename(self.root, temporary)  # first, so that one half removed is never taken for a damaged one
            discard(temporary)

    def record(self, *names: str) -> None:
        """Take files that were made again after the end into the manifest."""
        files = self._manifest()
        for name in names:
            with writing(self.path(name)):
                files |= {name: record_file(self.path(name))}
        write_sealed(self.path("manifest.json"), {"run_id": self.run_id, "files": files})

    def verify(self) -> int:
        """Compare each file of a finished run with the manifest, return how many; CorruptError lists what differs."""
        if not self.finished:
            raise CorruptError(f"{self.root}: not finished, so it has no manifest to verify; resume it")
        files = self._manifest()
        problems = differences(self.root, files)
        if problems:
            raise CorruptError(f"{self.root}: {len(problems)} of {len(files)} files do not verify{listed(problems)}")
        return len(files)

    def _manifest(self) -> Files:
        manifest = read_sealed(self.path("manifest.json"))
        if manifest["run_id"] != self.run_id:
            raise CorruptError(f"{self.path('manifest.json')}: of run '{manifest['run_id']}', not of '{self.run_id}'")
        return manifest["files"]

    def _update(self, **changes: Any) -> None:
        record = {key: value for key, value in self._record.items() if key not in ("schema_version", "kdzoo")}
        write_sealed(self.path("run.json"), record | changes)
        self._record |= changes

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self._tell(text)


def _latest(parent: Path, seed: int) -> tuple[Path, dict[str, Any]] | None:
    """The run of a seed that was begun last, by its recorded number; raise CorruptError if one cannot be told."""
    latest = None
    for root in _runs(parent):
        try:
            record = read_sealed(root / "run.json")
        except CorruptError as error:
            if root.name.endswith(f"-seed{seed}"):
                raise CorruptError(f"{error}; mend or remove the folder, or start a new run with --new") from None
            continue
        if record["seed"] == seed and (latest is None or record["sequence"] > latest[1]["sequence"]):
            latest = root, record
    return latest


def _sequences(parent: Path) -> Iterator[int]:
    """Every number in use, also those of damaged runs."""
    for root in _runs(parent):
        yield int(root.name.partition("-")[0])
        with contextlib.suppress(CorruptError):  # its name counts, and starting afresh must stay possible
            yield read_sealed(root / "run.json")["sequence"]


def _runs(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if RUN_ID.fullmatch(path.name) and path.is_dir())


def _same_recipe(root: Path, record: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    if record["recipe_hash"] == recipe["recipe_hash"]:
        return
    differing = diff_fields(record["recipe"], recipe["recipe"]) or ["no field, but kdzoo's format of recipes"]
    raise ResumeError(
        f"{root}: begun with another recipe, so it cannot be resumed{listed(differing)}\n"
        "undo the change, or start a new run with --new"
    )


def diff_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line a field that differs, e.g. ``train.optimizer.lr 0.1 -> 0.2``."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    for empty, other in ((before, after), (after, before)):  # where one side has nothing, the other's leaves say it all
        for path in [
            path for path, value in empty.items() if not value and any(p.startswith(f"{path}.") for p in other)
        ]:
            del empty[path]
    return [
        f"{plain(path, 200)} {_side(before, path)} -> {_side(after, path)}"
        for path in dict.fromkeys([*before, *after])
        if path not in before or path not in after or before[path] != after[path]
    ]


def _side(leaves: Mapping[str, Any], path: str) -> str:
    return shown(leaves[path]) if path in leaves else "(absent)"


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    pairs = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    if not pairs:
        yield path, data
    for key, value in pairs:
        yield from _leaves(value, f"{path}.{key}".lstrip("."))
