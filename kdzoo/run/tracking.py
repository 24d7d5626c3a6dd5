"""The trackers of a run. One that fails is dropped with a warning: a diary is no reason to lose the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdzoo.contract.extension_points import RunState, TrackedRun, Tracker
from kdzoo.errors import plain
from kdzoo.plan.resolve import ResolvedTracker


class Trackers:
    """Passes on what a run logs to each tracker, until that tracker raises; ``warn`` gets a line for each that did."""

    def __init__(self, chosen: Sequence[ResolvedTracker], warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._live: list[Tracker] = []
        for each in chosen:
            self._attempt(each.cls.name, lambda each=each: self._make(each))  # type: ignore[misc]

    def _make(self, chosen: ResolvedTracker) -> None:
        tracker = chosen.cls()
        tracker.options = chosen.options
        self._live.append(tracker)

    def start(self, run: TrackedRun) -> None:
        def start(tracker: Tracker) -> None:
            tracker.run = run
            tracker.start(run.folder)

        self._each(start)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(stage, step, values))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def finish(self, state: RunState, results: Mapping[str, Any]) -> None:
        """Say how the run ended."""
        self._each(lambda tracker: tracker.finish(state, results))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        self._live = [tracker for tracker in self._live if self._attempt(tracker.name, lambda: call(tracker))]  # noqa: B023

    def _attempt(self, name: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except (Exception, SystemExit) as error:
            cause = plain(" ".join(str(error).split()), 200) or "no reason given"
            self._warn(f"tracker '{name}' failed and was dropped: {type(error).__name__}: {cause}")
            return False
        return True
