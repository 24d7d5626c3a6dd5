"""What runs in a worker process: it receives functions, calls them one after another, and says how each ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from kdzoo.contract.failure import Failure

#: Seconds between two looks at whether the process that asked is gone, and between two words about progress.
POLL_S, TELL_S = 0.2, 0.2
#: What the order to stop is written as.
STOP = b"s"
#: The code that a worker process runs; its arguments are sys.path as JSON and the numbers of its two descriptors.
CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kdzoo.processes.worker import main; main(*map(int, sys.argv[2:]))"
)


class Link:
    """The worker as its task sees it; see ``kdzoo.contract.execution.Worker``."""

    def __init__(self, connection: Connection, orders: int) -> None:
        self._connection, self._parent = connection, os.getppid()
        self._asked, self._told_at = threading.Event(), 0.0
        threading.Thread(target=self._listen, args=(orders,), daemon=True).start()

    def _listen(self, orders: int) -> None:
        os.read(orders, 1)  # the order, or nothing once the process that asked is gone
        self._asked.set()

    def stop(self) -> int:
        return signal.SIGTERM if self._asked.is_set() or os.getppid() != self._parent else 0

    def tell(self, said: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            with contextlib.suppress(OSError):  # nobody listens any more; ``stop`` says so too
                self._connection.send(("told", dict(said)))


def main(descriptor: int, orders: int) -> None:
    """Call what comes over a connection until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; it is the parent who decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    connection = Connection(descriptor)
    link = Link(connection, orders)
    while True:
        answer: tuple[str, Any]
        try:
            function, arguments = connection.recv()
        except (EOFError, ConnectionError):
            break
        except Exception as error:  # a module that cannot be imported
            answer = "failed", Failure.of(error)
        else:
            answer = _called(function, link, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            connection.send(answer)
        except OSError:
            break
        except Exception as error:  # an answer that cannot travel
            connection.send(("failed", Failure.of(error)))
    os._exit(0)  # whatever a library waits for at exit, nobody waits for it


def _called(function: Callable[..., Any], link: Link, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "done", function(link, *arguments)
    except BaseException as error:  # SystemExit of a plugin included: it goes to the process that asked
        return "failed", Failure.of(error)
