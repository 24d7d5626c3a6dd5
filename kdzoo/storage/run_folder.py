"""The folder of one run, ``<out>/<recipe's name>/<run id>/``: who owns it, what may be resumed, what it holds.

``run.json`` is the run's identity and state, ``lock`` names its live owner, ``manifest.json`` (written last) holds
the sha256 of every file that the run delivers."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kdzoo.errors import CorruptError, OutputError, ResumeError, UnfinishedError
from kdzoo.storage.atomic import json_bytes, probe_writable, remove_folder, replace_files, writing
from kdzoo.storage.checkpoints import Checkpoints, Warn, warn_in_python
from kdzoo.storage.json_reading import JsonError, parse_object, read_file
from kdzoo.storage.lock import PATIENCE_S, Lock, write_lock, writing_for
from kdzoo.storage.manifest import Manifest
from kdzoo.storage.metric_log import MetricLog
from kdzoo.storage.owner import Owner, sweep
from kdzoo.storage.recipe_changes import check_same_recipe, differs_in_exports_alone
from kdzoo.storage.runs import Record, RunRecord, create_run, existing_run, read_run_record, runs_of_seed, stage_folder
from kdzoo.storage.sealed import read_recorded
from kdzoo.storage.uses import Uses

Outcome = Literal["new", "resumed", "finished", "viewed"]


class RunFolder:
    """One run on disk. Use it as a context manager, so that its lock is given up.

    ``outcome``: "new"; "resumed"; "finished" when there was nothing left to do; "viewed" when only looked at.
    ``log`` is metrics.jsonl, ``uses`` records the results of the store that the run needs. ``warnings`` holds what was
    found wrong but could be mended; ``warn`` gets it at once.
    """

    def __init__(
        self,
        root: Path,
        record: Record,
        outcome: Outcome,
        lock: Lock | None = None,
        warn: Warn = warn_in_python,
        owner: Owner | None = None,
    ) -> None:
        self.root, self.outcome, self.log = root, outcome, MetricLog(root / "metrics.jsonl")
        self.uses = Uses(root)
        self.warnings: list[str] = []
        self._record, self._lock, self._tell, self._owner = RunRecord(root, record), lock, warn, owner
        self._before: tuple[Record, bytes] | None = None  # record and recipe of a finished run that was reopened

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
        result_key: Callable[[], str] | None = None,
        training_key: Callable[[], str] | None = None,
        warn: Warn = warn_in_python,
    ) -> RunFolder:
        """Resume the latest run of this recipe and seed, or show that it is finished, or begin a new one; lock it.

        ``new`` always begins one, ``resume`` never does. ``result_key`` gives the hash of what else decides the
        results; a finished run of another one does not count as finished. A finished run of the same recipe but for
        what is exported, and of the same ``training_key``, goes on. Raise OutputError if ``out`` cannot be written,
        LockedError if a live process owns the run, ResumeError if it cannot be resumed as asked, CorruptError if it is
        damaged.
        """
        if new and resume:
            raise ResumeError("--new and --resume exclude each other")
        parent = Path(out) / name
        probe_writable(parent)
        recipe = {"recipe_hash": recipe_hash, "recipe": json.loads(json.dumps(recipe_fields))}
        while True:
            runs = [] if new else runs_of_seed(parent, seed)
            folder: RunFolder | None
            if runs and runs[0][1]["status"] == "running":
                folder = cls._resume(runs[0][0], recipe, recipe_text, warn)
            elif (finished := _finished(runs, recipe_hash, None if resume else result_key, warn)) is not None:
                folder = cls._verified(*finished, warn)
            elif (other := _exported_otherwise(runs, recipe, training_key)) is not None:
                folder = cls._resume(other, recipe, recipe_text, warn, finished=True)
            elif not resume:
                made = create_run(parent, {"name": name, "seed": seed, **recipe}, recipe_text, warn)
                folder = None if made is None else cls(made[0], made[1], "new", made[2], warn)
            else:
                if runs:
                    check_same_recipe(*runs[0], recipe)
                raise ResumeError(
                    f"nothing to resume: no run of '{name}' with seed {seed} in {out}; start one without --resume"
                )
            if folder is not None:
                return folder

    @classmethod
    def find_finished(
        cls, out: Path, *, name: str, seed: int, recipe_hash: str, result_key: Callable[[], str]
    ) -> RunFolder | None:
        """Return the newest finished run of a recipe and result key, for reading; None where there is none.

        Its files are compared with its manifest; raises as ``start``.
        """
        parent = Path(out) / name
        runs = runs_of_seed(parent, seed) if parent.is_dir() else []
        found = _finished(runs, recipe_hash, result_key, lambda text: None)
        return None if found is None else cls._verified(*found)

    @classmethod
    def _verified(cls, root: Path, record: Record, warn: Warn = warn_in_python) -> RunFolder:
        """A finished run, each file compared with its manifest."""
        folder = cls(root, record, "finished", None, warn)
        with _remedy("put the files back, or start a new run with --new"):
            folder.verify()
        return folder

    @classmethod
    def view(cls, root: Path, warn: Warn = warn_in_python, owner: Owner | None = None) -> RunFolder:
        """Look at a run without owning it; raise ReportError where no run folder is, CorruptError if it is damaged.

        With an ``owner``, which a worker process gets from the process that it works for, every write checks first
        that this process still owns the run, and raises LockedError if not.
        """
        root = existing_run(Path(root))
        return cls(root, read_run_record(root), "viewed", None, warn, owner)

    @classmethod
    def _resume(
        cls, root: Path, recipe: dict[str, Any], recipe_text: str, warn: Warn, finished: bool = False
    ) -> RunFolder | None:
        """Take an unfinished run over, or reopen a ``finished`` one; None when another process changed that."""
        probe_writable(root)
        lock = Lock(root / "lock", warn)
        lock.acquire()
        with lock.released_on_error():
            record = read_run_record(root)
            if (record["status"] == "finished") != finished:
                lock.release()
                return None
            check_same_recipe(root, record, recipe)
            if finished:
                with _remedy("put the files back, or start a new run with --new"):
                    Manifest(root, record).verify(())
            for place in (root, *(path for path in root.rglob("*") if path.is_dir())):
                sweep(place, exclusive=True)
            folder = cls(root, record, "resumed", lock, warn)
            folder._before = (dict(record), read_file(folder.path("recipe.yaml"))) if finished else None
            folder.log.drop_torn_line()
            if record["recipe_hash"] != recipe["recipe_hash"]:  # other exports were asked for
                folder._record.update(**recipe, status="running")
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
    def uid(self) -> str:
        """32 hexadecimal digits that no other run has; those of an older run come from where it lies."""
        return self._record.content.get("uid") or hashlib.sha256(bytes(self.root.resolve())).hexdigest()[:32]

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
        with self._commit(), writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write or replace a file, see ``replace``."""
        self.replace({name: data})
        return self.path(name)

    def write_text(self, name: str, text: str) -> Path:
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, content: Any) -> Path:
        return self.write_bytes(name, json_bytes(content))

    def replace(self, files: Mapping[str, bytes | None]) -> None:
        """Write files, each atomically, and remove those that are None.

        In a finished run the manifest follows, so that the run verifies even after a kill in the middle of this.
        """
        for name in files:
            self.path(name)
        if self.finished:
            with self._alone():
                self._manifest.replace(files)
        else:
            replace_files(self.root, files, self._commit)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the run, in a finished one after comparing it with the manifest."""
        path = self.path(name)
        try:
            return parse_object(read_recorded(path, self._manifest.files(), name) if self.finished else read_file(path))
        except (OSError, JsonError) as error:
            raise CorruptError(f"{path}: cannot be read: {error}") from None

    def _commit(self) -> contextlib.AbstractContextManager[None]:
        """Within this a worker may change the folder, and nobody can take the run over."""
        return contextlib.nullcontext() if self._owner is None else writing_for(self._owner, self.root, shared=True)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Within this no other process of the run changes the folder."""
        return write_lock(self.root, PATIENCE_S) if self._owner is None else writing_for(self._owner, self.root)

    # --- checkpoints --------------------------------------------------------------------------

    def checkpoints(self, stage: str) -> Checkpoints:
        """The checkpoints of a stage; once one was saved, losing them is an error and never a fresh start."""
        return Checkpoints(
            stage_folder(self.root, stage),
            self.run_id,
            warn=self._warn,
            expected=stage in self._record["checkpointed"],
            begun=lambda: self._record.mark(stage, True, self._alone),
            commit=self._commit,
        )

    def has_checkpoints(self, stage: str) -> bool:
        """Whether the stage was begun and not finished."""
        return stage in self._record["checkpointed"] or stage_folder(self.root, stage).exists()

    def drop_checkpoints(self, stage: str) -> None:
        """Forget the checkpoints of a stage whose result is stored."""
        self._record.mark(stage, False, self._alone)
        remove_folder(stage_folder(self.root, stage), self._commit)

    # --- the end ------------------------------------------------------------------------------

    def finish(self, result_key: str = "", training_key: str = "") -> None:
        """Record every file's sha256 in the manifest, then call the run finished; the keys are as for ``start``."""
        assert self.outcome != "viewed", "only the owner of a run can finish it"
        planning = self.root / "planning"
        with writing(self.root):
            if planning.is_dir() and not any(planning.iterdir()):
                planning.rmdir()  # most algorithms have nothing to remember
        self._manifest.create()
        self._record.update(status="finished", result_key=result_key, training_key=training_key)

    def abandon(self) -> None:
        """Remove a run that began just now and did nothing, or leave a finished one as it was before it went on."""
        if self.outcome == "new":
            remove_folder(self.root)
        elif self._before is not None:
            record, recipe = self._before
            self.write_bytes("recipe.yaml", recipe)
            self._record.update(**{key: record[key] for key in ("recipe", "recipe_hash", "status")})

    def verify(self, leave_out: Collection[str] = ()) -> int:
        """Compare each file of a finished run, but ``leave_out``, with the manifest; return how many were compared.

        Raise CorruptError with a line for each file that differs, UnfinishedError where there is no manifest yet.
        """
        if not self.finished:
            raise UnfinishedError(
                f"{self.root}: not finished, so it has no manifest to verify; the command that began it goes on with it"
            )
        return self._manifest.verify(leave_out)

    @property
    def _manifest(self) -> Manifest:
        return Manifest(self.root, self._record.content)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self._tell(text)


@contextlib.contextmanager
def _remedy(text: str) -> Iterator[None]:
    try:
        yield
    except CorruptError as error:
        raise CorruptError(f"{error}\n{text}") from None


def _finished(
    runs: Sequence[tuple[Path, Record]], recipe_hash: str, result_key: Callable[[], str] | None, warn: Warn
) -> tuple[Path, Record] | None:
    """The newest finished run of a recipe, and of a result key where one is given."""
    same = [run for run in runs if run[1]["status"] == "finished" and run[1]["recipe_hash"] == recipe_hash]
    if result_key is None or not same:
        return same[0] if same else None
    key = result_key()
    for root, record in same:
        if record.get("result_key") == key:
            return root, record
    warn(f"{same[0][0]} is finished, but from other code, data or library versions than now; a new run begins")
    return None


def _exported_otherwise(
    runs: Sequence[tuple[Path, Record]], recipe: Mapping[str, Any], training_key: Callable[[], str] | None
) -> Path | None:
    """The newest finished run of this recipe but for what is exported, if it would be trained the same way now."""
    same = [run for run in runs if run[1]["status"] == "finished" and differs_in_exports_alone(run[1], recipe)]
    if not same or training_key is None:
        return None
    key = training_key()
    return next((root for root, record in same if record.get("training_key") == key), None)
