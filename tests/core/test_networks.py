"""A network of one's own on the shared base: what timm then makes of it, and what it says no to."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from kdzoo.contract.networks import StagedNet, he_normal, network_cfgs, register_networks


class Toy(StagedNet):
    """Two convolutions after a doubling of the pixels' values; what leaves the last is halved."""

    def __init__(self, width: int, num_classes: int = 5, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.stage1 = nn.Conv2d(in_chans, width, 3, padding=1)
        self.stage2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.finish([("stage1", width, 1), ("stage2", 2 * width, 2)], 2 * width, num_classes, drop_rate=drop_rate)
        he_normal(self)

    def enter(self, x: Tensor) -> Tensor:
        return 2 * x

    def leave(self, x: Tensor) -> Tensor:
        return x / 2


VARIANTS = {"toy_of_the_tests": {"width": 4}}
default_cfgs = network_cfgs(VARIANTS, size=8, channels=3, classes=5, first_conv="stage1")
models = register_networks(Toy, VARIANTS)


def toy() -> Toy:
    torch.manual_seed(0)
    return timm.create_model("toy_of_the_tests").eval()


def test_timm_makes_it_and_knows_its_inputs_and_levels() -> None:
    network = toy()
    assert models == ("toy_of_the_tests",)
    assert (network.default_cfg["input_size"], network.default_cfg["num_classes"]) == ((3, 8, 8), 5)
    assert [(info["num_chs"], info["reduction"]) for info in network.feature_info] == [(4, 1), (8, 2)]
    assert network.num_features == 8


def test_its_parts_make_up_the_whole() -> None:
    network, pixels = toy(), torch.rand(2, 3, 8, 8)
    final, (first, second) = network.forward_intermediates(pixels)
    torch.testing.assert_close(first, network.stage1(2 * pixels))
    torch.testing.assert_close(final, second / 2)
    embedding = network.forward_head(final, pre_logits=True)
    torch.testing.assert_close(embedding, final.mean(dim=(2, 3)))
    torch.testing.assert_close(network.linear(embedding), network(pixels))


def test_levels_are_chosen_and_what_lies_behind_them_is_left_out() -> None:
    network, pixels = toy(), torch.rand(2, 3, 8, 8)
    network.stage2.register_forward_pre_hook(lambda module, given: (_ for _ in ()).throw(AssertionError("was run")))
    (only,) = network.forward_intermediates(pixels, indices=[0], stop_early=True, intermediates_only=True)
    assert only.shape == (2, 4, 8, 8)


def test_a_classifier_starts_anew_or_is_left_out() -> None:
    network, pixels = toy(), torch.rand(2, 3, 8, 8)
    network.reset_classifier(7)
    assert network(pixels).shape == (2, 7)
    network.reset_classifier(0)
    assert network(pixels).shape == (2, 8)
