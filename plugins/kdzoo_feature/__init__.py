"""Feature distillation: the student matches the teacher's feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_feature.fitnet import FitNet
    from kdzoo_feature.review_kd import ReviewKD

    for algorithm in (FitNet, ReviewKD):
        register(algorithm)
