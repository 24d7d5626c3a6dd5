"""Tasks on Ray: on this machine, or on a cluster without a shared file system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_executors(register: Callable[[type], Any]) -> None:
    from kdzoo_ray.ray_executor import RayExecutor

    register(RayExecutor)
