"""Optimizers as recipes name them, learning rates worked out by hand, and what both keep."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import timm
import torch
from timm.optim import list_optimizers
from torch import nn

from kdzoo.errors import RecipeError
from kdzoo.recipe.train_sections import TrainRecipe
from kdzoo.training.device import Precision
from kdzoo.training.optimization import Optimized, settings_of

CPU = torch.device("cpu")
FP32 = Precision(CPU, None, False)


def optimized(train: dict[str, Any], steps_per_epoch: int = 5, precision: Precision = FP32) -> Optimized:
    """A network of two layers with the optimizer and schedule of a train section."""
    torch.manual_seed(0)
    recipe = TrainRecipe.model_validate(train)
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return Optimized(network, settings_of(recipe.optimizer), recipe, steps_per_epoch, precision)


def groups_of(**optimizer: Any) -> tuple[str, list[dict[str, Any]]]:
    built = optimized({"optimizer": optimizer}).optimizer
    return type(built).__name__, built.param_groups


# --- optimizers -----------------------------------------------------------------------------------


def test_a_recipe_s_optimizer_is_built_as_it_says() -> None:
    kind, (exempt, decayed) = groups_of(name="sgd", lr=0.3, momentum=0.7, weight_decay=0.01)
    assert (kind, decayed["lr"], decayed["momentum"], decayed["nesterov"]) == ("SGD", 0.3, 0.7, True)
    assert (exempt["weight_decay"], decayed["weight_decay"]) == (0, 0.01)
    assert [p.dim() for p in decayed["params"]] == [2, 2]
    assert [p.dim() for p in exempt["params"]] == [1] * 4  # biases and normalisation are not decayed


def test_momentum_may_be_zero_or_left_to_timm() -> None:
    _, groups = groups_of(name="sgd", momentum=0.0)
    assert (groups[0]["momentum"], groups[0]["nesterov"]) == (0.0, False)
    _, groups = groups_of(name="sgd", momentum=None)
    assert (groups[0]["momentum"], groups[0]["nesterov"]) == (0.9, True)


def test_adamw_takes_further_options() -> None:
    kind, groups = groups_of(name="adamw", lr=1e-3, options={"betas": [0.8, 0.95], "eps": 1e-6})
    assert (kind, *groups[1]["betas"], groups[1]["eps"], groups[1]["lr"]) == ("AdamW", 0.8, 0.95, 1e-6, 1e-3)


@pytest.mark.parametrize(
    ("optimizer", "text"),
    [
        (
            {"name": "sdg"},
            f"train.optimizer.name: unknown optimizer 'sdg'; did you mean 'sgd'? timm knows {len(list_optimizers())}",
        ),
        (
            {"name": "adahessian"},
            "train.optimizer.name: 'adahessian' needs second derivatives, which are not taken; choose another",
        ),
        (
            {"name": "sgd", "options": {"beta": 1}},
            "train.optimizer: 'sgd' cannot be made with lr=0.05, weight_decay=0.0005, beta=1, momentum=0.9: "
            "SGD.__init__() got an unexpected keyword argument 'beta'",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_refused(optimizer: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        groups_of(**optimizer)
    assert str(caught.value) == text


# --- schedules ------------------------------------------------------------------------------------

#: Of 8 epochs of 5 steps at 0.1: the schedule, and the learning rate at some steps, worked out by hand.
SCHEDULES: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "cosine": (
        {"name": "cosine", "min_lr": 0.02},
        {s: 0.02 + 0.04 * (1 + math.cos(math.pi * s / 40)) for s in (0, 1, 13, 20, 39)},
    ),
    "step": (
        {"name": "step", "milestones": [3], "decay_rate": 0.5},
        {0: 0.1, 14: 0.1, 15: 0.05, 29: 0.05, 30: 0.025, 39: 0.025},
    ),
    "multistep": (
        {"name": "multistep", "milestones": [2, 3], "decay_rate": 0.1},
        {0: 0.1, 9: 0.1, 10: 0.01, 14: 0.01, 15: 0.001, 39: 0.001},
    ),
    "constant": ({"name": "constant"}, dict.fromkeys((0, 7, 39), 0.1)),
    "warmup": (
        {"name": "constant", "warmup_epochs": 2},
        {0: 1e-5, 1: 1e-5 + (0.1 - 1e-5) / 10, 9: 1e-5 + 9 * (0.1 - 1e-5) / 10, 10: 0.1, 39: 0.1},
    ),
    "warmup_multistep": (
        {"name": "multistep", "warmup_epochs": 1, "milestones": [2]},
        {0: 1e-5, 4: 1e-5 + 4 * (0.1 - 1e-5) / 5, 5: 0.1, 9: 0.1, 10: 0.01},
    ),
    "warmup_cosine": (
        {"name": "cosine", "warmup_epochs": 2},
        {0: 1e-5, 5: 1e-5 + 0.5 * (0.1 - 1e-5), 10: 0.05 * (1 + math.cos(math.pi / 4)), 20: 0.05},
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_by_hand(name: str) -> None:
    schedule, by_hand = SCHEDULES[name]
    scheduled = optimized({"epochs": 8, "optimizer": {"lr": 0.1}, "schedule": schedule})
    for step, lr in sorted(by_hand.items(), reverse=True):  # a step's rate depends on no step before it
        scheduled.to_step(step)
        assert scheduled.lr == pytest.approx(lr, rel=1e-6), step
        assert {group["lr"] for group in scheduled.optimizer.param_groups} == {scheduled.lr}


# --- state ----------------------------------------------------------------------------------------


def steps(of: Optimized, count: int, first: int = 0) -> list[torch.Tensor]:
    """Take steps on made-up gradients that depend on the step alone; return the weights."""
    for step in range(first, first + count):
        of.to_step(step)
        generator = torch.Generator().manual_seed(step)
        for parameter in of.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        of.optimizer.step()
    return [parameter.detach().clone() for parameter in of.parameters]


#: Some that keep their state in odd places: counts in the groups, tensors without slots, nothing at all.
KINDS = ("sgd", "momentum", "adamw", "lamb", "adan", "lion", "rmsprop", "adafactor", "radam", "novograd", "nadamw")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_optimizer_resumes_bit_identically(name: str) -> None:
    train = {"epochs": 2, "optimizer": {"name": name, "lr": 0.01}}
    whole = steps(optimized(train), 5)
    first = optimized(train)
    weights = steps(first, 3)
    tensors, saved = first.state()
    second = optimized(train)
    with torch.no_grad():
        for parameter, value in zip(second.parameters, weights, strict=True):
            parameter.copy_(value)
    fresh = [p.detach().clone() for p in second.parameters]
    second.restore({key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(saved)))
    assert all(torch.equal(*pair) for pair in zip(whole, steps(second, 2, first=3), strict=True))
    negative = optimized(train)
    with torch.no_grad():
        for parameter, value in zip(negative.parameters, fresh, strict=True):
            parameter.copy_(value)
    forgetful = steps(negative, 2, first=3)  # without its state
    assert not all(torch.equal(*pair) for pair in zip(whole, forgetful, strict=True))


def test_nested_state_survives_json() -> None:
    built = optimized({"optimizer": {"name": "sgd"}})
    steps(built, 1)
    parameter = built.parameters[0]
    built.optimizer.state[parameter]["list"] = [torch.ones(2), (torch.zeros(1), 3)]
    built.optimizer.param_groups[0].update(spread=torch.tensor(0.5), momentum=0.25)
    tensors, saved = built.state()
    other = optimized({"optimizer": {"name": "sgd"}})
    other.restore(tensors, json.loads(json.dumps(saved)))
    slots = next(s for p, s in other.optimizer.state.items() if "list" in s)
    assert torch.equal(slots["list"][0], torch.ones(2))
    assert (slots["list"][1][0].item(), slots["list"][1][1]) == (0.0, 3)
    group = other.optimizer.param_groups[0]
    assert (group["spread"].item(), group["momentum"], group["nesterov"]) == (0.5, 0.25, True)


def test_the_scaler_of_fp16_is_part_of_the_state() -> None:
    fp16 = Precision(CPU, torch.float16, False)
    first, second = optimized({}, precision=fp16), optimized({}, precision=fp16)
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 128.0, "_growth_tracker": 7})
    second.restore(*first.state())
    assert second.scaler.state_dict() == first.scaler.state_dict()
    assert not optimized({}).scaler.is_enabled()


# --- parameter groups -----------------------------------------------------------------------------


def grouped(**optimizer: Any) -> tuple[nn.Module, Optimized]:
    """A small transformer with a projector beside it, as a student is trained, and its optimizer."""
    network = timm.create_model("test_vit", num_classes=3)
    modules = nn.ModuleDict({"network": network, "algorithm": nn.Linear(4, 4)})
    recipe = TrainRecipe.model_validate({"optimizer": optimizer, "schedule": {"name": "constant"}})
    return modules, Optimized(modules, settings_of(recipe.optimizer), recipe, 5, FP32, network=network)


def settings_by_name(modules: nn.Module, of: Optimized, key: str) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in modules.named_parameters()}
    found = {names[id(p)]: group[key] for group in of.optimizer.param_groups for p in group["params"]}
    assert len(found) == len(names), "each parameter is in one group"
    return found


@pytest.mark.parametrize(
    ("decay_free", "exempt"),
    [
        ("norm_and_bias", {"network.blocks.0.norm1.weight", "algorithm.bias"}),
        ("model", {"network.blocks.0.norm1.weight", "algorithm.bias", "network.pos_embed", "network.cls_token"}),
        ("nothing", set()),
    ],
)
def test_what_weight_decay_leaves_alone(decay_free: str, exempt: set[str]) -> None:
    decays = settings_by_name(*grouped(decay_free=decay_free, weight_decay=0.1), "weight_decay")
    asked = {"network.blocks.0.norm1.weight", "algorithm.bias", "network.pos_embed", "network.cls_token"}
    assert {name for name in asked if decays[name] == 0} == exempt
    assert decays["network.blocks.0.mlp.fc1.weight"] == decays["algorithm.weight"] == 0.1


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_layers_before_the_last_learn_at_a_smaller_rate(schedule: str) -> None:
    modules, constant = grouped(lr=0.1, layer_decay=0.5)
    if schedule == "cosine":
        recipe = TrainRecipe.model_validate({"optimizer": {"lr": 0.1, "layer_decay": 0.5}})
        constant = Optimized(
            modules, settings_of(recipe.optimizer), recipe, 5, FP32, network=modules.get_submodule("network")
        )
        constant.to_step(0)
    rates = settings_by_name(modules, constant, "lr")
    assert rates["network.head.weight"] == rates["algorithm.weight"] == constant.lr == pytest.approx(0.1)
    blocks = [
        rates[f"network.blocks.{i}.mlp.fc1.weight"] for i in range(6) if f"network.blocks.{i}.mlp.fc1.weight" in rates
    ]
    assert blocks == pytest.approx([0.1 * 0.5 ** (len(blocks) - i) for i in range(len(blocks))])
    assert rates["network.patch_embed.proj.weight"] == pytest.approx(blocks[0] / 2)


def test_a_warm_up_begins_below_the_rate_that_it_leads_to() -> None:
    for lr, first in ((0.1, 1e-5), (5e-6, 5e-8)):
        of = optimized({"optimizer": {"lr": lr}, "epochs": 4, "schedule": {"name": "constant", "warmup_epochs": 1}})
        rates = []
        for step in range(6):
            of.to_step(step)
            rates.append(of.lr)
        assert rates[0] == pytest.approx(first)
        assert rates == sorted(rates)
        assert rates[5] == pytest.approx(lr)
