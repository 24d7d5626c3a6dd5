"""What runs in Ray's processes: the task, and the board on which tasks say how far they are."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from kdzoo.api.execution import Failure

#: Seconds between two times that a task says how far it is, and asks whether to stop.
BEAT_S = 1.0

#: Seconds in which the board has to answer; where it does not, the task goes on, and asks again.
PATIENCE_S = 30.0

#: Lines of output that are kept of a task.
LINES = 60


class Board:
    """An actor between the driver and the tasks: progress one way, the order to stop the other way."""

    def __init__(self) -> None:
        self._number = 0
        self._news: dict[str, tuple[Mapping[str, Any], str]] = {}

    def exchange(self, key: str, said: Mapping[str, Any], log: str) -> int:
        """Take what a task says; return the number of a signal if it is to stop, else 0."""
        self._news[key] = (said, log)
        return self._number

    def news(self) -> dict[str, tuple[Mapping[str, Any], str]]:
        """Return what was said since the last time."""
        news, self._news = self._news, {}
        return news

    def ask_to_stop(self, number: int) -> None:
        self._number = number


def work(key: str, board: Any, function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Call ``function(worker, *arguments)``; return what it returned, or a Failure, and the end of its output."""
    worker = RayWorker(key, board)
    worker.exchange()
    if worker.stop():
        return Failure("Interrupted", "it was asked to stop before it began", "", 128 + worker.stop()), ""
    beat = threading.Thread(target=worker.beat, daemon=True)
    beat.start()
    with contextlib.redirect_stdout(worker.output), contextlib.redirect_stderr(worker.output):
        try:
            value = function(worker, *arguments)
        except BaseException as error:  # SystemExit of a plugin included: it goes to the process that asked
            value = Failure.of(error)
    worker.ended.set()
    beat.join()
    return value, worker.output.text()


class RayWorker:
    """What a task may ask of its process; a thread does the talking, so that a training step never waits."""

    def __init__(self, key: str, board: Any) -> None:
        self.output, self.ended = Output(sys.stdout), threading.Event()
        self._key, self._board = key, board
        self._said: dict[str, Any] = {}
        self._number = 0

    def stop(self) -> int:
        return self._number

    def tell(self, said: Mapping[str, Any]) -> None:
        self._said = dict(said)

    def exchange(self) -> None:
        import ray

        answer = self._board.exchange.remote(self._key, self._said, self.output.text())
        try:
            # While a task waits in ray.get, Ray lends its cores to another one.
            number = answer.future().result(PATIENCE_S)
        except TimeoutError:
            return
        except ray.exceptions.RayError:  # the driver is gone, and the board with it
            number = int(signal.SIGTERM)
        self._number = self._number or number

    def beat(self) -> None:
        while not self.ended.wait(BEAT_S):
            self.exchange()


class Output(io.TextIOBase):
    """Passes text on and keeps its last lines."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._lines, self._line = stream, deque[str](maxlen=LINES), ""
        self._lock = threading.Lock()  # one thread writes, another one sends what was written

    def write(self, text: str) -> int:
        self._stream.write(text)
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            self._lines.extend(lines)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def text(self) -> str:
        with self._lock:
            return "\n".join([*self._lines, self._line]).rstrip("\n")
