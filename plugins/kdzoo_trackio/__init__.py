"""Tracking with trackio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_trackers(register: Callable[[type], Any]) -> None:
    from kdzoo_trackio.trackio_tracker import Trackio

    register(Trackio)
