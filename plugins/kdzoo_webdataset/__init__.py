"""Images in tar shards, as the library webdataset writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_datasets(register: Callable[[type], Any]) -> None:
    from kdzoo_webdataset.web_dataset import WebDataset

    register(WebDataset)
