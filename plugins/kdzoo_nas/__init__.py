"""Search and supernets: the student's architecture is found by distillation, or cut out of a wider network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl
from kdzoo.api.models import ModelFamily


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_nas.nas_kd import NasKD
    from kdzoo_nas.sandwich import Sandwich

    for algorithm in (NasKD, Sandwich):
        register(algorithm)


@hookimpl
def register_models(register: Callable[[Any], Any]) -> None:
    from kdzoo_nas import slimmable

    register(ModelFamily("slimmable", slimmable.models, "small CNNs and ResNets that run at any smaller width too"))
