"""Multi-teacher distillation: the student learns from several teachers at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_multi_teacher.ca_mkd import CAMKD
    from kdzoo_multi_teacher.mt_average import MTAverage
    from kdzoo_multi_teacher.mt_dissimilarity import MTDissimilarity

    for algorithm in (CAMKD, MTAverage, MTDissimilarity):
        register(algorithm)
