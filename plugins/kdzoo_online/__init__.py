"""Online distillation: untrained networks learn together, from each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_online.codistill import Codistill
    from kdzoo_online.dml import DML
    from kdzoo_online.one import ONE

    for algorithm in (Codistill, DML, ONE):
        register(algorithm)
