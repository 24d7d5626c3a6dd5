"""When a discriminator has collapsed, and that every algorithm with one says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdzoo_adversarial.adversarial_features import AdversarialFeatures
from kdzoo_adversarial.adversarial_logits import AdversarialLogits
from kdzoo_adversarial.afd_online import AFDOnline
from kdzoo_adversarial.discriminators import collapse, discriminator_accuracy, midpoint, watch
from kdzoo_adversarial.gan_augment import GANAugment

WON = (
    "a discriminator has collapsed: over a whole epoch 'discriminator_accuracy' was 0.99 or more, so it tells the "
    "student from the teacher without fail, and what it teaches is of little use; lower discriminator_lr"
)
DEAD = (
    "a discriminator has collapsed: over a whole epoch 'discriminator_spread' was below 0.01, so it says the same of "
    "the teacher and the student, and teaches nothing; raise discriminator_lr"
)


def told(accuracy: float, spread: float) -> list[str]:
    means = {"discriminator_accuracy": accuracy, "discriminator_spread": spread, "task": 1.0}
    return list(collapse(means, "the teacher", "the student"))


def test_accuracy_by_hand() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([-3.0, -0.5, 1.0, 0.0])
    assert discriminator_accuracy(real, fake).item() == pytest.approx((1 / 2 + 2.5 / 4) / 2)
    assert discriminator_accuracy(real, fake, -2.0).item() == pytest.approx((1 + 1 / 4) / 2)


def test_one_that_says_the_same_of_all_has_an_accuracy_of_one_half_and_no_spread() -> None:
    noted: dict[str, float] = {}
    watch(SimpleNamespace(note=noted.__setitem__), torch.full((3,), 0.5), torch.full((5,), 0.5), 0.5, of="_x")
    assert noted == {"discriminator_accuracy_x": 0.5, "discriminator_spread_x": 0.0}


def test_spread_by_hand_and_without_gradient() -> None:
    noted: dict[str, torch.Tensor] = {}
    watch(SimpleNamespace(note=noted.__setitem__), torch.ones(2, requires_grad=True), -torch.ones(2))
    assert noted["discriminator_spread"].item() == 1.0
    assert not any(value.requires_grad for value in noted.values())


def test_the_midpoint_lies_between_the_means() -> None:
    assert midpoint(torch.tensor([4.0, 6.0]), torch.tensor([-1.0])).item() == 2.0


def test_a_discriminator_that_is_never_wrong_has_collapsed() -> None:
    assert told(1.0, 3.0) == told(0.99, 3.0) == [WON]


def test_a_discriminator_that_says_the_same_of_everything_has_collapsed() -> None:
    assert told(0.5, 0.0) == told(0.7, 0.0099) == [DEAD]


@pytest.mark.parametrize(("accuracy", "spread"), [(0.98, 3.0), (0.5, 0.5), (0.2, 0.5), (0.75, 0.01)])
def test_one_that_meets_its_match_has_not(accuracy: float, spread: float) -> None:
    assert told(accuracy, spread) == []


@pytest.mark.parametrize("cls", [AdversarialFeatures, AdversarialLogits, GANAugment])
def test_every_algorithm_with_a_discriminator_warns(cls: type) -> None:
    def warnings(accuracy: float, spread: float) -> list[str]:
        means = {"discriminator_accuracy": accuracy, "discriminator_spread": spread}
        return list(cls.warnings(SimpleNamespace(), means))

    assert warnings(0.8, 1.0) == []
    assert "so it tells" in warnings(1.0, 1.0)[0]
    assert "so it says the same" in warnings(0.5, 0.0)[0]


def test_between_peers_each_discriminator_is_judged_by_itself() -> None:
    means = {f"discriminator_accuracy_{name}": 1.0 if name == "peer_0" else 0.8 for name in ("student", "peer_0")}
    means |= {f"discriminator_spread_{name}": 1.0 for name in ("student", "peer_0")}
    assert list(AFDOnline.warnings(SimpleNamespace(names=("student", "peer_0")), means)) == [
        "a discriminator has collapsed: over a whole epoch 'discriminator_accuracy_peer_0' was 0.99 or more, so it "
        "tells the maps of peer_0 from those of student without fail, and what it teaches is of little use; lower "
        "discriminator_lr"
    ]
