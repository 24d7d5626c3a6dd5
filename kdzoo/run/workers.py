"""Processes that work side by side on independent tasks of one run, and stop together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from kdzoo.contract.failure import Failure
from kdzoo.errors import DistributedError

#: Seconds between two looks at whether to stop.
POLL_S = 0.1

Stop = Callable[[], int]  # a signal's number once asked to stop, else 0


class Workers:
    """Up to ``jobs`` processes. Each calls ``begin(*arguments, stop)`` once, and what that returns with every task.

    ``begin``, its arguments, the tasks and their results have to be picklable. A worker stops when it is asked to, or
    when this process is gone.
    """

    def __init__(self, jobs: int, begin: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
        self._order = context.Event()
        self._pool = ProcessPoolExecutor(jobs, context, _enter, (self._order, os.getpid(), begin, arguments))

    def run(self, tasks: Sequence[Any], stop: Stop) -> list[Any] | None:
        """Return each task's result, or None when ``stop`` asked to stop and the workers have stopped.

        The first failure stops all and is raised; DistributedError where a process died.
        """
        futures = [self._pool.submit(_work, task) for task in tasks]
        pending: set[Future[Any]] = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=POLL_S)
            if stop() or any(_failed(future) for future in finished):
                self._order.set()
                for future in pending:
                    future.cancel()
        failures = [failure for future in futures if not future.cancelled() and (failure := _failed(future))]
        if failures:
            real = [failure for failure in failures if failure.kind != "Interrupted"]
            if real:
                raise real[0].raised()
            return None
        return None if any(future.cancelled() for future in futures) else [future.result() for future in futures]

    def close(self) -> None:
        self._order.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _failed(future: Future[Any]) -> Failure | None:
    if future.cancelled():
        return None
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        text = "a worker process died, or was killed (out of memory?); what was saved stays, the same command goes on"
        return Failure(DistributedError.__name__, text, "")
    if error is not None:
        return Failure.of(error)
    result = future.result()
    return result if isinstance(result, Failure) else None


# --- in a worker ------------------------------------------------------------------------------

_begun: dict[str, Any] = {}


def _enter(order: Any, parent: int, begin: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; it is the parent who decides
        signal.signal(number, signal.SIG_IGN)
    _begun.update(begin=begin, arguments=arguments, stop=lambda: _asked_to_stop(order, parent))
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _asked_to_stop(order: Any, parent: int) -> int:
    return signal.SIGTERM if order.is_set() or os.getppid() != parent else 0


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone: nothing else would wake it while it waits for a task."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    with _busy:  # the task in hand notices by itself, and saves
        os._exit(1)


_busy = threading.Lock()


def _work(task: Any) -> Any:
    with _busy:
        try:
            if "work" not in _begun:
                _begun["work"] = _begun["begin"](*_begun["arguments"], _begun["stop"])
            return _begun["work"](task)
        except Exception as error:  # whatever it is, it goes to the process that asked
            return Failure.of(error)
