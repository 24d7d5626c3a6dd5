"""Adversarial distillation: a discriminator is trained with the student and takes part in the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_algorithms(register: Callable[[type], Any]) -> None:
    from kdzoo_adversarial.adversarial_features import AdversarialFeatures
    from kdzoo_adversarial.adversarial_logits import AdversarialLogits
    from kdzoo_adversarial.afd_online import AFDOnline
    from kdzoo_adversarial.gan_augment import GANAugment

    for algorithm in (AdversarialFeatures, AdversarialLogits, AFDOnline, GANAugment):
        register(algorithm)
