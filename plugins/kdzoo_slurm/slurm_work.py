"""What runs in a job: the task, its progress in a file, and signals that ask it to save and end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from kdzoo.api.execution import Failure

#: Seconds between two times that a task writes how far it is.
TELL_S = 1.0

#: What Slurm sends before it ends a job: on scancel and to make room, and what submitit asks for before the time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class SlurmWorker:
    """What a task may ask of its job. Progress goes through ``progress``, a file that the driver reads."""

    def __init__(self, progress: Path) -> None:
        self._progress, self._number, self._told_at = progress, 0, 0.0
        self._write({})  # the job has begun

    def stop(self) -> int:
        return self._number

    def tell(self, said: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            self._write(said)

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """The handler of signals: remember that one came."""
        self._number = int(signal.SIGTERM)

    def _write(self, said: Mapping[str, Any]) -> None:
        temporary = self._progress.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(dict(said), default=str))
            os.replace(temporary, self._progress)
        except OSError:  # progress may be dropped; a full disk stops the task where it saves
            return


def call(progress: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """In a job: return what ``function(worker, *arguments)`` returns, or a Failure."""
    worker = SlurmWorker(Path(progress))
    handlers = {number: signal.signal(number, worker.note) for number in SIGNALS}
    try:
        return function(worker, *arguments)
    except BaseException as error:  # SystemExit of a plugin included: it goes to the process that asked
        return Failure.of(error)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
