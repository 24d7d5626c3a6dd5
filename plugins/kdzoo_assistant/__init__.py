"""Teacher assistants: chains of models of falling size between a large teacher and a small student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_assistant.dgkd import DGKD
    from kdzoo_assistant.takd import TAKD

    for algorithm in (DGKD, TAKD):
        register(algorithm)
