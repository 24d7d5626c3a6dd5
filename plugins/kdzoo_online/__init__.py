"""Online distillation: networks without a teacher that learn side by side and from each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl
from kdzoo_online.dml import DML


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    register(DML)
