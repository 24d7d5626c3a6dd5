"""Networks round plain timm models: built, loaded, paired, folded, hashed."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Pixels
from kdzoo.errors import ModelError, NeedsError, UnknownName
from kdzoo.models import building
from kdzoo.models import network as network_module
from kdzoo.models.building import build_network
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.levels import pair_levels, shapes_of
from kdzoo.models.network import Network, freeze
from kdzoo.models.weight_files import read_weights
from kdzoo.models.weights import count_parameters, load_weights, weights_sha256

CONVNETS = ("test_resnet", "test_efficientnet", "test_convnext")
KINDS = (*CONVNETS, "test_vit")
PIXELS = Pixels(3, (32, 32), (0.5,) * 3, (0.25,) * 3)


def network(name: str = "test_resnet", weights: str = "train", **changes: Any) -> Network:
    of_spec = {key: changes.pop(key) for key in ("args", "mean", "std") if key in changes}
    form = {"channels": 3, "size": (32, 32), "data_mean": (0.5,) * 3, "data_std": (0.25,) * 3}
    inputs = Pixels(*(changes.pop(key, default) for key, default in form.items()))
    return build_network(ModelSpec(name, weights, **of_spec), inputs=inputs, **{"num_classes": 7, "seed": 0, **changes})


def lively(module: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics, and every weight left at zero a value: fresh timm networks hide mistakes."""
    drawn = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2, generator=drawn)
            part.running_var.uniform_(0.5, 2, generator=drawn)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=drawn)
            nn.init.normal_(part.bias, 0, 0.2, generator=drawn)
    return module


def pixels(samples: int = 3, channels: int = 3, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.rand(samples, channels, *size, generator=torch.Generator().manual_seed(2))


# --- the network ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_levels_and_embedding_change_no_logit(name: str) -> None:
    net = lively(network(name)).eval()
    plain = net.model(net.preprocess(pixels()))
    whole = net(pixels(), levels=range(len(net.levels)), pre_logits=True)
    torch.testing.assert_close(net(pixels()).logits, plain)
    torch.testing.assert_close(whole.logits, plain)
    torch.testing.assert_close(net.model.get_classifier()(whole.pre_logits), plain)
    assert whole.pre_logits.shape == (3, net.pre_logits_width)
    for level, feature in zip(net.levels, whole.features, strict=True):
        assert feature.shape == (3, level.channels, level.height, level.width)


def test_levels_come_in_the_order_that_is_asked_for() -> None:
    net = lively(network()).eval()
    every = net(pixels(), levels=range(5)).features
    assert all(torch.equal(a, every[i]) for i, a in zip((4, 1), net(pixels(), levels=(4, 1)).features, strict=True))


def test_levels_say_name_channels_size_and_stride() -> None:
    levels = [(v.name, v.channels, v.height, v.width, v.stride) for v in network(size=(64, 32)).levels]
    assert levels == [
        ("act1", 32, 32, 16, 2),
        ("layer1", 32, 16, 8, 4),
        ("layer2", 48, 8, 4, 8),
        ("layer3", 192, 4, 2, 16),
        ("layer4", 96, 2, 1, 32),
    ]


def test_strides_hold_where_maps_collapse_to_one_pixel() -> None:
    levels = network(size=(8, 8)).levels
    assert [(level.height, level.stride) for level in levels] == [(4, 2), (2, 4), (1, 8), (1, 16), (1, 32)]


def test_convolutions_that_step_over_their_whole_map_are_named() -> None:
    assert network(size=(32, 32)).overstrided == ()
    assert network(size=(8, 8)).overstrided == ("layer3.0.conv2", "layer4.0.conv1")


def test_tokens_are_levels_on_a_grid() -> None:
    levels = network("test_vit", size=(64, 64)).levels
    assert {(level.channels, level.height, level.width, level.stride) for level in levels} == {(64, 4, 4, 16)}
    assert len(levels) == 6


def test_pixels_are_normalised_with_the_network_s_own_numbers() -> None:
    net = network(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    assert (net.mean, net.std) == ((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    prepared = net.preprocess(torch.full((1, 3, 32, 32), 0.6))
    torch.testing.assert_close(prepared[0, :, 5, 7], torch.tensor([1.0, 0.4, 0.15]))
    assert network().mean == (0.5, 0.5, 0.5)


def test_pixels_are_resized_only_to_another_size() -> None:
    net = network(size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert torch.equal(net.preprocess(pixels(size=(16, 16))), pixels(size=(16, 16)))
    halved = net.preprocess(pixels())
    assert halved.shape == (3, 3, 16, 16)
    torch.testing.assert_close(halved.mean((2, 3)), pixels().mean((2, 3)), atol=0.02, rtol=0)


def test_grey_images_go_into_one_channel_or_three_equal_ones() -> None:
    grey = {"channels": 1, "data_mean": (0.4,), "data_std": (0.2,)}
    fresh = network(**grey)
    assert fresh.create_args["in_chans"] == 1
    assert fresh.preprocess(pixels(channels=1)).shape[1] == 1
    wide = network(args={"in_chans": 3}, **grey)
    prepared = wide.preprocess(pixels(channels=1))
    assert (wide.mean, prepared.shape[1]) == ((0.4,) * 3, 3)
    assert torch.equal(prepared[:, 0], prepared[:, 2])
    assert wide(pixels(channels=1)).logits.shape == (3, 7)


def test_macs_and_parameters_are_those_of_the_plain_model() -> None:
    net = network("test_vit")
    assert count_parameters(net) == sum(p.numel() for p in net.model.parameters())
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
    settings = {"inputs": Pixels(3, (6, 5), (0.0,) * 3, (1.0,) * 3), "num_classes": 7}
    assert Network(model, ModelSpec("own"), **settings, create_args={}).macs == 3 * 9 * 8 * 6 * 5 + 8 * 7


def test_macs_are_counted_where_a_parameter_is_an_argument() -> None:
    assert network("pit_ti_224").macs > 0


def test_a_model_without_levels_still_answers() -> None:
    settings = {"inputs": Pixels(3, (6, 5), (0.0,) * 3, (1.0,) * 3), "num_classes": 7}
    bare = Network(nn.Sequential(nn.Flatten(), nn.Linear(90, 7)), ModelSpec("bare"), **settings, create_args={})
    assert (bare.levels, bare(pixels(size=(6, 5))).logits.shape) == ((), (3, 7))
    with pytest.raises(NeedsError) as caught:
        pair_levels(network(), [bare])
    assert str(caught.value) == (
        "model 'bare': has no features to pair, as it offers no forward_intermediates; choose another model, or an "
        "algorithm that reads logits only"
    )


# --- building -------------------------------------------------------------------------------


def test_the_seed_decides_the_weights_and_the_global_state_does_not() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights_sha256(network().model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert weights_sha256(network().model) == first
    assert weights_sha256(network(seed=1).model) != first


@pytest.mark.parametrize("name", KINDS)
def test_timm_alone_rebuilds_what_was_built(name: str) -> None:
    net = lively(network(name)).eval()
    args = json.loads(json.dumps(net.create_args))
    rebuilt = timm.create_model(name, **args).eval()
    rebuilt.load_state_dict(net.model.state_dict(), strict=True)
    assert torch.equal(rebuilt(net.preprocess(pixels())), net(pixels()).logits)


def test_arguments_of_a_recipe_may_be_lists() -> None:
    net = network(args={"channels": [8, 8, 8, 16], "stem_width": 8, "zero_init_last": False})
    assert [level.channels for level in net.levels] == [16, 8, 8, 32, 16]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        network("test_resnt")
    assert str(caught.value) == (
        f"unknown model 'test_resnt'; did you mean 'test_resnet'?; known: {len(timm.list_models())} networks of timm "
        "and of the plugins, see kdzoo list models"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"args": {"num_classes": 3}}, "args may not hold 'num_classes'; the data set says how many classes there are"),
        ({"args": {"pretrained": True}}, "args may not hold 'pretrained'; say weights: pretrained"),
        ({"args": {"in_chans": 4}}, "takes 4 channels, the data has 3; leave out in_chans"),
        ({"mean": (0.1, 0.2), "std": (1.0, 1.0)}, "takes 3 channels, its mean has 2 numbers and its std 2"),
    ],
)
def test_what_a_network_cannot_be_told(changes: dict, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        network(**changes)
    assert str(caught.value) == f"model 'test_resnet': {text}"


@pytest.mark.parametrize(
    ("name", "changes", "start"),
    [
        (
            "test_resnet",
            {"args": {"depht": 3}},
            "model 'test_resnet': cannot be built with in_chans=3, depht=3, num_classes=7: TypeError: ",
        ),
        ("test_resnet.no_such", {}, "model 'test_resnet.no_such': Invalid pretrained tag (no_such) for test_resnet."),
        (
            "vit_tiny_patch16_224",
            {"args": {"img_size": 48, "depth": 1}},
            "model 'vit_tiny_patch16_224': does not run on inputs of 3 x 32 x 32: AssertionError: ",
        ),
    ],
)
def test_what_timm_refuses_is_a_model_error(name: str, changes: dict, start: str) -> None:
    with pytest.raises(ModelError) as caught:
        network(name, **changes)
    assert str(caught.value).startswith(start)


# --- weights --------------------------------------------------------------------------------


def test_weights_from_a_file(tmp_path: Path) -> None:
    saved = lively(network(seed=5)).model.state_dict()
    for suffix, prefix in ((".safetensors", ""), (".pt", "module."), (".pth", "_orig_mod."), (".th", "")):
        path = tmp_path / f"weights{suffix}"
        content = {prefix + key: value for key, value in saved.items()}
        save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
        assert weights_sha256(network(weights=str(path)).model) == weights_sha256(lively(network(seed=5)).model)
    assert weights_sha256(network(weights=str(path), load=False).model) == weights_sha256(network().model)


def tensors(value: float, prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}fc.weight": torch.full((2, 3), value), f"{prefix}fc.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("content", "key", "prefix"),
    [
        (tensors(1), "", ""),
        ({"state_dict": tensors(1), "epoch": 3}, "state_dict", ""),
        ({"state_dict": tensors(0), "state_dict_ema": tensors(1, "module.")}, "state_dict_ema", "module."),
        ({"model": tensors(0), "model_ema": tensors(1)}, "model_ema", ""),
        ({"model_ema": None, "model": tensors(1, "_orig_mod.module.")}, "model", "_orig_mod.module."),
        ({"net": tensors(1, "module._orig_mod."), "acc": 91.2}, "net", "module._orig_mod."),
        ({"state_dict": {"model": tensors(1)}}, "state_dict.model", ""),
        ({**tensors(1, "module."), "n_averaged": torch.tensor(7)}, "", "module."),
    ],
)
def test_weights_are_found_where_training_scripts_put_them(content: Any, key: str, prefix: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth.tar")
    read = read_weights(tmp_path / "weights.pth.tar")
    assert (read.key, read.prefix) == (key, prefix)
    assert {name: value.sum().item() for name, value in read.tensors.items()} == {"fc.weight": 6, "fc.bias": 0}


def test_the_recipe_chooses_among_the_weights_of_a_file(tmp_path: Path) -> None:
    path, own = tmp_path / "weights.pth", network(seed=5).model.state_dict()
    averaged = network(seed=6).model.state_dict()
    content = {"state_dict": own, "state_dict_ema": averaged, "args": argparse.Namespace(lr=0.1), "metric": 71.25}
    torch.save(content, path)
    for key, saved, stated in ((None, averaged, ", 71.25 % stated by weights.pth"), ("state_dict", own, "")):
        net = build_network(ModelSpec("test_resnet", str(path), weights_key=key), inputs=PIXELS, num_classes=7, seed=0)
        assert torch.equal(net.model.state_dict()["fc.weight"], saved["fc.weight"])
        assert net.read_from is not None
        assert net.read_from.sentence() == f"weights.pth, its '{key or 'state_dict_ema'}'{stated}"
    with pytest.raises(ModelError) as caught:
        read_weights(path, "state_dct")
    assert str(caught.value) == (
        f"{path}: holds no weights below 'state_dct'; did you mean 'state_dict'? known: state_dict, state_dict_ema"
    )
    torch.save({"student": own, "epoch": 1}, path)
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    assert str(caught.value) == f"{path}: holds weights below student; say which: weights_key: student"


@pytest.mark.parametrize(
    ("beside", "top1"),
    [
        ({"metric": 81.25, "args": argparse.Namespace(eval_metric="top1")}, 81.25),
        ({"metric": np.float64(81.25)}, 81.25),
        ({"best_acc1": torch.tensor(70.5)}, 70.5),
        ({"acc": 0.705}, 70.5),
        ({"metric": 0.9, "args": argparse.Namespace(eval_metric="loss")}, None),
        ({"metric": float("nan"), "best_acc": 1000, "acc": True}, None),
        ({}, None),
    ],
)
def test_the_accuracy_that_a_file_states_is_read(beside: dict[str, Any], top1: float | None, tmp_path: Path) -> None:
    torch.save({"arch": "resnet18", "state_dict": tensors(1), **beside}, tmp_path / "best.pth.tar")
    read = read_weights(tmp_path / "best.pth.tar")
    assert (read.top1_percent, read.architecture) == (top1, "resnet18")


def test_the_accuracy_that_a_model_card_states_is_read(tmp_path: Path) -> None:
    path, card = tmp_path / "model.safetensors", tmp_path / "README.md"
    save_file(tensors(1), path)
    assert read_weights(path).top1_percent is None
    metrics = "[{type: f1, value: 0.5}, {type: accuracy, value: 0.815}]"
    card.write_text(f"---\nmodel-index: [{{name: x, results: [{{metrics: {metrics}}}]}}]\n---\n# A card\n")
    assert (read_weights(path).top1_percent, read_weights(path).stated_by) == (81.5, "README.md")
    for odd in ("no card", "---\nmodel-index: 3\n---\n", "---\n- a\n---\n", "---\n{\n---\n", "\xff"):
        card.write_bytes(odd.encode("latin-1"))
        assert read_weights(path).top1_percent is None


class Settings:
    """What a training script of its own saves with the weights."""

    def __init__(self) -> None:
        self.lr = 0.1


class SettingsDict(dict[str, float]):
    """As Lightning and others save hyper-parameters."""


def test_objects_of_other_classes_are_left_out_without_touching_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"settings": Settings(), "hparams": SettingsDict(lr=0.1), "sums": collections.defaultdict(int, a=1)}
    kept |= {
        "when": datetime.datetime(2026, 1, 2),
        "loss": nn.CrossEntropyLoss(),
        "where": tmp_path,
        "form": torch.float16,
        "saved": np.arange(3.0)[1],
    }
    torch.save({"state_dict": tensors(1), **kept}, tmp_path / "best.pth")
    monkeypatch.setattr(Settings, "__init__", lambda self: pytest.fail("called"))
    monkeypatch.setattr(Settings, "__new__", lambda *args: pytest.fail("called"))
    assert list(read_weights(tmp_path / "best.pth").tensors) == ["fc.weight", "fc.bias"]


def test_files_from_before_batchnorm_counted_its_batches(tmp_path: Path) -> None:
    saved = {k: v for k, v in network(seed=5).model.state_dict().items() if "num_batches_tracked" not in k}
    torch.save(saved, tmp_path / "old.th")
    assert weights_sha256(network(weights=str(tmp_path / "old.th")).model) == weights_sha256(network(seed=5).model)


def test_differences_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    saved = network("test_resnet", num_classes=9, seed=5).model.state_dict()
    for i in range(7):
        saved[f"head.{i}"] = torch.zeros(1)
    del saved["conv1.0.weight"]
    path = tmp_path / "other.safetensors"
    save_file(saved, path)
    net = network()
    before = weights_sha256(net.model)
    with pytest.raises(ModelError) as caught:
        load_weights(net, path)
    assert str(caught.value) == (
        f"{path}: not weights of 'test_resnet' with 7 classes\n"
        "  classes: 9 in the file, 7 in the data; a teacher must be trained for the data's classes\n"
        "  missing: conv1.0.weight\n"
        "  unexpected: head.0, head.1, head.2, head.3, head.4 and 2 more\n"
        "  other shape: fc.weight (9, 96), the model's (7, 96), fc.bias (9,), the model's (7,)"
    )
    assert weights_sha256(net.model) == before


def test_why_weights_do_not_fit_is_said(tmp_path: Path) -> None:
    def reasons(name: str, content: Any) -> list[str]:
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError) as caught:
            network(weights=str(tmp_path / name))
        return str(caught.value).split("\n")[1:]

    grey = network(num_classes=5, channels=1, data_mean=(0.5,), data_std=(0.2,)).model.state_dict()
    assert reasons("grey.pth", {"arch": "test_resnet", "model": grey})[:2] == [
        "  classes: 5 in the file, 7 in the data; a teacher must be trained for the data's classes",
        "  channels: 1 in the file, 3 in the model; args: {in_chans: 1} would be right",
    ]
    lightning = {f"model.{name}": value for name, value in network().model.state_dict().items()}
    assert reasons("last.ckpt", {"state_dict": lightning, "pytorch-lightning_version": "2.5"})[0] == (
        "  names: each begins with 'model.', as in a Lightning checkpoint; save "
        "{name.removeprefix('model.'): tensor for name, tensor in state_dict.items()} instead"
    )
    assert reasons("other.pth", {"arch": "resnet50", "state_dict": tensors(1)})[0] == (
        "  model: the file says that it holds 'resnet50'"
    )


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    saved = network().model.state_dict()
    saved["fc.bias"] = torch.full((7,), torch.nan)
    save_file(saved, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError) as caught:
        network(weights=str(tmp_path / "nan.safetensors"))
    assert str(caught.value) == f"{tmp_path / 'nan.safetensors'}: weights that are not finite: fc.bias"


def test_an_input_that_the_memory_cannot_hold_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "memory_bytes", lambda: 16 * 2**30)
    with pytest.raises(ModelError) as caught:
        build_network(ModelSpec("test_resnet", size=16384), inputs=PIXELS, num_classes=7, seed=0)
    assert str(caught.value) == (
        "model 'test_resnet': one input of 3 x 16384 x 16384 takes 3 GiB, and its maps at least 16 times that; this "
        "machine has 16 GiB; choose a smaller size"
    )
    monkeypatch.setattr(building, "memory_bytes", lambda: 16 * 4 * 3 * 32 * 32)
    assert build_network(ModelSpec("test_resnet"), inputs=PIXELS, num_classes=7, seed=0).size == (32, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight.to_sparse(), "fc.weight, which is sparse, quantized or has no content"),
        (lambda weight: weight.long(), "fc.weight, torch.int64, the model's torch.float32"),
        (lambda weight: weight.to(torch.complex64), "fc.weight, torch.complex64, the model's torch.float32"),
    ],
)
def test_weights_of_another_type_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    path, saved = tmp_path / "weights.pt", network().model.state_dict()
    torch.save({**saved, "fc.weight": change(saved["fc.weight"])}, path)
    with pytest.raises(ModelError) as caught:
        network(weights=str(path))
    assert str(caught.value) == f"{path}: weights of another type: {words}"
    torch.save({**saved, "fc.weight": saved["fc.weight"].half()}, path)
    assert network(weights=str(path)).model.fc.weight.dtype == torch.float32


def test_what_timm_s_own_script_writes_is_read(tmp_path: Path) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV3

    saved = network(seed=5).model
    averaged = ModelEmaV3(saved, decay=0.0)
    averaged.update(network(seed=6).model)
    settings = argparse.Namespace(model="test_resnet", lr=0.1, opt="sgd", eval_metric="top1", data_dir=tmp_path)
    optimizer = torch.optim.SGD(saved.parameters(), momentum=0.9)
    saver = CheckpointSaver(saved, optimizer, settings, averaged, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3, metric=np.float64(62.5))
    net = network(weights=str(tmp_path / "model_best.pth.tar"))
    assert weights_sha256(net.model) == weights_sha256(averaged.module) != weights_sha256(saved)
    assert net.read_from is not None
    assert (net.read_from.architecture, net.read_from.top1_percent) == ("test_resnet", 62.5)


class Payload:
    """Pickles as a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "weights.pt"
    torch.save({"state_dict": Payload(marker)}, path)
    with pytest.raises(ModelError) as caught:
        network(weights=str(path))
    assert str(caught.value) == (
        f"{path}: holds more than tensors (posix.system), so it could run code and was not read; save "
        "model.state_dict() instead"
    )
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the payload is a real one
    assert marker.exists()


def saved_bytes(content: Any) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    def refusal(name: str, content: object) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ModelError) as caught:
            network(weights=str(path))
        return str(caught.value).removeprefix(f"{path}: ")

    assert refusal("none.pt", None) == (
        "no such file of weights; weights are train, pretrained, hf-hub:<name> or a file"
    )
    assert refusal("cut.safetensors", b"\x08\0\0").startswith("cannot be read as weights: ")
    assert refusal("empty.pt", b"").startswith("cannot be read as weights: ")
    neither = "cannot be read as weights: neither torch.save nor safetensors writes such a file"
    assert refusal("notes.pth", b"lr 0.1, epoch 3") == neither
    archive = bytearray(saved_bytes({"a": torch.zeros(1)}))
    spans = archive.rindex(b"PK\x06\x07")  # where an archive says on how many disks it is
    archive[spans + 16] = 9
    assert refusal("disks.pth", bytes(archive)).startswith("cannot be read as weights: ")
    assert refusal("list.pt", [torch.zeros(1)]) == "holds no tensors by name; model.state_dict() would be right"
    assert refusal("x" * 300 + ".pt", None).startswith("no such file of weights")
    assert refusal("mixed.pt", {"a": 1}) == "holds no tensors by name; model.state_dict() would be right"
    right = "torch.save(model.state_dict(), 'weights.pth') of the model that it was made from would be right"
    assert refusal("whole.pth", {"model": nn.Sequential(nn.Linear(2, 2))}) == (
        "holds a whole pickled model (torch.nn.modules.container.Sequential), which only code can open; "
        "torch.save(model.state_dict(), 'weights.pth') would be right"
    )
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "traced.bin"))
    script = (tmp_path / "traced.bin").read_bytes()
    assert refusal("script.pt", script) == f"is a TorchScript file, a program with weights inside; {right}"
    assert refusal("net.onnx", b"\x08\x08") == f"is an ONNX file, which cannot be trained or taught from; {right}"
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    assert refusal("lfs.pth", pointer) == ("is a pointer of Git LFS, not the file itself; fetch it with git lfs pull")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"")
    assert refusal("hub", None) == (
        f"is a folder; weights are a file; {tmp_path / 'hub' / 'model.safetensors'} may be right"
    )


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache in a folder, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def published(cache: Path, name: str = "someone/net") -> dict[str, torch.Tensor]:
    """Put a network of 5 classes into the hub's cache, as a download leaves it there."""
    model = lively(timm.create_model("test_resnet", num_classes=5, stem_width=8))
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    config = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "fixed_input_size": False}
    config |= {"first_conv": "conv1.0", "classifier": "fc"}
    described = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": config}
    (snapshot / "config.json").write_text(json.dumps({**described, "model_args": {"stem_width": 8}}))
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return model.state_dict()


def test_weights_from_the_hub_bring_arguments_and_normalisation(offline_hub: Path) -> None:
    saved = published(offline_hub)
    net = network(weights="hf-hub:someone/net", num_classes=5)
    assert all(torch.equal(value, saved[key]) for key, value in net.model.state_dict().items())
    assert (net.mean, net.std, net.fresh_head) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), False)
    assert net.create_args["stem_width"] == 8
    bare = network(weights="hf-hub:someone/net", num_classes=5, load=False)
    assert (bare.mean, bare.create_args) == (net.mean, net.create_args)
    assert weights_sha256(bare.model) != weights_sha256(net.model)


def test_ready_weights_of_other_classes_get_a_fresh_head_and_see_grey_in_colour(offline_hub: Path) -> None:
    saved = published(offline_hub)
    net = network(weights="hf-hub:someone/net", channels=1, data_mean=(0.5,), data_std=(0.5,))
    assert net.fresh_head
    assert torch.equal(net.model.state_dict()["conv1.0.weight"], saved["conv1.0.weight"])
    assert (net.mean, net(pixels(channels=1)).logits.shape) == ((0.1, 0.2, 0.3), (3, 7))
    assert network(weights="hf-hub:someone/net", mean=(0.5,) * 3, std=(0.5,) * 3).mean == (0.5,) * 3


def test_the_hub_s_network_must_be_the_one_that_is_named(offline_hub: Path) -> None:
    published(offline_hub)
    with pytest.raises(ModelError) as caught:
        network("test_vit", weights="hf-hub:someone/net")
    assert str(caught.value) == (
        "model 'test_vit': 'hf-hub:someone/net' holds weights of another; name: test_resnet would be right"
    )


@pytest.mark.parametrize("weights", ["hf-hub:someone/absent", "pretrained"])
def test_without_network_the_ways_out_are_named(offline_hub: Path, weights: str) -> None:
    with pytest.raises(ModelError) as caught:
        network(weights=weights)
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"model 'test_resnet': no weights from '{weights}': ")
    assert second == (
        "  Fetch them once where there is a network (they stay in the cache), or give a file: weights: "
        "<path>.safetensors"
    )


def test_pretrained_is_timm_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models import _registry

    saved = lively(timm.create_model("test_resnet", num_classes=7)).state_dict()
    torch.save(saved, tmp_path / "weights.pth")
    config = copy.deepcopy(_registry._model_pretrained_cfgs["test_resnet"])
    config.file, config.hf_hub_id, config.num_classes = str(tmp_path / "weights.pth"), None, 7
    monkeypatch.setitem(_registry._model_pretrained_cfgs, "test_resnet", config)
    monkeypatch.setitem(_registry._model_default_cfgs["test_resnet"].cfgs, "r160_in1k", config)
    net = network(weights="pretrained")
    assert all(torch.equal(value, saved[key]) for key, value in net.model.state_dict().items())
    assert (net.mean, net.std) == (config.mean, config.std)


# --- out again ------------------------------------------------------------------------------


def test_the_hash_sees_every_bit_and_no_layout() -> None:
    net = network()
    first = weights_sha256(net.model)
    assert weights_sha256(copy.deepcopy(net.model).to(memory_format=torch.channels_last)) == first
    for key, value in net.model.state_dict().items():
        if key in ("fc.bias", "layer1.0.bn1.running_mean", "layer1.0.bn1.num_batches_tracked"):
            kept = value.clone()
            value.reshape(-1).view(torch.uint8)[0] ^= 1
            assert weights_sha256(net.model) != first, key
            value.copy_(kept)
    assert weights_sha256(net.model) == first
    assert len(weights_sha256(net.model.bfloat16())) == 64


# --- pairing --------------------------------------------------------------------------------


def test_convnets_are_paired_by_stride() -> None:
    student, teacher = network("test_convnext"), network("test_resnet")
    pairing = pair_levels(student, [teacher])
    assert pairing.describe() == [
        "stride 4: stages.0 (24, 8, 8) <- layer1 (32, 8, 8)",
        "stride 8: stages.1 (32, 4, 4) <- layer2 (48, 4, 4)",
        "stride 16: stages.2 (48, 2, 2) <- layer3 (192, 2, 2)",
        "stride 32: stages.3 (64, 1, 1) <- layer4 (96, 1, 1)",
    ]
    assert pairing.indices == ((0, 1, 2, 3), (1, 2, 3, 4))
    features = teacher(pixels(), levels=pairing.indices[1]).features
    assert [f.shape[1] for f in features] == [level.channels for level in pairing.levels[1]]


def test_a_convnet_learns_from_a_transformer_by_depth() -> None:
    pairing = pair_levels(network("test_resnet"), [network("test_vit")])
    assert pairing.describe() == [
        "by depth: act1 (32, 16, 16) <- blocks.0 (64, 2, 2)",
        "by depth: layer1 (32, 8, 8) <- blocks.2 (64, 2, 2)",
        "by depth: layer2 (48, 4, 4) <- blocks.3 (64, 2, 2)",
        "by depth: layer4 (96, 1, 1) <- blocks.5 (64, 2, 2)",
    ]


def test_a_transformer_learns_from_a_convnet_and_a_transformer() -> None:
    pairing = pair_levels(network("test_vit"), [network("test_resnet"), network("test_vit")])
    assert pairing.indices[0] == pairing.indices[2]
    assert len(pairing.indices[1]) == 4
    assert pairing.indices[1][-1] == 4
    assert pairing.describe()[-1] == "by depth: blocks.5 (64, 2, 2) <- layer4 (96, 1, 1) <- blocks.5 (64, 2, 2)"


def test_a_network_alone_has_all_its_strides() -> None:
    assert pair_levels(network(), []).indices == ((0, 1, 2, 3, 4),)


def test_shapes_are_those_of_the_paired_levels() -> None:
    student, teacher, peer = network("test_convnext"), network(), network()
    pairing = pair_levels(student, [teacher, peer])
    shapes = shapes_of(student, [teacher], [peer], pairing, 100, (3, 32, 32))
    assert shapes.student.levels == student.levels
    assert shapes.teacher.levels == shapes.peers[0].levels == teacher.levels[1:]
    assert (shapes.student.pre_logits, shapes.teacher.pre_logits, shapes.num_classes) == (64, 96, 7)
    assert (shapes.num_samples, shapes.image) == (100, (3, 32, 32))
    assert [(of.mean, of.std) for of in (shapes.student, shapes.teacher, shapes.peers[0])] == [
        (of.mean, of.std) for of in (student, teacher, peer)
    ]
    assert shapes_of(student, [teacher], [], None, 0, (3, 32, 32)).student.levels == ()


# --- folding --------------------------------------------------------------------------------


def batchnorms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_batchnorm_folds_into_convolutions_and_changes_no_answer(name: str) -> None:
    net = lively(network(name))
    before = weights_sha256(net.model)
    folded = fold_batchnorm(net)
    assert batchnorms(folded) == 0 < batchnorms(net)
    assert (weights_sha256(net.model), net.training, folded.training) == (before, True, False)
    net.eval()
    levels = range(len(net.levels))
    one, other = (n(pixels(), levels=levels, pre_logits=True) for n in (net, folded))
    torch.testing.assert_close(other.logits, one.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.pre_logits, one.pre_logits, rtol=1e-4, atol=1e-5)
    for a, b in zip(one.features, other.features, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


class Branching(nn.Module):
    """A BatchNorm that shares its convolution's output, two that do not, and a convolution that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.alone, self.twice = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm_shared, self.norm_alone, self.norm_twice = (nn.BatchNorm2d(3) for _ in range(3))
        self.fc = nn.Linear(3, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.shared(x)
        out = self.norm_shared(out) + out
        out = self.norm_alone(self.alone(out)).relu()
        out = self.norm_twice(self.twice(out)) + self.twice(x)
        return self.fc(out.mean((2, 3)))


def test_only_a_batchnorm_that_alone_takes_a_convolution_s_output_is_folded() -> None:
    settings = {"inputs": Pixels(3, (6, 5), (0.0,) * 3, (1.0,) * 3), "num_classes": 7}
    net = lively(Network(Branching(), ModelSpec("own"), **settings, create_args={}))
    folded = fold_batchnorm(net)
    left = [name for name, part in folded.model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert left == ["norm_shared", "norm_twice"]
    torch.testing.assert_close(folded(pixels(size=(6, 5))).logits, net.eval()(pixels(size=(6, 5))).logits)


def test_what_does_not_answer_alike_is_left_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdzoo.models.folding.same", lambda values, expected: values.dim() != 2)
    net = lively(network())
    assert batchnorms(fold_batchnorm(net)) == batchnorms(net)


def test_a_frozen_network_takes_no_gradient_and_no_step() -> None:
    net = network()
    freeze(net)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(part.training for part in net.modules())


def test_another_copy_of_the_model_keeps_the_preprocessing() -> None:
    net, other = network(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)), lively(network()).model
    joined = net.with_model(other)
    assert joined.model is other
    assert net.model is not other
    assert joined.mean == net.mean


@pytest.mark.parametrize("name", [*CONVNETS, "test_vit", "mobilenetv3_small_050"])
def test_a_section_is_the_network_up_to_a_level_and_nothing_beyond(name: str) -> None:
    size = (160, 160) if name == "test_vit" else (64, 64)
    whole = network(name, size=size).eval()
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    features = whole(pixels, levels=range(len(whole.levels))).features
    counts = []
    for level, expected in enumerate(features):
        section = whole.section(level)
        assert torch.equal(section(pixels), expected)
        counts.append(count_parameters(section))
    assert counts == sorted(set(counts))
    assert counts[-1] < count_parameters(whole.model)  # without the classifier
    assert not any(parameter.grad is not None for parameter in whole.parameters())


def test_a_level_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ModelError) as caught:
        network().level("layer9")
    assert str(caught.value) == (
        "model 'test_resnet': has no level 'layer9'; known: act1, layer1, layer2, layer3, layer4"
    )


def test_a_structure_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "_probed", {})
    probes: list[str] = []
    probe = Network._probe

    def counted(self: Network, inputs: torch.Tensor) -> Any:
        probes.append(self.spec.name)
        return probe(self, inputs)

    monkeypatch.setattr(Network, "_probe", counted)
    first, again = (network(seed=seed) for seed in (0, 1))
    assert len(probes) == 1
    for name in ("levels", "pre_logits_width", "macs", "overstrided"):
        assert getattr(first, name) == getattr(again, name)
    assert not torch.equal(first.model.fc.weight, again.model.fc.weight)
    wider = network(args={"channels": [8, 8, 8, 16]})
    larger = network(size=(48, 48))
    assert len(probes) == 3
    assert wider.levels != first.levels
    assert larger.macs > first.macs
