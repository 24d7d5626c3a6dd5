"""The user's cache folder: what was found out about the installed plugins, one JSON file an entry.

An entry that is missing, damaged or too old, or a folder that cannot be read or written, is never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdzoo.errors import KdzooError
from kdzoo.storage.atomic import write_bytes
from kdzoo.storage.cache_folder import cache_folder
from kdzoo.storage.owner import sweep
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


def read_body(place: Path, lasts_s: float | None) -> Body | None:
    """Return the content of an entry; None if there is none, or it is damaged or too old."""
    try:
        digest, _, content = place.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest or (lasts_s is not None and age(place) > lasts_s):
            return None
        body = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def age(place: Path) -> float:
    """Return how long ago an entry was written, in seconds."""
    return time.time() - place.stat().st_mtime


def write_body(place: Path, body: Mapping[str, Any]) -> None:
    """Keep an entry if the folder takes it."""
    content = json.dumps(body, separators=(",", ":")).encode()
    with contextlib.suppress(OSError, KdzooError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        sweep(place.parent)
        entries = sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in entries[KEPT:]:
            old.unlink(missing_ok=True)


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
        if place is not None and (body := read_body(place, FATAL_S)) is not None:
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
