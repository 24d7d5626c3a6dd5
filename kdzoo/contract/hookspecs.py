"""The hooks a plugin may implement. Each receives ``register``, a callback to call once for each thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

API_VERSION = 1

hookspec = pluggy.HookspecMarker("kdzoo")
hookimpl = pluggy.HookimplMarker("kdzoo")


@hookspec
def register_algorithms(register: Callable[[type], Any]) -> None:
    """Offer algorithms: call ``register(Class)`` with a subclass of ``Algorithm`` for each."""


@hookspec
def register_models(register: Callable[[Any], Any]) -> None:
    """Offer models: call ``register(ModelFamily(...))`` after adding their names to timm's registry."""


@hookspec
def register_datasets(register: Callable[[type], Any]) -> None:
    """Offer data sets: call ``register(Class)`` with a subclass of ``DataSource`` for each."""


@hookspec
def register_exporters(register: Callable[[type], Any]) -> None:
    """Offer export formats: call ``register(Class)`` with a subclass of ``Exporter`` for each."""


@hookspec
def register_quantizers(register: Callable[[type], Any]) -> None:
    """Offer ways to compute networks: call ``register(Class)`` with a subclass of ``Quantizer`` for each."""


@hookspec
def register_trackers(register: Callable[[type], Any]) -> None:
    """Offer trackers of metrics: call ``register(Class)`` with a subclass of ``Tracker`` for each."""


@hookspec
def register_executors(register: Callable[[type], Any]) -> None:
    """Offer places where tasks run: call ``register(Class)`` with a subclass of ``Executor`` for each."""
