"""An executor that calls each task at once, in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdzoo.contract.execution import Executor, Pending, Resources


class Done(Pending):
    """A task that has ended."""

    def __init__(self, name: str, answer: Any, error: Exception | None) -> None:
        self.name, self._answer, self._error = name, answer, error

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._answer

    def told(self) -> Mapping[str, Any]:
        return {}

    def log(self) -> str:
        return "" if self._error is None else "".join(traceback.format_exception(self._error))


class Inline(Executor):
    """``before`` may raise in the place of a task, ``stops`` says after how many tasks those that follow stop."""

    name = "inline"
    shares_files = True

    def __init__(self, before: Callable[[str], None] = lambda name: None, stops: int | None = None) -> None:
        super().__init__("", 1, Path())
        self.before, self.stops = before, stops
        self.names: list[str] = []
        self.sent = 0  # bytes that were put for several tasks

    def open(self) -> None: ...
    def ask_to_stop(self) -> None: ...
    def close(self) -> None: ...

    def workers(self) -> int:
        return 1

    def put(self, content: bytes) -> Any:
        self.sent += len(content)
        return content

    def submit(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], resources: Resources
    ) -> Pending:
        self.names.append(name)
        worker = _Worker(self.stops is not None and len(self.names) > self.stops)
        try:
            self.before(name)
            return Done(name, function(worker, *arguments), None)
        except Exception as error:
            return Done(name, None, error)


class Apart(Inline):
    """The same without shared files."""

    shares_files = False


class _Worker:
    def __init__(self, stops: bool) -> None:
        self._stops, self._asked = stops, 0

    def stop(self) -> int:
        self._asked += self._stops
        return 15 if self._asked > 3 else 0  # after a few steps, so that there is something to save

    def tell(self, said: Mapping[str, Any]) -> None: ...
