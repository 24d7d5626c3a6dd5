"""The catalogue: what the installed plugins offer, remembered as plain data in the user's cache folder.

Importing the plugins takes seconds, so commands that only look read the catalogue. It is filed under a key that holds
everything that decides what it says: kdzoo's own files, the entry points, every file of each plugin's package, what is
installed, and the environment variables of kdzoo. Where nothing fits, the plugins are loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from kdzoo import version
from kdzoo.storage.cache_folder import age, read_entry
from kdzoo.types import stable_hash
from kdzoo.zoo.cache import catalogue_folder, fatal_plugins, remember_fatal, write_body
from kdzoo.zoo.cards import body_of, cards_of, zoo_of
from kdzoo.zoo.finding import Found, find_plugins
from kdzoo.zoo.installed import distributions, files_below, plugin_state, state_of
from kdzoo.zoo.loading import load_zoo, wanted_names, wanted_plugins
from kdzoo.zoo.offered import Zoo

FORMAT = 1
BROKEN_S = 600.0  # why a plugin is broken may lie outside of its files, so it is tried again after so long


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
            remember_fatal(one, cause)
        if body is None:
            zoo = load_zoo()
    if body is None:
        return cards_of(zoo)
    if place is not None:
        write_body(place, body)
    return zoo_of(body)


def _place(found: Sequence[Found], only: str) -> Path | None:
    """Return the file of the catalogue of what is installed; None where that cannot be decided."""
    folder, states = catalogue_folder(), [plugin_state(one) for one in found]
    if folder is None or None in states:
        return None
    settings = {name: value for name, value in os.environ.items() if name.startswith("KDZOO_")}
    settings.pop("KDZOO_DEBUG", None)
    key = {
        "format": FORMAT,
        "python": [sys.version, sys.executable],
        "kdzoo": state_of(files_below(Path(version.__file__).parent)),
        "installed": list(distributions()),
        "only": only,
        "settings": settings,
        "plugins": states,
    }
    return folder / f"{stable_hash(key)}.json"


def _read(place: Path) -> Zoo | None:
    body = read_entry(place)
    try:
        if body is None or state_of(Path(source[0]) for source in body["sources"]) != body["sources"]:
            return None
        zoo = zoo_of(body)
    except (KeyError, TypeError, ValueError, IndexError, ValidationError):
        return None
    if any(plugin.status == "broken" for plugin in zoo.plugins) and age(place) > BROKEN_S:
        return None
    return zoo
