"""The catalogue: what the installed plugins offer, remembered as plain data in the user's cache folder.

Importing the plugins takes seconds, so commands that only look read the catalogue. It is filed under a key that holds
everything that decides what it says: kdzoo's own files, the entry points, every file of each plugin's package, what is
installed, and the environment variables of kdzoo. Where nothing fits, the plugins are loaded. A folder that cannot be
read or written, or a damaged entry, is never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import kdzoo
from kdzoo.errors import KdzooError, PluginError
from kdzoo.storage.atomic import write_bytes
from kdzoo.storage.owner import sweep
from kdzoo.types import stable_hash
from kdzoo.zoo.cards import Card, card_of, read_offer, written_offer
from kdzoo.zoo.finding import Found, PluginInfo, find_plugins
from kdzoo.zoo.loading import Zoo, load_zoo, merged_zoo, wanted_names, wanted_plugins

FORMAT = 1
KEPT = 32  # entries that stay in the folder, the newest ones
MAX_FILES = 20_000  # a package of more is not watched, so it is loaded each time
BROKEN_S = 600.0  # why a plugin is broken may lie outside of its files, so it is tried again after so long
FATAL_S = 86_400.0  # the same of one that ends or hangs its process

Body = dict[str, Any]
_fatal: dict[Found, str] = {}  # of this process, should the folder not take it


def catalogue(retry_broken: bool = False) -> Zoo:
    """Return a zoo of cards: what ``load_zoo`` would offer, most of the time without importing anything.

    ``retry_broken``: load the plugins again if one of them is remembered as broken. Raises as ``load_zoo``.
    """
    if (known := remembered()) is not None:
        broken = [plugin for plugin in known.plugins if plugin.status == "broken"]
        fatal = {found.info.name for found in fatal_plugins(find_plugins())}
        if not retry_broken or all(plugin.name in fatal for plugin in broken):
            return known
    return _surveyed()


def remembered() -> Zoo | None:
    """Return the catalogue of what is installed now, if there is one."""
    place = _place(find_plugins(), wanted_plugins())
    return None if place is None else _read(place)


def _surveyed() -> Zoo:
    from kdzoo.zoo.survey import survey

    found, only = find_plugins(), wanted_plugins()
    place = _place(found, only)
    wanted = wanted_names(found, only)
    if all(one.built_in for one in found if one.info.name in wanted):
        zoo = load_zoo()
        body = body_of(zoo)
    else:
        body, fatal = survey(found, only, fatal_plugins(found))
        for one, cause in fatal.items():
            _remember_fatal(one, cause)
        if body is None:
            zoo = load_zoo()
    if body is None:
        return _cards_of(zoo)
    if place is not None:
        _write(place, body)
    return zoo_of(body)


# --- as data ----------------------------------------------------------------------------------------


def body_of(zoo: Zoo) -> Body | None:
    """Return a loaded zoo as JSON content; None where something in it has no card."""
    try:
        offers = [written_offer(kind, offer) for (kind, _), offer in zoo.offers().items()]
    except PluginError:
        return None
    body = {
        "plugins": [asdict(plugin) for plugin in zoo.plugins],
        "refused": [[*key, cause] for key, cause in zoo.refused.items()],
        "offers": offers,
        "sources": _state(_loose_sources()),
    }
    try:
        return dict(json.loads(json.dumps(body)))
    except (TypeError, ValueError):
        return None


def zoo_of(body: Mapping[str, Any]) -> Zoo:
    """Return the zoo of cards that ``body_of`` wrote."""
    plugins = tuple(PluginInfo(**plugin) for plugin in body["plugins"])
    refused = {(kind, name): cause for kind, name, cause in body["refused"]}
    return merged_zoo(dict(map(read_offer, body["offers"])), plugins, refused)


def _cards_of(zoo: Zoo) -> Zoo:
    """Return the zoo of cards of what is loaded; a thing that has none gets one that says its name."""
    offers = {}
    for (kind, name), offer in zoo.offers().items():
        try:
            card = card_of(kind, offer.thing)
        except PluginError:
            card = offer.thing if kind == "algorithm" else Card(name, open=True)
        offers[kind, name] = type(offer)(name, card, offer.plugin, offer.distribution, offer.version)
    return merged_zoo(offers, zoo.plugins, zoo.refused)


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
        if place is not None and (body := _read_body(place, FATAL_S)) is not None:
            fatal[one] = str(body.get("cause", ""))
    return fatal


def _remember_fatal(one: Found, cause: str) -> None:
    _fatal[one] = cause
    if (place := _fatal_place(one)) is not None:
        _write(place, {"cause": cause})


def _fatal_place(one: Found) -> Path | None:
    folder, state = _folder(), _plugin_state(one)
    return None if folder is None or state is None else folder / f"fatal-{stable_hash(state)}.json"


# --- the key ------------------------------------------------------------------------------------------


def _place(found: Sequence[Found], only: str) -> Path | None:
    """Return the file of the catalogue of what is installed; None where that cannot be decided."""
    folder, states = _folder(), [_plugin_state(one) for one in found]
    if folder is None or None in states:
        return None
    settings = {name: value for name, value in os.environ.items() if name.startswith("KDZOO_")}
    settings.pop("KDZOO_DEBUG", None)
    key = {
        "format": FORMAT,
        "python": [sys.version, sys.executable],
        "kdzoo": _state(_files_below(Path(kdzoo.__file__).parent)),
        "installed": list(_installed()),
        "only": only,
        "settings": settings,
        "plugins": states,
    }
    return folder / f"{stable_hash(key)}.json"


def _plugin_state(one: Found) -> list[Any] | None:
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
            files += _files_below(Path(place))
    except OverflowError:
        return None
    return [*state, _state(files)]


def _files_below(folder: Path) -> list[Path]:
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        files += [Path(place, name) for name in names if not name.endswith(".pyc")]
        if len(files) > MAX_FILES:
            raise OverflowError(f"{folder} has more than {MAX_FILES} files")
    return files


def _state(files: Iterable[Path]) -> list[list[Any]]:
    """Path, size and times of change of each file; a file that is gone has none."""
    states: list[list[Any]] = []
    for path in sorted(set(files)):
        try:
            about = path.stat()
            states.append([str(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns])
        except OSError:
            states.append([str(path), None, None, None])
    return states


def _installed() -> Iterator[str]:
    """Every distribution on the path, by its folder of metadata, and when that changed."""
    for place in sys.path:
        with contextlib.suppress(OSError), os.scandir(place or ".") as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth")):
                    yield f"{entry.path} {entry.stat().st_mtime_ns}"


def _loose_sources() -> list[Path]:
    """Files of the imported modules that no installation put in place: editable packages and code on PYTHONPATH."""
    fixed = [os.path.realpath(path) + os.sep for path in set(sysconfig.get_paths().values())]
    fixed.append(os.path.dirname(os.path.realpath(kdzoo.__file__)) + os.sep)
    sources = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return [
        Path(source)
        for source in sources
        if isinstance(source, str) and os.path.isfile(source) and not os.path.realpath(source).startswith(tuple(fixed))
    ]


# --- the folder ---------------------------------------------------------------------------------------


def _folder() -> Path | None:
    """Return the user's cache folder of kdzoo's catalogues; None where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "kdzoo" / "catalogue"


def _read(place: Path) -> Zoo | None:
    body = _read_body(place, None)
    try:
        if body is None or _state(Path(source[0]) for source in body["sources"]) != body["sources"]:
            return None
        zoo = zoo_of(body)
    except (KeyError, TypeError, ValueError, IndexError, ValidationError):
        return None
    if any(plugin.status == "broken" for plugin in zoo.plugins) and _age(place) > BROKEN_S:
        return None
    return zoo


def _read_body(place: Path, lasts_s: float | None) -> Body | None:
    """Return the content of an entry; None if there is none, or it is damaged or too old."""
    try:
        digest, _, content = place.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest or (lasts_s is not None and _age(place) > lasts_s):
            return None
        body = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _age(place: Path) -> float:
    return time.time() - place.stat().st_mtime


def _write(place: Path, body: Mapping[str, Any]) -> None:
    """Keep an entry if the folder takes it."""
    content = json.dumps(body, separators=(",", ":")).encode()
    with contextlib.suppress(OSError, KdzooError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        sweep(place.parent)
        entries = sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in entries[KEPT:]:
            old.unlink(missing_ok=True)
