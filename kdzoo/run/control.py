"""What a run shows while it goes on, and how it is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Protocol

from kdzoo.errors import Interrupted
from kdzoo.training.engine import Progress
from kdzoo.training.parallel import Ranks

#: What every interrupted run ends with.
GO_ON = "state saved, the same command goes on from there"


class Display(Protocol):
    """What the command line shows while a run goes on."""

    def note(self, text: str) -> None: ...
    def stage(self, name: str, state: str) -> None: ...
    def progress(self, progress: Progress) -> None: ...


class Quiet:
    """A display that shows nothing."""

    def note(self, text: str) -> None: ...
    def stage(self, name: str, state: str) -> None: ...
    def progress(self, progress: Progress) -> None: ...


class Control:
    """Shows what a run does, and stops it between two steps. ``stop`` returns a signal number, or 0 to go on."""

    def __init__(self, ranks: Ranks, display: Display | None = None, stop: Callable[[], int] = lambda: 0) -> None:
        self.ranks, self.stop = ranks, stop
        self.display: Display = display or Quiet()

    def check_stop(self, where: str) -> None:
        """Raise Interrupted if a signal asks for it; all that is done so far is in the store."""
        if any(self.ranks.any(bool(self.stop()))):
            raise self.interrupted(where)

    def interrupted(self, where: str) -> Interrupted:
        # Another process may have been asked to stop, and not this one.
        return Interrupted(f"stopped {where}; {GO_ON}", 128 + (self.stop() or signal.SIGTERM))

    def announce(self, name: str, state: str) -> None:
        """Show what comes next after the last stage, unless the run is to stop here."""
        if self.ranks.world == 1:  # only the first process exports, so that no other would take part in a vote
            self.check_stop(f"before '{name}'")
        self.display.stage(name, state)
