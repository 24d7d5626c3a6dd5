"""Tasks in processes of this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_executors(register: Callable[[type], Any]) -> None:
    from kdzoo.api.execution import LocalExecutor

    register(LocalExecutor)
