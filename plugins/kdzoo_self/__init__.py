"""Self-distillation: networks that learn from copies, parts or earlier states of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_self.born_again import BornAgain
    from kdzoo_self.byot import BYOT
    from kdzoo_self.sad import SAD
    from kdzoo_self.snapshot import Snapshot

    for algorithm in (BYOT, BornAgain, SAD, Snapshot):
        register(algorithm)
