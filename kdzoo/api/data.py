"""What a plugin that offers data sets may use."""

from kdzoo.contract.classification import NO_LABEL
from kdzoo.contract.extension_points import (
    ArraySplit,
    DataSource,
    DataSplits,
    FileSplit,
    OfferOptions,
    Tokens,
    TokenSplit,
)
from kdzoo.contract.labels import numbered_classes, read_label
from kdzoo.contract.tables import table_rows
from kdzoo.errors import DataError

__all__ = [
    "NO_LABEL",
    "ArraySplit",
    "DataError",
    "DataSource",
    "DataSplits",
    "FileSplit",
    "OfferOptions",
    "TokenSplit",
    "Tokens",
    "numbered_classes",
    "read_label",
    "table_rows",
]
