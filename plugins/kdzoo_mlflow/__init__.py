"""Tracking with MLflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_trackers(register: Callable[[type], Any]) -> None:
    from kdzoo_mlflow.mlflow_tracker import MLflow

    register(MLflow)
