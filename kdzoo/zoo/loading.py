"""Loading the installed plugins into a zoo of what they offer. One broken plugin never takes the others down.

Plugins are trusted code, but each is loaded on its own and all or nothing: what it offers is collected in a scratch
manager, checked, and merged only if every bit of it is right and no name in it is claimed by another plugin.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import pluggy

from kdzoo.contract import hookspecs
from kdzoo.contract.extension_points import Offer
from kdzoo.errors import PluginError, nearest, plain, shown
from kdzoo.version import __version__
from kdzoo.zoo import plugin_checks as admission
from kdzoo.zoo.cache import fatal_plugins
from kdzoo.zoo.finding import GROUP, Found, PluginInfo, cause_of, find_plugins
from kdzoo.zoo.offered import Key, Zoo, merged_zoo
from kdzoo.zoo.process_state import given_back


@dataclass(frozen=True)
class _Hook:
    """What a hook offers, how one thing is checked, and which names it claims."""

    kind: str
    check: Callable[[Any], None]
    names: Callable[[Any], Iterable[str]] = lambda thing: (thing.name,)


_HOOKS = {
    "register_algorithms": _Hook("algorithm", admission.check_algorithm),
    "register_models": _Hook("model", admission.check_family, lambda family: family.models),
    "register_datasets": _Hook("data set", admission.check_dataset),
    "register_exporters": _Hook("export format", admission.check_exporter),
    "register_quantizers": _Hook("quantizer", admission.check_quantizer),
    "register_trackers": _Hook("tracker", admission.check_tracker),
    "register_executors": _Hook("executor", admission.check_executor),
}


# --- loading ------------------------------------------------------------------------------------


def load_zoo(only: str | None = None) -> Zoo:
    """Load the plugins that ``only`` names, separated by commas (``none``: none; default: KDZOO_PLUGINS, else all).

    Loaded once a process. A plugin that is known to end or to hang whatever process loads it is not tried again. Raises
    PluginError only for a name in ``only`` that no installed plugin has; what is wrong with a plugin is in
    ``Zoo.plugins``.
    """
    found = find_plugins()
    return _load_all(found, wanted_plugins() if only is None else only.strip(), tuple(fatal_plugins(found).items()))


def wanted_plugins() -> str:
    """Return the names of the plugins to load, as the environment gives them; empty: all."""
    return os.environ.get("KDZOO_PLUGINS", "").strip()


@functools.cache
def _load_all(found: tuple[Found, ...], only: str, fatal: tuple[tuple[Found, str], ...] = ()) -> Zoo:
    return load_plugins(found, only, dict(fatal))


def load_plugins(
    found: tuple[Found, ...], only: str, fatal: Mapping[Found, str], before: Callable[[Found], None] = lambda one: None
) -> Zoo:
    """Load plugins into this process, kdzoo's own first; those in ``fatal`` are broken for the cause given there.

    ``before`` is called with each plugin before it is imported.
    """
    wanted = wanted_names(found, only)
    offers: dict[Found, dict[Key, Offer]] = {}
    infos: dict[Found, PluginInfo] = {}
    for one in sorted(found, key=lambda one: not one.built_in):
        if one.info.name not in wanted:
            infos[one] = replace(one.info, status="disabled")
            continue
        if one in fatal:
            infos[one] = replace(one.info, status="broken", cause=fatal[one])
            continue
        before(one)
        if not one.built_in and one.entry is not None:
            importlib.import_module("torch")  # before it, so that what it changes of torch shows
        changed: list[str] = []
        try:
            with given_back(changed, environment=not one.built_in):
                offers[one] = _load(one)
            infos[one] = replace(one.info, status="ok")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() included: a plugin's failure is reported, and is its own
            trace = "".join(traceback.format_exception(error))
            infos[one] = replace(one.info, status="broken", cause=cause_of(error), traceback=trace)
        infos[one] = replace(infos[one], changed=plain(", ".join(changed), 500))
    refused: dict[Key, str] = {}
    for one, cause in _clashes(offers).items():
        infos[one] = replace(infos[one], status="broken", cause=cause)
        for key in offers.pop(one):
            refused[key] = f"{one.info} is refused: {cause}"
    all_offers = [pair for mine in offers.values() for pair in mine.items()]
    return merged_zoo(dict(all_offers), tuple(infos[one] for one in found), refused)


def wanted_names(found: Iterable[Found], only: str) -> set[str]:
    """Return the names of the plugins that ``only`` asks for; raise PluginError for one that is not installed."""
    known = {one.info.name for one in found}
    if not only:
        return known
    wanted = {name.strip() for name in only.split(",")} - {"", "none"}
    for name in sorted(wanted - known):
        close = nearest(name, sorted(known))
        raise PluginError(
            f"KDZOO_PLUGINS: unknown plugin {shown(name)}{close or ';'} known: {', '.join(sorted(known))}"
        )
    return wanted


def _load(found: Found) -> dict[Key, Offer]:
    """Import one plugin and return what it offers; raise whatever is wrong with it."""
    if found.entry is None:
        raise PluginError(found.fault)
    with redirect_stdout(sys.stderr):  # a plugin that prints must not spoil what a command prints
        plugin = found.entry.load()
        api = getattr(plugin, "KDZOO_API", getattr(sys.modules.get(found.entry.module), "KDZOO_API", 1))
        if api != hookspecs.API_VERSION:
            ours = f"kdzoo {__version__} has plugin API {hookspecs.API_VERSION}"
            raise PluginError(f"made for plugin API {plain(str(api))}; {ours}")
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin, name=found.info.name)
        hooks = [caller.name for caller in manager.get_hookcallers(plugin) or ()]
        for name in hooks:
            if name not in _HOOKS:
                raise PluginError(
                    f"unknown hook '{name}'{nearest(name, list(_HOOKS)) or ';'} known: {', '.join(_HOOKS)}"
                )
        if not hooks:
            raise PluginError(f"implements no hook; mark {next(iter(_HOOKS))} or another with kdzoo.api.hookimpl")
        offers: dict[Key, Offer] = {}
        for name in hooks:
            getattr(manager.hook, name)(register=functools.partial(_collect, found.info, _HOOKS[name], offers))
    return dict(offers)


def _collect(info: PluginInfo, hook: _Hook, offers: dict[Key, Offer], thing: Any) -> Any:
    """Check one thing and take it up; this is the ``register`` that a plugin calls."""
    hook.check(thing)
    for name in hook.names(thing):
        if (hook.kind, name) in offers:
            raise PluginError(f"registers {hook.kind} '{name}' twice")
        offers[hook.kind, name] = Offer(name, thing, info.name, info.distribution, info.version)
    return thing


def _clashes(offers: Mapping[Found, Mapping[Key, Offer]]) -> dict[Found, str]:
    """Return the plugins that claim what another one claims, each with the reason.

    First those that clash with a built-in one, which stays; then all that are left and clash with each other.
    """
    clashing: dict[Found, str] = {}
    for against_built_in in (True, False):
        left = [one for one in offers if one not in clashing]
        for one in left:
            others = [other for other in left if other is not one and (other.built_in or not against_built_in)]
            if not (against_built_in and one.built_in) and (cause := _clash(one, others, offers)):
                clashing[one] = cause
    return clashing


def _clash(one: Found, others: Iterable[Found], offers: Mapping[Found, Mapping[Key, Offer]]) -> str:
    for other in others:
        if one.info.name == other.info.name:
            return f"the name of {one.info} is also that of {other.info}; only one can have it"
        for kind, name in sorted(offers[one].keys() & offers[other].keys()):
            return f"{kind} '{name}' of {one.info} is also offered by {other.info}; only one can have it"
    return ""
