"""Two modalities of the same scenes: a network that reads one teaches a network that reads the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl
from kdzoo_cross_modal.cross_modal_kd import CrossModalKD
from kdzoo_cross_modal.phone_watch_har import PhoneWatchHAR
from kdzoo_cross_modal.supervision_transfer import SupervisionTransfer

KDZOO_API = 1


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    register(SupervisionTransfer)
    register(CrossModalKD)


@hookimpl
def register_datasets(register: Callable[[type], Any]) -> None:
    register(PhoneWatchHAR)
