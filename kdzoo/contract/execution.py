"""Where the tasks of a study run: an executor takes functions and calls them in workers.

A task is a function at a module's top level with its arguments. It gets a ``Worker`` first, through which it asks
whether to stop and says how far it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class Resources:
    """What a task takes of the machine that it runs on."""

    threads: int = 1
    gpus: int = 0


class Worker(Protocol):
    """What a task may ask of the process that it runs in."""

    def stop(self) -> int:
        """Return the number of a signal once the task should save and end, else 0."""

    def tell(self, said: Mapping[str, Any]) -> None:
        """Say how far the task is, in plain values. It is cheap, and what is said may be dropped."""


class Pending(ABC):
    """A submitted task. ``name`` is the one it was submitted under."""

    name: str

    @abstractmethod
    def done(self) -> bool:
        """Whether it has ended, in whichever way; returns at once."""

    @abstractmethod
    def result(self) -> Any:
        """Wait for the end and return what the function returned.

        Raises what the function raised: a KdzooError as its own class, anything else as it can travel. Raises LostError
        where the worker's process or machine is gone.
        """

    @abstractmethod
    def told(self) -> Mapping[str, Any]:
        """Return what the task said last of its progress; empty before it said anything."""

    @abstractmethod
    def log(self) -> str:
        """Return the last lines of the task's output, as far as they are known."""


class Executor(ABC):
    """Calls functions in workers: processes of this machine, or of others.

    ``address`` is what follows ``name://`` on the command line, or empty; ``workers`` is how many tasks to run at once,
    None: as many as there is room for; ``folder`` is for logs and other files of the executor, and may not exist yet.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    #: Whether the workers see the files of this machine under the same paths.
    shares_files: ClassVar[bool]

    def __init__(self, address: str, workers: int | None, folder: Path) -> None:
        self.address, self.asked_workers, self.folder = address, workers, folder

    @abstractmethod
    def open(self) -> None:
        """Connect, or start what is needed; raise ExecutorError if the library or the cluster is not there."""

    def put(self, content: bytes) -> Any:
        """Return a reference that arrives at a function as these bytes, for what several tasks share."""
        return content

    @abstractmethod
    def submit(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], resources: Resources
    ) -> Pending:
        """Have ``function(worker, *arguments)`` called in a worker; the function is at a module's top level.

        A reference that ``put`` returned is an argument by itself, not inside of one.
        """

    @abstractmethod
    def workers(self) -> int:
        """How many tasks of one thread run at once. So many are kept submitted, and a few more."""

    @abstractmethod
    def ask_to_stop(self) -> None:
        """Let ``stop()`` of every running task's worker return a signal's number from now on."""

    @abstractmethod
    def close(self) -> None:
        """End all workers and free what ``open`` took; may be called twice, and without ``open``."""
