"""What a user can cause, and the exit code it ends with.

Only the command line catches these; it prints the text without a traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

#: Characters that no message, name or table may hold as they are.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


class KdzooError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_code = 2


class RecipeError(KdzooError):
    """A recipe that cannot be read or does not validate; holds every problem at once."""


class UnknownName(KdzooError):
    """A name that no loaded plugin offers."""


class NeedsError(KdzooError):
    """An algorithm's declared needs that the recipe does not meet."""


class BudgetError(KdzooError):
    """A budget that no candidate for the student meets."""


class PluginError(KdzooError):
    """A plugin that is broken, or two that claim one name."""


class ModelError(KdzooError):
    """A model that cannot be built, or weights that do not fit it."""


class DeviceError(KdzooError):
    """A device or precision that this machine does not have."""


class ContractError(KdzooError):
    """An algorithm that breaks the contract it declared."""


class ReportError(KdzooError):
    """A run folder from which no report can be made."""


class UnfinishedError(ReportError):
    """A run folder of an unfinished run: nothing in it is final."""


class ResumeError(KdzooError):
    """A run that cannot be resumed as asked: changed recipe, nothing to resume."""


class VerifyError(KdzooError):
    """A published result that a re-run did not reproduce."""

    exit_code = 1


class CorruptError(KdzooError):
    """A stored file that does not match its recorded hash, or is incomplete."""

    exit_code = 3


class OutputError(KdzooError):
    """Output that cannot be written: read-only, full, or gone."""

    exit_code = 4


class LockedError(KdzooError):
    """A run folder that another live process owns."""

    exit_code = 5


class DivergedError(KdzooError):
    """A loss term or gradient that is not finite."""

    exit_code = 6


class OutOfMemory(KdzooError):
    """The device ran out of memory."""

    exit_code = 7


class DataError(KdzooError):
    """A data set that is missing, unreadable or inconsistent."""

    exit_code = 8


class ExportError(KdzooError):
    """An exported file that failed its verification."""

    exit_code = 9


class DistributedError(KdzooError):
    """Processes of one run that disagree, or one of them that failed."""

    exit_code = 10


class ExecutorError(KdzooError):
    """An executor that cannot be used: its library or cluster is not there, or its workers are of other versions."""

    exit_code = 11


class LostError(ExecutorError):
    """A task that ended with its worker: the process was killed, or its machine is gone."""


class Interrupted(KdzooError):
    """A run stopped by a signal after its state was saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        """Say how to make it again in another process, with its exit code."""
        return type(self), (str(self), self.exit_code)


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return the clause ``; did you mean 'x'?`` for the closest known name, or nothing."""
    lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean '{lower[close[0]]}'?" if close else ""


def plain(text: str, limit: int = 60) -> str:
    """Make text safe to print: at most ``limit`` characters, what is not printable escaped."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """Show a value of a recipe in an error, on one short line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{plain(value)}'"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(shown, value[:20]))
        return f"[{inner}]" if len(value) <= 20 and len(inner) <= 60 else f"a list of {len(value)}"
    return "nothing" if value is None else plain(str(value))


def in_words(error: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
