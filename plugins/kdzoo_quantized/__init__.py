"""Quantized students: networks in few bits, trained with the rounding of their integers and taught by one in floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_quantized.qat_kd import QATKD
    from kdzoo_quantized.quantized_distillation import QuantizedDistillation

    for algorithm in (QATKD, QuantizedDistillation):
        register(algorithm)


@hookimpl
def register_quantizers(register: Callable[[type], Any]) -> None:
    from kdzoo_quantized.int8 import Int8, Int8Buckets

    for quantizer in (Int8, Int8Buckets):
        register(quantizer)
