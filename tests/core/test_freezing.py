"""What stands still in training, and what is computed twice: options for networks that start from ready weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdzoo.errors import NeedsError, RecipeError
from kdzoo.recipe.train_sections import TrainRecipe
from kdzoo.testing.harness import Harness
from kdzoo.training.engine import Engine
from kdzoo.zoo.loading import load_zoo

STUDENT = {"name": "test_vit", "args": {"img_size": 16, "patch_size": 8}}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """Make the engine of a distillation; 4 steps an epoch."""
    harness = Harness(load_zoo().algorithm("kd"), load_zoo(), tmp_path_factory.mktemp("runs"))
    return harness.engine


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.job.student.model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], engine: Engine) -> set[str]:
    after = engine.job.student.model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def run(engine: Engine, steps: int | None = None) -> None:
    """Train to the end, or up to an optimizer step."""
    engine.run(lambda engine: None, lambda: steps is not None and engine.step >= steps)


def test_frozen_batch_norm_keeps_statistics_and_parameters(make: Callable[..., Engine]) -> None:
    engine = make(train={"frozen_batch_norm": True})
    before = weights(engine)
    run(engine)
    found, model = changed(before, engine), engine.job.student.model
    norms = {name for name, part in model.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
    assert len(norms) > 5
    assert not {name for name in found if name.rpartition(".")[0] in norms}
    assert {"layer1.0.conv1.weight", "fc.weight", "fc.bias"} <= found
    assert engine.job.student.model.training


def test_at_first_only_the_classifier_is_trained_and_then_everything(make: Callable[..., Engine]) -> None:
    engine = make(train={"head_epochs": 1, "epochs": 2})
    before = weights(engine)
    run(engine, 4)
    assert changed(before, engine) == {"fc.weight", "fc.bias"}
    tensors, state = copy.deepcopy(engine.state())
    run(engine)
    assert len(changed(before, engine)) > 20
    again = make(train={"head_epochs": 1, "epochs": 2})
    again.restore(tensors, state)
    run(again)
    assert not changed(weights(again), engine)


@pytest.mark.parametrize("algorithm", ["fitnet"])
def test_a_projector_learns_while_the_network_waits(algorithm: str, tmp_path: Path) -> None:
    engine = Harness(load_zoo().algorithm(algorithm), load_zoo(), tmp_path).engine(
        train={"head_epochs": 1, "epochs": 2}
    )
    before = weights(engine)
    own = [p.clone() for p in engine.job.algorithm.parameters()]
    run(engine, 4)
    assert changed(before, engine) == {"fc.weight", "fc.bias"}
    assert all(not torch.equal(p, q) for p, q in zip(engine.job.algorithm.parameters(), own, strict=True))


def test_blocks_that_are_computed_again_give_the_same_bits(
    tmp_path: Path,
) -> None:
    of_vit = type(
        "OfVit",
        (load_zoo().algorithm("kd"),),
        {"name": "of_vit", "tiny_recipe": {"models": {"student": STUDENT, "teachers": [STUDENT]}}},
    )
    make = Harness(of_vit, load_zoo(), tmp_path).engine
    plain, again = make(), make(train={"grad_checkpointing": True})
    calls: list[int] = []
    blocks = list(again.job.student.model.blocks)
    for block in blocks:
        block.register_forward_pre_hook(lambda part, _: calls.append(1) if part.training else None)
    run(plain)
    run(again)
    assert not changed(weights(plain), again)
    assert len(calls) == 4 * 2 * len(blocks)  # steps, forward and again, blocks


@pytest.mark.parametrize(
    ("train", "text"),
    [
        ({"grad_checkpointing": True}, "'student' has BatchNorm, which would count each batch twice"),
    ],
)
def test_what_a_network_cannot_do_is_refused(train: dict[str, Any], text: str, make: Callable[..., Engine]) -> None:
    with pytest.raises(NeedsError) as caught:
        make(train=train)
    assert text in str(caught.value)


def test_the_head_cannot_be_trained_first_all_the_time() -> None:
    with pytest.raises(RecipeError, match="head_epochs: must be less than epochs, 3, got 3"):
        TrainRecipe().merged({"epochs": 3, "head_epochs": 3})
    with pytest.raises(RecipeError, match=r"head_epochs: holds parts of a network back, which train\.shard cannot"):
        TrainRecipe().merged({"epochs": 3, "head_epochs": 1, "shard": True})
