"""What the plugins offer: a zoo of their algorithms, models, data sets and the rest, each with its owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kdzoo.contract.extension_points import Offer
from kdzoo.errors import PluginError, UnknownName, nearest, shown
from kdzoo.zoo.finding import PluginInfo

if TYPE_CHECKING:
    from kdzoo.contract.algorithm import Algorithm
    from kdzoo.contract.execution import Executor
    from kdzoo.contract.extension_points import DataSource, Exporter, Quantizer, Tracker

KINDS = ("algorithm", "model", "data set", "export format", "tracker", "quantizer", "executor")
KNOWN_SHOWN = 8

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
    executors: Mapping[str, Offer] = field(default_factory=dict)

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

    def executor(self, name: str) -> type[Executor]:
        """Return an executor; raises as ``algorithm``."""
        return self._find("executor", self.executors, name)

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
            "executor": self.executors,
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


def merged_zoo(offers: Mapping[Key, Offer], plugins: tuple[PluginInfo, ...], refused: Mapping[Key, str]) -> Zoo:
    """Sort offers by what they are and by name."""
    merged: dict[str, dict[str, Offer]] = {kind: {} for kind in KINDS}
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
        executors=MappingProxyType(merged["executor"]),
    )
