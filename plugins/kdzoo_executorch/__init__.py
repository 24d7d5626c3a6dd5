"""Files for ExecuTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_exporters(register: Callable[[type], Any]) -> None:
    from kdzoo_executorch.executorch_file import ExecuTorch

    register(ExecuTorch)
