"""Tracking with TensorBoard."""

from __future__ import annotations

from kdzoo.api import hookimpl


@hookimpl
def register_trackers(register):
    from kdzoo_tensorboard.tensorboard import TensorBoard

    register(TensorBoard)
