"""What was found out about the installed plugins, kept in the user's cache folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdzoo.storage.cache_folder import cache_folder, read_entry, write_entry
from kdzoo.types import stable_hash
from kdzoo.zoo.finding import Found
from kdzoo.zoo.installed import plugin_state

KEPT = 32  # entries that stay in the folder, the newest ones
FATAL_S = 86_400.0  # the cause of an end or a hang may lie outside of the plugin, so it is tried again after so long

Body = dict[str, Any]

_fatal: dict[Found, str] = {}  # of this process, should the folder not take it


def catalogue_folder() -> Path | None:
    """Return the user's cache folder of kdzoo's catalogues; None where there is no home."""
    folder = cache_folder()
    return None if folder is None else folder / "catalogue"


def write_body(place: Path, body: Mapping[str, Any]) -> None:
    """Keep an entry if the folder takes it."""
    write_entry(place, body, KEPT)


# --- plugins that end or hang the process -------------------------------------------------------------


def fatal_plugins(found: Iterable[Found]) -> dict[Found, str]:
    """Return the plugins of others that are known to end or hang a process that loads them, each with the cause."""
    fatal = {}
    for one in found:
        if one.built_in or one.entry is None:
            continue
        if one in _fatal:
            fatal[one] = _fatal[one]
            continue
        place = _fatal_place(one)
        if place is not None and (body := read_entry(place, FATAL_S)) is not None:
            fatal[one] = str(body.get("cause", ""))
    return fatal


def remember_fatal(one: Found, cause: str) -> None:
    """Remember that a plugin ends or hangs a process that loads it, here and in the folder if that takes it."""
    _fatal[one] = cause
    if (place := _fatal_place(one)) is not None:
        write_body(place, {"cause": cause})


def _fatal_place(one: Found) -> Path | None:
    folder, state = catalogue_folder(), plugin_state(one)
    return None if folder is None or state is None else folder / f"fatal-{stable_hash(state)}.json"
