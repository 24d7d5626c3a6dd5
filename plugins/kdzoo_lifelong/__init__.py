"""Lifelong learning: tasks follow one another, and the student learns from its earlier self."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_lifelong.icarl import ICaRL
    from kdzoo_lifelong.lwf import LwF

    for algorithm in (ICaRL, LwF):
        register(algorithm)
