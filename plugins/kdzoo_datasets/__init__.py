"""Images in data sets that the library datasets reads: local ones and those of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_datasets(register: Callable[[type], Any]) -> None:
    from kdzoo_datasets.hf_dataset import HFDataset

    register(HFDataset)
