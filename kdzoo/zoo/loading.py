"""The zoo: what the installed plugins offer. One broken plugin never takes the others down.

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
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pluggy

from kdzoo import __version__
from kdzoo.contract import hookspecs
from kdzoo.contract.extension_points import Offer
from kdzoo.errors import PluginError, UnknownName, nearest, plain, shown
from kdzoo.zoo import plugin_checks as admission
from kdzoo.zoo.finding import BUILT_IN, GROUP, Found, PluginInfo, cause_of, find_plugins
from kdzoo.zoo.process_state import given_back

if TYPE_CHECKING:
    from kdzoo.contract.algorithm import Algorithm
    from kdzoo.contract.extension_points import DataSource, Exporter, Quantizer, Tracker

__all__ = ["BUILT_IN", "PluginInfo", "Zoo", "load_zoo"]

KNOWN_SHOWN = 8


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
}

Key = tuple[str, str]  # what it is, its name: ("algorithm", "kd")


@dataclass(frozen=True)
class Zoo:
    """Everything that the loaded plugins offer, by name, each with its owner."""

    algorithms: Mapping[str, Offer]
    models: Mapping[str, Offer]  # every model of every family; the thing is the ModelFamily
    datasets: Mapping[str, Offer]
    exporters: Mapping[str, Offer]
    trackers: Mapping[str, Offer]
    plugins: tuple[PluginInfo, ...]
    refused: Mapping[Key, str] = field(default_factory=dict)  # names of plugins that were refused for a clash
    quantizers: Mapping[str, Offer] = field(default_factory=dict)

    def algorithm(self, name: str) -> type[Algorithm]:
        """Return an algorithm; raise UnknownName, or PluginError if two plugins claim the name."""
        aliases = {alias: offer.name for offer in self.algorithms.values() for alias in offer.thing.also_known_as}
        return self._find("algorithm", self.algorithms, name, aliases)

    def dataset(self, name: str) -> type[DataSource]:
        """Return a data set; raises as ``algorithm``."""
        return self._find("data set", self.datasets, name)

    def exporter(self, name: str) -> type[Exporter]:
        """Return an export format; raises as ``algorithm``."""
        return self._find("export format", self.exporters, name)

    def quantizer(self, name: str) -> type[Quantizer]:
        """Return a quantizer; raises as ``algorithm``."""
        return self._find("quantizer", self.quantizers, name)

    def tracker(self, name: str) -> type[Tracker]:
        """Return a tracker; raises as ``algorithm``."""
        return self._find("tracker", self.trackers, name)

    def with_algorithm(self, cls: type[Algorithm]) -> Zoo:
        """Return this zoo with one more algorithm, for testing a class that no plugin registers yet."""
        if cls.name in self.algorithms and self.algorithms[cls.name].thing is cls:
            return self
        offer = Offer(cls.name, cls, "unregistered", cls.__module__, "0")
        return replace(self, algorithms={**self.algorithms, cls.name: offer})

    def offers(self) -> dict[Key, Offer]:
        """Return everything that is offered by (kind, name)."""
        groups = {
            "algorithm": self.algorithms,
            "model": self.models,
            "data set": self.datasets,
            "export format": self.exporters,
            "tracker": self.trackers,
            "quantizer": self.quantizers,
        }
        return {(kind, name): offer for kind, group in groups.items() for name, offer in group.items()}

    def notes(self) -> list[str]:
        """Say which plugins are not there and may have offered a name that is missing."""
        causes = {"broken": "failed to load: {}", "disabled": "is disabled by KDZOO_PLUGINS"}
        return [f"note: {p} {causes[p.status].format(p.cause)}" for p in self.plugins if p.status in causes]

    def _find(self, kind: str, offers: Mapping[str, Offer], name: str, aliases: Mapping[str, str] | None = None) -> Any:
        if name in offers:
            return offers[name].thing
        if (kind, name) in self.refused:
            raise PluginError(f"{kind} '{name}': {self.refused[kind, name]}")
        known, aliases = sorted(offers), aliases or {}
        close = f"; did you mean '{aliases[name]}'?" if name in aliases else nearest(name, known)
        some = ", ".join(known[:KNOWN_SHOWN]) + (" ..." if len(known) > KNOWN_SHOWN else "")
        message = f"unknown {kind} {shown(name)}{close or ';'} known: {some or 'none'}"
        raise UnknownName("\n".join([message, *self.notes()]))


# --- loading ------------------------------------------------------------------------------------


def load_zoo(only: str | None = None) -> Zoo:
    """Load the plugins that ``only`` names, separated by commas (``none``: none; default: KDZOO_PLUGINS, else all).

    Loaded once a process. A plugin that is known to end or to hang whatever process loads it is not tried again. Raises
    PluginError only for a name in ``only`` that no installed plugin has; what is wrong with a plugin is in
    ``Zoo.plugins``.
    """
    from kdzoo.zoo.catalogue import fatal_plugins

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


def merged_zoo(offers: Mapping[Key, Offer], plugins: tuple[PluginInfo, ...], refused: Mapping[Key, str]) -> Zoo:
    """Sort offers by what they are and by name."""
    merged: dict[str, dict[str, Offer]] = {hook.kind: {} for hook in _HOOKS.values()}
    for (kind, name), offer in sorted(offers.items(), key=lambda pair: pair[0]):
        merged[kind][name] = offer
    return Zoo(
        algorithms=MappingProxyType(merged["algorithm"]),
        models=MappingProxyType(merged["model"]),
        datasets=MappingProxyType(merged["data set"]),
        exporters=MappingProxyType(merged["export format"]),
        trackers=MappingProxyType(merged["tracker"]),
        plugins=plugins,
        refused=MappingProxyType(dict(refused)),
        quantizers=MappingProxyType(merged["quantizer"]),
    )


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
