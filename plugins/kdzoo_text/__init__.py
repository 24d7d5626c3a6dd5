"""Text: intents and other classes of sentences, and any sequence classifier of transformers as teacher or student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_text.distilbert import DistilBERT

    register(DistilBERT)


@hookimpl
def register_models(register: Callable[[Any], Any]) -> None:
    from kdzoo.api.models import ModelFamily
    from kdzoo_text import classifier

    register(ModelFamily("text", classifier.models, "sequence classifiers of transformers, by checkpoint or size"))


@hookimpl
def register_datasets(register: Callable[[type], Any]) -> None:
    from kdzoo_text.clinc150 import Clinc150
    from kdzoo_text.text_files import TextFiles

    for source in (Clinc150, TextFiles):
        register(source)
