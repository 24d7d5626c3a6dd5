"""An exception as it travels between processes, where not every class can."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import kdzoo.errors
from kdzoo.errors import Interrupted, KdzooError


@dataclass(frozen=True)
class Failure:
    """What a function raised in another process; plain values only."""

    kind: str
    text: str
    traceback: str
    exit_code: int = 1

    @staticmethod
    def of(error: BaseException) -> Failure:
        code = getattr(error, "exit_code", 1)
        return Failure(type(error).__name__, str(error), "".join(traceback.format_exception(error)), code)

    def raised(self) -> Exception:
        """Return the exception to raise here: a KdzooError as its own class, anything else as a RuntimeError."""
        cls = getattr(kdzoo.errors, self.kind, None)
        if cls is Interrupted:
            return Interrupted(self.text, self.exit_code)
        if isinstance(cls, type) and issubclass(cls, KdzooError):
            return cls(self.text)
        return RuntimeError(f"a worker process failed:\n{self.traceback}")
