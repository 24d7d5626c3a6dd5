"""Values worked out by hand, the cycle of peers, and who moves when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from kdzoo.api import Level, ModelShapes, Outputs, Shapes, StepContext, soft_target_loss
from kdzoo.contract.step import Batch, Clock
from kdzoo_adversarial.afd_online import (
    AFDOnline,
    MapDiscriminator,
    afd_online_discriminator_loss,
    afd_online_generator_loss,
)

CHANNELS = (2, 3, 4)


def test_scores_by_hand() -> None:
    own, other = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 3.0])
    assert afd_online_discriminator_loss(own, other).item() == (0.0 + 4.0) / 2 + 0.25 / 2
    assert afd_online_generator_loss(own).item() == (0.25 + 1.0) / 2
    half = torch.full((3,), 0.5)
    assert (afd_online_discriminator_loss(half, half).item(), afd_online_generator_loss(half).item()) == (0.5, 0.25)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_a_map_of_any_size_has_a_score(size: tuple[int, int]) -> None:
    assert MapDiscriminator(3, 8)(torch.randn(2, 3, *size)).shape == (2,)


def game(networks: int) -> tuple[AFDOnline, list[nn.Module], StepContext, dict[str, Any]]:
    torch.manual_seed(0)
    trained = [nn.Conv2d(1, channels, 3, padding=1) for channels in CHANNELS[:networks]]
    inputs, targets, noted = torch.rand(6, 1, 4, 4), torch.tensor([0, 1] * 3), {}
    outputs = []
    for network in trained:
        maps = network(inputs)
        outputs.append(Outputs(maps.mean(dim=(2, 3))[:, :2], (torch.zeros(6, 1, 8, 8), maps)))
    ctx = StepContext(
        batch=Batch(inputs, targets, torch.arange(6)),
        student=outputs[0],
        teachers=(),
        peers=tuple(outputs[1:]),
        clock=Clock(0, 1, 0, 1),
        networks={},
        task_loss=lambda logits: F.cross_entropy(logits, targets),
        random=lambda name: torch.Generator().manual_seed(7),
        device=torch.device("cpu"),
        batch_size=6,
        note=noted.__setitem__,
    )
    levels = [(Level("first", 1, 8, 8, 1), Level("last", channels, 4, 4, 2)) for channels in CHANNELS[:networks]]
    shapes = [ModelShapes(own, own[-1].channels, 2) for own in levels]
    algorithm = AFDOnline(AFDOnline.Options(), Shapes(shapes[0], (), tuple(shapes[1:]), 2, 6, (1, 4, 4)))
    return algorithm, trained, ctx, noted


def test_each_imitates_the_next_of_the_cycle() -> None:
    algorithm, *_ = game(3)
    assert [(t.in_channels, t.out_channels) for t in algorithm.transfers] == [(2, 3), (3, 4), (4, 2)]
    assert [d.maps[0].in_channels for d in algorithm.discriminators] == [3, 4, 2]
    assert algorithm.names == ("student", "peer_0", "peer_1")


@pytest.mark.parametrize("networks", [2, 3])
def test_discriminators_move_first_then_transfer_layers_then_each_network(networks: int) -> None:
    algorithm, trained, ctx, noted = game(networks)
    names = algorithm.names
    modules = {"discriminators": algorithm.discriminators, "transfers": algorithm.transfers}
    modules |= dict(zip(names, trained, strict=True))
    order, terms = [], set()
    for update in algorithm.step(ctx):
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        sum(update.loss.values()).backward()
        reached = {name for name, module in modules.items() if any(p.grad is not None for p in module.parameters())}
        assert update.network in reached
        assert not reached & set(names) - {update.network}, "another network was reached"
        if update.network == "discriminators":
            assert reached == {"discriminators"}
        order.append(update.network)
        terms |= set(update.loss)
    assert order == ["discriminators", "transfers", *names]
    assert terms == set(AFDOnline.default_weights)
    assert set(noted) == {f"discriminator_{what}_{name}" for what in ("accuracy", "spread") for name in names}


def test_a_network_learns_the_mean_divergence_from_the_others() -> None:
    algorithm, _, ctx, _ = game(3)
    *_, last = algorithm.step(ctx)
    others = [soft_target_loss(ctx.peers[1].logits, own.logits, temperature=3.0) for own in (ctx.student, ctx.peers[0])]
    torch.testing.assert_close(last.loss["kd"], torch.stack(others).mean())


def test_real_are_the_maps_of_the_next_one_as_they_are() -> None:
    algorithm, _, ctx, _ = game(2)
    seen: list[torch.Tensor] = []
    algorithm.discriminators[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    next(algorithm.step(ctx))
    torch.testing.assert_close(seen[0], algorithm.transfers[0](ctx.student.features[-1]))
    assert torch.equal(seen[1], ctx.peers[0].features[-1])


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("width", 0), ("transfer_lr", 0.0)])
def test_options_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        AFDOnline.Options(**{key: value})
