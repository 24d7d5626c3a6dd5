"""Self-distillation: networks that learn from copies, parts or earlier states of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl
from kdzoo_self.born_again import BornAgain


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    register(BornAgain)
