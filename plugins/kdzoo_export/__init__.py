"""Export formats."""

from __future__ import annotations

from kdzoo.api import hookimpl


@hookimpl
def register_exporters(register):
    from kdzoo_export.onnx_file import Onnx

    register(Onnx)
