"""Cross-modal distillation: a network for one modality teaches a network for another one of the same scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_cross_modal.cross_modal_kd import CrossModalKD
    from kdzoo_cross_modal.supervision_transfer import SupervisionTransfer

    for algorithm in (CrossModalKD, SupervisionTransfer):
        register(algorithm)


@hookimpl
def register_datasets(register: Callable[[type], Any]) -> None:
    from kdzoo_cross_modal.phone_watch_har import PhoneWatchHAR

    register(PhoneWatchHAR)
