"""Every run below a folder with its state, found without loading or locking anything, whatever is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdzoo.errors import CorruptError
from kdzoo.storage.lock import owner_of
from kdzoo.storage.metric_log import MetricLog
from kdzoo.storage.room import room_of
from kdzoo.storage.runs import RUN_ID, Record, read_run_record, run_folders

#: running: by a live process of this machine. elsewhere: begun on another host or in another container, so that nobody
#: here can tell whether it still runs. stopped: nobody goes on with it.
State = Literal["finished", "running", "elsewhere", "stopped", "damaged"]


@dataclass(frozen=True)
class ListedRun:
    """One run. ``record`` is what its run.json holds, empty where that is damaged; ``problem`` says what is damaged."""

    folder: Path
    state: State
    record: Record
    size_bytes: int
    changed: float  # when a file of it was written last, seconds since 1970
    problem: str = ""
    owner: str = ""  # the process that runs it
    last_row: dict[str, Any] | None = None  # of the log of an unfinished run

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return str(self.record.get("name") or self.folder.parent.name)

    @property
    def seed(self) -> int | None:
        match = RUN_ID.fullmatch(self.folder.name)
        return self.record.get("seed", int(match[2]) if match else None)


def list_runs(out: Path) -> list[ListedRun]:
    """Every run below ``out``, by recipe and number; a damaged one too. One that vanishes meanwhile is left out."""
    return [run for folder in run_folders(out) if (run := look_at(folder)) is not None]


def look_at(folder: Path) -> ListedRun | None:
    """What can be said of one run without changing it; None where it is gone."""
    record: Record = {}
    owner, row, problem = "", None, ""
    state: State = "damaged"
    try:
        record = read_run_record(folder)
        if record["status"] == "finished":
            state = "finished"
            if not (folder / "manifest.json").exists():
                raise CorruptError(f"{folder / 'manifest.json'}: missing")
        else:
            owner, fate = owner_of(folder / "lock")
            state = {"alive": "running", "dead": "stopped"}.get(fate, "elsewhere")  # type: ignore[assignment]
            row = MetricLog(folder / "metrics.jsonl").last_row()
    except CorruptError as error:
        state, problem = "damaged", str(error)
    room = room_of(folder)
    if not folder.is_dir():
        return None
    return ListedRun(folder, state, record, room.size_bytes, room.changed, problem, owner, row)
