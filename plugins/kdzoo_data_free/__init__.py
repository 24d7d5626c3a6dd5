"""Data-free distillation: the student never sees a training sample, only what a teacher can be made to recognise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl
from kdzoo_data_free.dafl import DAFL


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    register(DAFL)
