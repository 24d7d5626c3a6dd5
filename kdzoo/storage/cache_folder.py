"""The user's cache folder: what can be found out again, kept so that it need not be."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Return kdzoo's folder in the user's cache, which need not exist; None where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "kdzoo"
