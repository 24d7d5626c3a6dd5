"""What a plugin that offers export formats, quantizers or trackers may use."""

from kdzoo.contract.extension_points import Exporter, OfferOptions, Quantizer, Tracker, Usage
from kdzoo.contract.quiet import quiet_logger
from kdzoo.errors import ExportError

__all__ = [
    "ExportError",
    "Exporter",
    "OfferOptions",
    "Quantizer",
    "Tracker",
    "Usage",
    "quiet_logger",
]
