"""Graph distillation: the student matches the teacher's graph of a batch: samples and their relations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_graph.irg import IRG

    register(IRG)
