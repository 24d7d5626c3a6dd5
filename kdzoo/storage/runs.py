"""The runs of one recipe, ``<out>/<recipe's name>/<number>-seed<seed>/``: their records, order and numbers."""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdzoo.errors import CorruptError, ReportError, plain
from kdzoo.storage.atomic import rename_new, write_text, writing
from kdzoo.storage.lock import Lock
from kdzoo.storage.owner import discarded, temporary_in
from kdzoo.storage.sealed import read_sealed, write_sealed
from kdzoo.storage.uses import USES
from kdzoo.types import NAME

RUN_ID = re.compile(r"(\d{4,})-seed(-?\d+)")
#: How the folders begin in which a teacher is trained that is to answer without a student.
ANSWERS = ".answers-"

Record = dict[str, Any]  # what run.json holds


def read_run_record(root: Path) -> Record:
    """Return what run.json holds; raise CorruptError if it is missing or damaged."""
    path = root / "run.json"
    record = read_sealed(
        path, run_id=str, sequence=int, seed=int, status=str, checkpointed=list, recipe_hash=str, recipe=dict
    )
    if record["status"] not in ("running", "finished"):
        raise CorruptError(f"{path}: damaged: unknown status '{plain(record['status'])}'")
    return record


class RunRecord:
    """What run.json of one run holds, and how it changes."""

    def __init__(self, root: Path, content: Record) -> None:
        self.root, self.content = root, content

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    def update(self, **changes: Any) -> None:
        """Replace some fields, in the file too."""
        written = {key: value for key, value in self.content.items() if key not in ("schema_version", "kdzoo")}
        write_sealed(self.root / "run.json", written | changes)
        self.content |= changes

    def mark(self, stage: str, begun: bool, alone: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """Record whether a stage has checkpoints; within ``alone()`` no other process of the run does so."""
        if begun and stage in self["checkpointed"]:
            return
        with alone():
            now = read_run_record(self.root)["checkpointed"]
            self.content = {**self.content, "checkpointed": now}
            if begun != (stage in now):
                others = [name for name in now if name != stage]
                self.update(checkpointed=[*others, stage] if begun else others)


def existing_run(root: Path) -> Path:
    """Return ``root`` if it is a run folder, whole or damaged; raise ReportError if it is none."""
    try:
        if not root.is_dir():
            raise ReportError(f"{plain(str(root), 200)}: no such run folder")
        if not (root / "run.json").exists() and not (root / "manifest.json").exists():
            raise ReportError(f"{root}: not a run folder: it holds no run.json")
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise ReportError(f"{plain(str(root), 200)}: no such run folder: {error.strerror}") from None
    return root


def runs_of_seed(parent: Path, seed: int) -> list[tuple[Path, Record]]:
    """The runs of a seed, the one begun last first, by their recorded numbers; CorruptError if one cannot be read."""
    found = []
    for root in _folders(parent):
        try:
            record = read_run_record(root)
        except CorruptError as error:
            if root.name.endswith(f"-seed{seed}"):
                raise CorruptError(f"{error}; mend or remove the folder, or start a new run with --new") from None
            continue
        if record["seed"] == seed:
            found.append((root, record))
    return sorted(found, key=lambda run: run[1]["sequence"], reverse=True)


def finished_run(out: Path, name: str, seed: int, recipe_hash: str) -> Path | None:
    """The newest finished run of a recipe and seed, by its record alone; None where another is to go on, or none is."""
    parent = out / name
    try:
        runs = runs_of_seed(parent, seed) if parent.is_dir() else []
    except CorruptError:  # whoever opens the run says so
        return None
    if not runs or runs[0][1]["status"] != "finished":
        return None
    return next((root for root, record in runs if record["recipe_hash"] == recipe_hash), None)


def create_run(
    parent: Path, record: Record, recipe_text: str, warn: Callable[[str], None]
) -> tuple[Path, Record, Lock] | None:
    """Make a new run's folder, whole from its first moment, and lock it; None when another process took its number.

    The number is above all in use, those of damaged runs too.
    """
    sequence = 1 + max([0, *_numbers(parent)])
    run_id = f"{sequence:04d}-seed{record['seed']}"
    record = {
        "run_id": run_id,
        "uid": uuid.uuid4().hex,
        "sequence": sequence,
        "status": "running",
        "checkpointed": [],
        **record,
    }
    temporary, place = temporary_in(parent), parent / run_id
    with discarded(temporary):
        with writing(place):
            temporary.mkdir()
            (temporary / "checkpoints").mkdir()
        lock = Lock(temporary / "lock", warn)
        lock.acquire()
        with lock.released_on_error():
            write_text(temporary / "recipe.yaml", recipe_text)
            write_text(temporary / USES, "")
            write_sealed(temporary / "run.json", record)
            with writing(place):
                renamed = rename_new(temporary, place)
    if not renamed:
        lock.release()
        return None
    lock.path = place / "lock"
    return place, record, lock


def stage_folder(root: Path, stage: str) -> Path:
    """Where the checkpoints of a stage are; a stage may have any name, and a folder not."""
    name = stage
    if not re.fullmatch(NAME, stage):
        readable = re.sub("[^a-z0-9]+", "-", stage.lower()).strip("-")[:40]
        name = f"{readable or 'stage'}-{hashlib.sha256(stage.encode()).hexdigest()[:8]}"
    return root / "checkpoints" / name


def run_folders(out: Path) -> list[Path]:
    """Every run below ``out``, by recipe and number; last those that train a teacher which is to answer."""
    return [root for above in ("*", f"{ANSWERS}*/*") for parent in sorted(out.glob(above)) for root in runs_of(parent)]


def runs_of(parent: Path) -> list[Path]:
    """The runs of one recipe, in ``parent``, by number."""
    return [] if parent.name.startswith(".") else sorted(_folders(parent), key=_number)


def runs_in(place: Path) -> list[Path]:
    """A run folder itself, the runs of a recipe's folder, or all below an ``--out``."""
    return [place] if RUN_ID.fullmatch(place.name) else runs_of(place) or run_folders(place)


def _number(root: Path) -> int:
    return int(root.name.partition("-")[0])


def _numbers(parent: Path) -> Iterator[int]:
    for root in _folders(parent):
        yield _number(root)
        with contextlib.suppress(CorruptError):  # its name counts, and starting afresh must stay possible
            yield read_run_record(root)["sequence"]


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if RUN_ID.fullmatch(path.name) and path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CorruptError(f"{parent}: cannot be read: {error.strerror}") from None
