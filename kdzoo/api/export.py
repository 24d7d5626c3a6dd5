"""What a plugin that offers export formats, quantizers or trackers may use."""

from kdzoo.contract.extension_points import Exporter, OfferOptions, Quantizer, RunState, TrackedRun, Tracker, Usage
from kdzoo.contract.file_formats import export_errors, sample_code, text_code
from kdzoo.contract.onnx_graph import INPUT_NAME, OUTPUT_NAME, onnx_graph, quantize_onnx
from kdzoo.contract.quiet import quiet_logger, suppress_output
from kdzoo.contract.tracked_values import flat, measured, sealed_files
from kdzoo.errors import ExportError, NeedsError

__all__ = [
    "INPUT_NAME",
    "OUTPUT_NAME",
    "ExportError",
    "Exporter",
    "NeedsError",
    "OfferOptions",
    "Quantizer",
    "RunState",
    "TrackedRun",
    "Tracker",
    "Usage",
    "export_errors",
    "flat",
    "measured",
    "onnx_graph",
    "quantize_onnx",
    "quiet_logger",
    "sample_code",
    "sealed_files",
    "suppress_output",
    "text_code",
]
