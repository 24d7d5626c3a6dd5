"""Starts the processes of a run on this machine, as torchrun would, and ends with all of them.

Nothing here imports torch: this process only waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kdzoo.errors import DistributedError, NeedsError

if TYPE_CHECKING:
    from kdzoo.recipe.sections import Recipe

#: Seconds between two looks at the processes.
POLL_S = 0.05
#: Seconds in which the others end by themselves once one has failed, and then after SIGTERM.
GRACE_S, MERCY_S = 5.0, 30.0
#: Lines of its output that are kept of a process that does not speak.
KEPT_LINES = 200
#: Variable that gives a process the number of the one that started it.
LAUNCHER = "KDZOO_LAUNCHER"


def check_processes(recipe: Recipe, processes: int) -> None:
    """Raise NeedsError where a recipe cannot be run by so many processes."""
    if processes == 1:
        return
    if recipe.jobs > 1:
        raise NeedsError(
            f"jobs: {recipe.jobs} workers cannot be combined with the {processes} processes of a distributed run; set "
            "jobs: 1"
        )
    if recipe.data.batch_size % processes:
        raise NeedsError(
            f"data.batch_size: {recipe.data.batch_size} samples cannot be shared evenly by {processes} processes"
        )


def check_not_started() -> None:
    """Raise NeedsError in a process that torchrun started."""
    if "WORLD_SIZE" in os.environ:
        raise NeedsError(
            f"--processes: this is one of {os.environ['WORLD_SIZE']} processes that torchrun started (WORLD_SIZE is "
            "set); leave out --processes, or torchrun"
        )


def orphaned() -> bool:
    """Whether the process that started this one is gone, so that nobody would forward a signal."""
    launcher = os.environ.get(LAUNCHER)
    return launcher is not None and os.getppid() != int(launcher)


def run_processes(command: Sequence[str], count: int, show: Callable[[str], None]) -> int:
    """Run a command in ``count`` processes, forward SIGINT and SIGTERM to all, and return the exit code of the run.

    Only the first process is heard. Where another one fails first, ``show`` gets what it said last. One that fails
    ends all; the exit code is its own, or 128 plus the signal that ended it.
    """
    with _signals() as received:
        children: list[_Child] = []
        try:
            port = _free_port()
            for rank in range(count):
                children.append(_Child(command, rank, count, port))
            _wait(children, received)
        finally:
            for child in children:
                child.end()
    failed = [child for child in children if child.code]
    if not failed:
        return 0
    # The others of a run that lost one say so by a code of its own.
    own = [child for child in failed if child.code != DistributedError.exit_code and not child.was_asked]
    first = min(own or failed, key=lambda child: child.ended_at)
    heard = not children[0].was_asked and first.code == children[0].code  # the same error, made by all
    if first.rank and not heard:
        show(f"process {first.rank}: {first.last_words()}")
    return first.code


def _wait(children: Sequence[_Child], received: list[int]) -> None:
    """Return when all have ended; once one has failed the others are asked to, and then made to."""
    failed_at: float | None = None
    while [child for child in children if child.alive()]:  # looks at all, so that none that has ended goes unseen
        while received:
            number = received.pop(0)
            for child in children:
                child.signal(number)
        now = time.monotonic()
        if failed_at is None and any(child.code for child in children):
            failed_at = now
        for child in children:
            if failed_at is not None and now - failed_at > GRACE_S:
                child.ask()
            if failed_at is not None and now - failed_at > GRACE_S + MERCY_S:
                child.end()
        time.sleep(POLL_S)


class _Child:
    """One process of the run, in a session of its own, so that a terminal's Ctrl-C reaches it once."""

    def __init__(self, command: Sequence[str], rank: int, count: int, port: int) -> None:
        self.rank = rank
        self.code = 0  # once it has ended
        self.ended_at = 0.0
        self.was_asked = False
        self._said: deque[str] = deque(maxlen=KEPT_LINES)
        environment = _environment(count, port) | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        quiet: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if rank else {}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **quiet
        )
        self._listener: threading.Thread | None = None
        if rank:
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None, "it has a pipe"
        with self._process.stdout as lines:
            for line in lines:
                self._said.append(line.decode(errors="replace").rstrip("\n"))

    def alive(self) -> bool:
        """Whether it still runs; notes when and how it ended."""
        if self.ended_at:
            return False
        code = self._process.poll()
        if code is None:
            return True
        self.code, self.ended_at = code if code >= 0 else 128 - code, time.monotonic()
        return False

    def signal(self, number: int) -> None:
        if self.alive():
            self._process.send_signal(number)

    def ask(self) -> None:
        """Ask it once to save and stop."""
        if not self.was_asked and self.alive():
            self.was_asked = True
            self.signal(signal.SIGTERM)

    def end(self) -> None:
        """End it now, if it still runs."""
        if self.alive():
            self.was_asked = True
            self._process.kill()
            self._process.wait()
            self.alive()

    def last_words(self) -> str:
        """What it said, or the signal that ended it in silence."""
        if self._listener is not None:
            self._listener.join(1.0)
        if self._said:
            return "\n".join(self._said)
        by = self.code - 128
        named = signal.Signals(by).name if by in {each.value for each in signal.Signals} else f"exit code {self.code}"
        return f"ended by {named} without a word; state up to the last checkpoint is saved, the same command goes on"


def _environment(count: int, port: int) -> dict[str, str]:
    """The environment in which torch.distributed finds the processes of this machine, over its loopback."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // count))}  # torch's default is all cores for each
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        environment["GLOO_SOCKET_IFNAME"] = loopback[0]
    return (
        environment
        | os.environ
        | {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            LAUNCHER: str(os.getpid()),
        }
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of acting on them."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
