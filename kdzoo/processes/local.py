"""The executor that needs nothing else: processes of this machine, each calling one function at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from kdzoo.contract.execution import Executor, Pending, Resources
from kdzoo.contract.failure import Failure
from kdzoo.errors import ExecutorError, Interrupted, LostError, shown
from kdzoo.processes.worker import CODE, POLL_S, STOP

#: Bytes of a task's output that are kept, from its end.
KEPT_BYTES = 16_384
#: Seconds that a worker has to save and end once the executor closes.
GRACE_S = 30.0


class LocalExecutor(Executor):
    """Worker processes, started when they are needed; one that dies takes its own task with it and no other.

    Without ``workers`` as many tasks run at once as their threads fit the cores, and one that needs a GPU; with it, so
    many whatever they need.
    """

    name = "local"
    description = "processes of this machine; the default"
    shares_files = True

    def __init__(self, address: str, workers: int | None, folder: Path) -> None:
        super().__init__(address, workers, folder)
        self._processes: list[_Process] = []
        self._queue: deque[Call] = deque()
        self._changed = threading.Condition()
        self._stopping = self._closed = False
        self._wake, self._woken = Pipe()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        if self.address:
            raise ExecutorError(f"local: takes no address, got {shown(self.address)}; write --on local")
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="local executor", daemon=True)
            self._thread.start()

    def workers(self) -> int:
        return self.asked_workers or cores()

    def submit(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], resources: Resources) -> Call:
        call = Call(name, (function, arguments), resources, self._changed)
        with self._changed:
            self._queue.append(call)
        self._wake.send_bytes(b"")
        return call

    def ask_to_stop(self) -> None:
        with self._changed:
            self._stopping = True
            for process in self._processes:
                process.order_to_stop()
        self._wake.send_bytes(b"")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.ask_to_stop()
        if self._thread is not None:
            self._thread.join()
        for process in self._processes:
            process.end()
        self._wake.close()
        self._woken.close()

    # --- the thread that hands out tasks --------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._hand_out()
                busy = [process for process in self._processes if process.call is not None]
            if self._closed and not busy:
                return
            ready = wait([self._woken, *(process.connection for process in busy)], POLL_S)
            while self._woken.poll():
                self._woken.recv_bytes()
            with self._changed:
                for process in busy:
                    process.listen(process.connection in ready)
                self._processes = [process for process in self._processes if process.alive]
                self._changed.notify_all()

    def _hand_out(self) -> None:
        while self._queue and (self._stopping or self._fits(self._queue[0].resources)):
            call = self._queue.popleft()
            if self._stopping:
                call.end(Failure.of(Interrupted(f"task '{call.name}': stopped before it began", 128 + signal.SIGTERM)))
                self._changed.notify_all()
                continue
            idle = next((process for process in self._processes if process.call is None), None)
            if idle is None:
                try:
                    idle = _Process()
                except OSError as error:
                    call.end(Failure.of(ExecutorError(f"local: no process can be started: {error.strerror}")))
                    continue
                self._processes.append(idle)
            idle.begin(call)

    def _fits(self, wanted: Resources) -> bool:
        taken = [process.call.resources for process in self._processes if process.call is not None]
        if self.asked_workers is not None:
            return len(taken) < self.asked_workers
        if wanted.gpus and any(each.gpus for each in taken):
            return False
        return not taken or sum(each.threads for each in taken) + wanted.threads <= cores()


class Call(Pending):
    """A task of the local executor."""

    def __init__(self, name: str, content: Any, resources: Resources, changed: threading.Condition) -> None:
        self.name, self.content, self.resources = name, content, resources
        self._changed = changed
        self._answer: tuple[Any, ...] = ()  # the answer, once there is one
        self._said: Mapping[str, Any] = {}
        self._process: _Process | None = None
        self._log = ""

    def done(self) -> bool:
        return bool(self._answer)

    def result(self) -> Any:
        with self._changed:
            while not self._answer:
                self._changed.wait()
        (answer,) = self._answer
        if isinstance(answer, Failure):
            raise answer.raised()
        return answer

    def told(self) -> Mapping[str, Any]:
        return self._said

    def log(self) -> str:
        return self._log if self._process is None else self._process.output()

    # --- for the executor -----------------------------------------------------------------------

    def begin(self, process: _Process) -> None:
        self._process = process

    def say(self, said: Mapping[str, Any]) -> None:
        self._said = said

    def end(self, answer: Any) -> None:
        self._log, self._process = self.log(), None
        self._answer = (answer,)


class _Process:
    """One worker process: its connection, the order to stop, and its output, a file without a name."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        orders, self._orders = os.pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 it is open as long as the process is used
        self._begins_at = 0
        self.call: Call | None = None
        self.alive = True
        arguments = [json.dumps(sys.path), str(theirs.fileno()), str(orders)]
        try:
            with _signals_held():
                self._process = subprocess.Popen(
                    [sys.executable, "-c", CODE, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(), orders),
                )
        finally:
            theirs.close()
            os.close(orders)

    def begin(self, call: Call) -> None:
        self.call = call
        self._begins_at = os.fstat(self._output.fileno()).st_size
        call.begin(self)
        try:
            self.connection.send(call.content)
        except OSError:  # it died while it was idle
            self._lose()
        except Exception as error:  # what cannot travel
            self._finish(Failure.of(error))

    def listen(self, ready: bool) -> None:
        """Take what the process says, and notice if it is gone."""
        try:
            while self.call is not None and self.connection.poll():
                kind, content = self.connection.recv()
                if kind == "told":
                    self.call.say(content)
                else:
                    self._finish(content)
        except (EOFError, OSError):
            self._lose()
            return
        except Exception as error:  # an answer of a class that is not known here
            self._finish(Failure.of(error))
        if self.call is not None and not ready and self._process.poll() is not None:
            self._lose()

    def order_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._orders, STOP)

    def output(self) -> str:
        """Return the last lines that the task in hand wrote."""
        size = os.fstat(self._output.fileno()).st_size
        start = max(self._begins_at, size - KEPT_BYTES)
        return os.pread(self._output.fileno(), size - start, start).decode(errors="replace")

    def end(self) -> None:
        """Let the process end, and make it."""
        self.connection.close()
        with contextlib.suppress(OSError):
            os.close(self._orders)
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _finish(self, answer: Any) -> None:
        assert self.call is not None
        call, self.call = self.call, None
        call.end(answer)

    def _lose(self) -> None:
        self.alive = False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.poll()
        by = (
            f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        )
        if self.call is not None:
            why = " (out of memory?)" if code == -signal.SIGKILL else ""
            text = f"task '{self.call.name}': its worker process {by}{why}; what was saved stays"
            self._finish(Failure.of(LostError(text)))
        self.end()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Start a process in which signals of the terminal wait until it has said that it ignores them."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
