"""The user's cache folder: what can be found out again, kept so that it need not be. One JSON file an entry.

An entry that is missing, damaged or too old, or a folder that cannot be read or written, is never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdzoo.errors import KdzooError
from kdzoo.storage.atomic import write_bytes
from kdzoo.storage.owner import sweep


def cache_folder() -> Path | None:
    """Return kdzoo's folder in the user's cache, which need not exist; None where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "kdzoo"


def read_entry(place: Path, lasts_s: float | None = None) -> dict[str, Any] | None:
    """Return the content of an entry; None if there is none, or it is damaged or older than ``lasts_s`` seconds."""
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


def write_entry(place: Path, body: Mapping[str, Any], kept: int) -> None:
    """Keep an entry if the folder takes it; the newest ``kept`` entries of the folder stay."""
    content = json.dumps(body, separators=(",", ":")).encode()
    with contextlib.suppress(OSError, KdzooError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        sweep(place.parent)
        entries = sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in entries[kept:]:
            old.unlink(missing_ok=True)
