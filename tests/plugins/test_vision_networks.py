"""The papers' networks, as timm makes them."""

from __future__ import annotations

import importlib
import inspect

import pytest
import timm
import torch
from torch import nn

from kdzoo.api import ModelSpec
from kdzoo.data.inputs import Pixels
from kdzoo.models.building import build_network
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.weights import count_parameters, load_weights
from kdzoo_vision import register_models
from kdzoo_vision.cifar_resnet import CifarResNet, PadShortcut

FAMILIES = []
register_models(FAMILIES.append)
NAMES = [name for family in FAMILIES for name in family.models]

# Millions of parameters at 100 classes, as the benchmark of Tian et al. (2020) and its followers print them.
PUBLISHED = {
    "cifar_resnet8": 0.08,
    "cifar_resnet14": 0.18,
    "cifar_resnet20": 0.28,
    "cifar_resnet32": 0.47,
    "cifar_resnet44": 0.67,
    "cifar_resnet56": 0.86,
    "cifar_resnet110": 1.74,
    "cifar_resnet8x4": 1.23,
    "cifar_resnet32x4": 7.43,
    "cifar_wrn_16_1": 0.18,
    "cifar_wrn_16_2": 0.70,
    "cifar_wrn_40_1": 0.57,
    "cifar_wrn_40_2": 2.26,
    "cifar_vgg8": 3.97,
    "cifar_vgg13": 9.46,
    "cifar_mobilenet_v2": 0.81,
    "cifar_shuffle_v1": 0.95,
    "cifar_shuffle_v2": 1.36,
}
# At 10 classes with parameter-free shortcuts, as He et al. (2016), table 6, print them.
PAPER = {"cifar_resnet20": 0.27, "cifar_resnet32": 0.46, "cifar_resnet44": 0.66, "cifar_resnet56": 0.85}
SMALL = ["cifar_resnet8", "cifar_wrn_16_1", "cifar_vgg8", "cifar_mobilenet_v2", "cifar_shuffle_v1", "cifar_shuffle_v2"]
SMALL += ["plain_cnn2", "plain_cnn8", "digits_cnn_tiny", "digits_cnn"]


def lively(module: nn.Module) -> nn.Module:
    drawn = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2, generator=drawn)
            part.running_var.uniform_(0.5, 2, generator=drawn)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=drawn)
            nn.init.normal_(part.bias, 0, 0.2, generator=drawn)
    return module.eval()


def pixels(channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_the_catalogue_s_networks_are_there() -> None:
    depths = [8, 14, 20, 26, 32, 44, 56, 110, "8x4", "32x4"]
    wanted = {f"cifar_resnet{depth}" for depth in depths} | {f"cifar_wrn_{d}_{w}" for d in (16, 40) for w in (1, 2)}
    wanted |= {"cifar_vgg8", "cifar_vgg13", "cifar_mobilenet_v2", "cifar_shuffle_v1", "cifar_shuffle_v2"}
    wanted |= {f"plain_cnn{layers}" for layers in (2, 4, 6, 8, 10)}
    wanted |= {"digits_cnn", "digits_cnn_small", "digits_cnn_tiny", "sensor_cnn", "sensor_cnn_small"}
    assert set(NAMES) == wanted
    assert all(timm.is_model(name) for name in NAMES)
    assert not any(timm.is_model_pretrained(name) for name in NAMES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    assert count_parameters(timm.create_model(name, num_classes=100)) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.006)


@pytest.mark.parametrize("name", PAPER)
def test_parameters_with_padded_shortcuts_are_the_paper_s(name: str) -> None:
    model = timm.create_model(name, num_classes=10, shortcut="pad")
    assert count_parameters(model) / 1e6 == pytest.approx(PAPER[name], abs=0.006)


def test_the_tiny_network_for_digits_has_868_parameters() -> None:
    assert count_parameters(timm.create_model("digits_cnn_tiny", num_classes=10, in_chans=1)) == 868


@pytest.mark.parametrize("layers", [2, 4, 6, 8, 10])
def test_plain_networks_have_as_many_layers_as_they_say(layers: int) -> None:
    # The paper counts convolutions up to 8 layers and, at 10, convolutions of the widest; classifiers are not counted.
    model = timm.create_model(f"plain_cnn{layers}")
    assert sum(isinstance(part, nn.Conv2d) for part in model.modules()) == layers


@pytest.mark.parametrize("name", SMALL)
def test_timm_s_interface_is_whole(name: str) -> None:
    model = lively(timm.create_model(name, num_classes=6, in_chans=1))
    inputs = pixels(1)
    logits = model(inputs)
    assert logits.shape == (2, model.num_classes) == (2, 6)
    final = model.forward_features(inputs)
    torch.testing.assert_close(model.forward_head(final), logits)
    embedding = model.forward_head(final, pre_logits=True)
    assert embedding.shape == (2, model.num_features) == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(embedding), logits)

    last, every = model.forward_intermediates(inputs)
    assert torch.equal(last, final)
    assert len(every) == len(model.feature_info)
    for feature, info in zip(every, model.feature_info, strict=True):
        assert feature.shape == (2, info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])
        assert isinstance(model.get_submodule(info["module"]), nn.Module)
    for indices in (1, [0, -1], [1]):
        picked = [every[i] for i in indices] if isinstance(indices, list) else every[-indices:]
        got = model.forward_intermediates(inputs, indices=indices, intermediates_only=True)
        assert all(torch.equal(one, other) for one, other in zip(got, picked, strict=True))
        early = model.forward_intermediates(inputs, indices=indices, intermediates_only=True, stop_early=True)
        assert all(torch.equal(one, other) for one, other in zip(early, picked, strict=True))

    model.reset_classifier(4)
    assert model(inputs).shape == (2, 4)
    model.reset_classifier(0)
    torch.testing.assert_close(model(inputs), embedding)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [8, 28, 33, 64])
def test_any_size_of_image_will_do(name: str, size: int) -> None:
    assert timm.create_model(name, num_classes=3, in_chans=3).eval()(pixels(3, size)).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_first_and_last_layer_are_where_timm_is_told(name: str) -> None:
    model = timm.create_model(name, in_chans=1)
    config = model.default_cfg
    assert model.get_submodule(config["first_conv"]).weight.shape[1] == 1
    assert model.get_submodule(config["classifier"]) is model.get_classifier()


@pytest.mark.parametrize("name", SMALL)
def test_all_that_can_be_trained_is_trained(name: str) -> None:
    model = timm.create_model(name, num_classes=6, in_chans=3)
    model(pixels()).square().mean().backward()
    assert not [key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]


@pytest.mark.parametrize("name", SMALL)
def test_folded_it_answers_alike(name: str) -> None:
    spec = ModelSpec(name)
    inputs = Pixels(3, (32, 32), (0.5,) * 3, (0.2,) * 3)
    network = lively(build_network(spec, inputs=inputs, num_classes=6, seed=0))
    folded = fold_batchnorm(network)
    torch.testing.assert_close(folded(pixels()).logits, network(pixels()).logits, rtol=1e-4, atol=1e-4)
    left = sum(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert left == (7 if name == "cifar_wrn_16_1" else 0)  # those before a convolution cannot be folded


def test_the_padded_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros() -> None:
    x = pixels(3, 5)
    padded = PadShortcut(4, 2)(x)
    assert torch.equal(padded[:, 2:5], x[:, :, ::2, ::2])
    assert not padded[:, :2].any()
    assert not padded[:, 5:].any()


def test_a_residual_block_worked_out_by_hand() -> None:
    model = CifarResNet(8, widths=(1, 1, 1, 1), shortcut="pad", num_classes=2, in_chans=1).eval()
    block = model.layer1[0]
    for conv in (block.conv1, block.conv2):
        nn.init.dirac_(conv.weight)
    block.bn2.bias.data.fill_(-0.5)
    x = torch.full((1, 1, 2, 2), 0.3)
    expected = 0.3 * (1 + 1 / (1 + 1e-5)) - 0.5
    torch.testing.assert_close(block(x), torch.full((1, 1, 2, 2), expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [7, 21])
def test_a_depth_that_does_not_divide_into_stages(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"^depth: {depth}; 6n \+ 2 would be right, e\.g\. 20, 32, 56$"):
        timm.create_model("cifar_resnet20", depth=depth)


def test_weights_of_trained_option_a_networks_fit_strictly(tmp_path) -> None:
    """Key names and shapes as in the .th files of akamaster/pytorch_resnet_cifar10, which have no batch counts."""
    shapes = {"conv1.weight": (16, 3, 3, 3), "linear.weight": (10, 64), "linear.bias": (10,)}
    shapes |= {f"bn1.{part}": (16,) for part in ("weight", "bias", "running_mean", "running_var")}
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(3):
            before = width // 2 if stage > 1 and block == 0 else width
            shapes[f"layer{stage}.{block}.conv1.weight"] = (width, before, 3, 3)
            shapes[f"layer{stage}.{block}.conv2.weight"] = (width, width, 3, 3)
            for norm in ("bn1", "bn2"):
                for part in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"layer{stage}.{block}.{norm}.{part}"] = (width,)
    state = {f"module.{key}": torch.rand(shape) for key, shape in shapes.items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet20.th")
    inputs = Pixels(3, (32, 32), (0.5,) * 3, (0.2,) * 3)
    network = build_network(
        ModelSpec("cifar_resnet20", args={"shortcut": "pad"}), inputs=inputs, num_classes=10, seed=0
    )
    load_weights(network, tmp_path / "resnet20.th")
    assert all(torch.equal(network.model.state_dict()[key], state[f"module.{key}"]) for key in shapes)


def test_every_family_says_its_source() -> None:
    for module in ("cifar_resnet", "cifar_wrn", "cifar_vgg", "cifar_mobilenet", "cifar_shufflenet", "plain_cnn"):
        doc = inspect.getdoc(importlib.import_module(f"kdzoo_vision.{module}")) or ""
        assert "Source: " in doc
        assert "https://" in doc
