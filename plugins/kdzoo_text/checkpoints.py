"""Where transformers' models and tokenizers are found, and how they are read without noise."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from kdzoo.api import KdzooError
from kdzoo.api.export import quiet_logger


def transformers() -> ModuleType:
    """The library transformers, imported when it is first needed; KdzooError where it is not installed."""
    return _library("transformers")


def tokenizers() -> ModuleType:
    """The library tokenizers, likewise."""
    return _library("tokenizers")


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise KdzooError(f'text needs transformers and tokenizers ({error}); pip install "kdzoo[text]"') from error


def local(name: str) -> Path | None:
    """The folder that ``name`` means: as it is, or below $KDZOO_MODELS; None where there is none."""
    places = [Path(name).expanduser()]
    if os.environ.get("KDZOO_MODELS"):
        places.append(Path(os.environ["KDZOO_MODELS"]).expanduser() / name)
    return next((place for place in places if place.is_dir()), None)


def located(name: str) -> str:
    """What transformers is asked for: a folder where there is one, else the name itself, which the hub may know."""
    found = local(name)
    return name if found is None else str(found)


def not_found(name: str, error: Exception) -> str:
    """What to say when ``name`` could not be read."""
    where = f" in {local(name)}" if local(name) else "; no folder of that name, here or below $KDZOO_MODELS"
    reason = " ".join(str(error).split())[:200]
    return (
        f"'{name}' cannot be read{where}: {type(error).__name__}: {reason}\n  Give a folder in transformers' format, "
        "or a name of the hub where there is a network"
    )


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Keep transformers from printing what is checked here anyway, as a missing classifier or a hub out of reach.

    Its models import torchao where that is installed, which torch warns its developers of.
    """
    logging = transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_logger("torch.utils._pytree"), quiet_logger("huggingface_hub"):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
