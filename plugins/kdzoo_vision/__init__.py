"""Data sets of images, and the small networks that distillation papers are measured on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import ModelFamily, hookimpl


@hookimpl
def register_models(register: Callable[[Any], Any]) -> None:
    from kdzoo_vision import plain_cnn

    register(ModelFamily("plain_cnn", plain_cnn.plain_models, "plain CNNs of 2 to 10 layers"))
    register(ModelFamily("digits_cnn", plain_cnn.digits_models, "tiny CNNs for 8 x 8 digits"))


@hookimpl
def register_datasets(register: Callable[[type], Any]) -> None:
    from kdzoo_vision.digits import Digits

    register(Digits)
