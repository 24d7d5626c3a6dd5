"""Relation distillation: the student arranges the samples of a batch as the teacher does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_relation.crd import CRD
    from kdzoo_relation.rkd import RKD

    for algorithm in (CRD, RKD):
        register(algorithm)
