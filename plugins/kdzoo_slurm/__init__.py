"""Tasks as jobs of a Slurm cluster that shares a file system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_executors(register: Callable[[type], Any]) -> None:
    from kdzoo_slurm.slurm_executor import SlurmExecutor

    register(SlurmExecutor)
