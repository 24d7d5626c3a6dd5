"""Data-free distillation: the student sees no training sample, only images made by means of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_data_free.dafl import DAFL
    from kdzoo_data_free.deep_inversion import DeepInversion
    from kdzoo_data_free.zskt import ZSKT

    for algorithm in (DAFL, DeepInversion, ZSKT):
        register(algorithm)
