"""Files for OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_exporters(register: Callable[[type], Any]) -> None:
    from kdzoo_openvino.openvino_file import OpenVino

    register(OpenVino)
