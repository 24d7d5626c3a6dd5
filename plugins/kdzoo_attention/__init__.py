"""Attention distillation: the student looks where the teacher looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_attention.at import AT

    register(AT)
