"""The state of what is installed: plain data that changes when a file of it does."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kdzoo import version
from kdzoo.zoo.finding import Found

MAX_FILES = 20_000  # a package of more is not watched, so it is loaded each time


def plugin_state(one: Found) -> list[Any] | None:
    """Say what a plugin is made of; None where its package has too many files to watch."""
    info = one.info
    state = [info.name, info.distribution, info.version, info.module, one.fault]
    if one.entry is None:
        return state
    top = one.entry.module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        spec = None
    places = [*(spec.submodule_search_locations or ())] if spec else []
    files = [Path(spec.origin)] if spec and spec.origin and os.path.isfile(spec.origin) else []
    try:
        for place in places:
            files += files_below(Path(place))
    except OverflowError:
        return None
    return [*state, state_of(files)]


def files_below(folder: Path) -> list[Path]:
    """Return the files of a package; raise OverflowError for more than ``MAX_FILES``."""
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        files += [Path(place, name) for name in names if not name.endswith(".pyc")]
        if len(files) > MAX_FILES:
            raise OverflowError(f"{folder} has more than {MAX_FILES} files")
    return files


def state_of(files: Iterable[Path]) -> list[list[Any]]:
    """Path, size and times of change of each file; a file that is gone has none."""
    states: list[list[Any]] = []
    for path in sorted(set(files)):
        try:
            about = path.stat()
            states.append([str(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns])
        except OSError:
            states.append([str(path), None, None, None])
    return states


def distributions() -> Iterator[str]:
    """Every distribution on the path, by its folder of metadata, and when that changed."""
    for place in sys.path:
        with contextlib.suppress(OSError), os.scandir(place or ".") as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth")):
                    yield f"{entry.path} {entry.stat().st_mtime_ns}"


def loose_sources() -> list[Path]:
    """Files of the imported modules that no installation put in place: editable packages and code on PYTHONPATH."""
    fixed = [os.path.realpath(path) + os.sep for path in set(sysconfig.get_paths().values())]
    fixed.append(os.path.dirname(os.path.realpath(version.__file__)) + os.sep)
    sources = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return [
        Path(source)
        for source in sources
        if isinstance(source, str) and os.path.isfile(source) and not os.path.realpath(source).startswith(tuple(fixed))
    ]
