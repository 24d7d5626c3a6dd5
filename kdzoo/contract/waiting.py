"""Tasks that wait until there is room, for executors that would begin all of them at once."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Startable(Protocol):
    """A task that somebody else runs once it is started."""

    def start(self) -> None:
        """Hand it to whoever runs it."""

    def ended(self) -> bool:
        """Whether it has ended, in whichever way; returns at once."""


class WaitingTasks:
    """Starts tasks in their order, at most ``at_once`` at a time; None: all of them at once."""

    def __init__(self, at_once: int | None) -> None:
        self.at_once = at_once
        self.started: list[Startable] = []
        self._waiting: deque[Startable] = deque()

    def add(self, task: Startable) -> None:
        self._waiting.append(task)
        self.start()

    def start(self) -> None:
        """Start as many as there is room for; to be called from time to time."""
        self.started = [task for task in self.started if not task.ended()]
        while self._waiting and (self.at_once is None or len(self.started) < self.at_once):
            task = self._waiting.popleft()
            self.started.append(task)
            task.start()

    def drop(self) -> None:
        """Forget those that have not been started."""
        self._waiting.clear()
