"""Adversarial distillation: a discriminator, trained beside the student, takes part in the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl
from kdzoo_adversarial.adversarial_logits import AdversarialLogits


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    register(AdversarialLogits)
