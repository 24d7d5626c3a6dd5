"""Students in few bits: trained with the rounding of their integers, taught by a teacher in floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl
from kdzoo_quantized.int8 import Int8
from kdzoo_quantized.qat_kd import QATKD


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    register(QATKD)


@hookimpl
def register_arithmetics(register: Callable[[type], Any]) -> None:
    register(Int8)
