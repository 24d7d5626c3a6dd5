"""Response distillation: the student matches the teacher's answers, its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_response.dist import DIST
    from kdzoo_response.dkd import DKD
    from kdzoo_response.kd import KD

    for algorithm in (DIST, DKD, KD):
        register(algorithm)
