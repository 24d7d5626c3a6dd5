"""Finding the installed plugins by their entry points, without importing any of them."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from importlib import metadata

import pluggy

from kdzoo.errors import PluginError, plain

GROUP = "kdzoo"
BUILT_IN = "kdzoo"  # the distribution whose names win against any other's


@dataclass(frozen=True)
class PluginInfo:
    """One installed plugin. ``status`` is found (not loaded yet), ok, broken or disabled."""

    name: str
    distribution: str
    version: str
    status: str
    cause: str = ""
    traceback: str = ""
    module: str = ""
    changed: str = ""  # what of the process it changed while it was loaded, in words; kdzoo gave that back

    def __str__(self) -> str:
        return f"plugin '{self.name}' ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Found:
    """An entry point with its owner; ``fault`` says why it cannot even be tried."""

    info: PluginInfo
    entry: metadata.EntryPoint | None = None
    fault: str = ""

    @property
    def built_in(self) -> bool:
        return self.info.distribution == BUILT_IN


def find_plugins() -> tuple[Found, ...]:
    """Return every entry point of the group, by name. ``metadata.entry_points`` gives up at the first broken file."""
    found: list[Found] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            if "[kdzoo]" not in "".join((distribution.read_text("entry_points.txt") or "").split()):
                continue
            name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
            version = str(distribution.metadata["Version"])
            entries = [entry for entry in distribution.entry_points if entry.group == GROUP]
        except Exception as error:  # any distribution's files may be damaged; it is reported as a broken plugin
            fault = f"a distribution in {distribution.locate_file('')} cannot be read: {cause_of(error)}"
            found.append(Found(PluginInfo("?", "unknown", "?", "found"), fault=fault))
            continue
        if name in seen:  # the same distribution further down sys.path: python would not import it either
            continue
        seen.add(name)
        found += [Found(PluginInfo(e.name, name or "unknown", version, "found", module=e.value), e) for e in entries]
    return tuple(sorted(found, key=lambda one: (one.info.name, one.info.distribution)))


def cause_of(error: BaseException) -> str:
    """Say on one line what went wrong; an exception's own text may fail too."""
    own = isinstance(error, PluginError | pluggy.PluginValidationError)
    text = str(error) if own else traceback.format_exception_only(error)[-1]
    return plain(" ".join(text.split()), 500)
