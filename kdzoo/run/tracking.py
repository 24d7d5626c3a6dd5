"""The trackers of a run. One that fails is dropped with a warning: a diary is no reason to lose the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdzoo.contract.extension_points import Tracker
from kdzoo.errors import plain


class Trackers:
    """Passes on what a run logs to each tracker, until that tracker raises; ``warn`` gets a line for each that did."""

    def __init__(self, classes: Sequence[type[Tracker]], warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._live: list[Tracker] = []
        for cls in classes:
            self._attempt(cls.name, lambda cls=cls: self._live.append(cls()))  # type: ignore[misc]

    def start(self, folder: Path) -> None:
        self._each(lambda tracker: tracker.start(folder))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(stage, step, values))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

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
