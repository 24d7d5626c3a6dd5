"""Values worked out by hand, and who is updated when, on what."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import AlgorithmOptions, ModelShapes, Outputs, Shapes, StepContext, Update
from kdzoo.contract.step import Batch, Clock
from kdzoo_online.dml import DML, dml_loss


def log(*probabilities: float) -> Tensor:
    """Logits of one sample whose softmax is exactly these probabilities."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_two_networks_by_hand() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln (2/3)
    loss = dml_loss(log(0.25, 0.75), [log(0.5, 0.5)])
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-12)


def test_three_networks_by_hand() -> None:
    # the second other is this network itself: half of the value above
    loss = dml_loss(log(0.25, 0.75), [log(0.5, 0.5), log(0.25, 0.75)])
    assert loss.item() == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(2 / 3), rel=1e-12)


def test_agreement_costs_nothing_and_the_order_of_the_others_does_not_matter() -> None:
    a, b, c = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert dml_loss(a, [a, a]).item() == pytest.approx(0.0, abs=1e-12)
    assert dml_loss(a, [b, c]).item() == pytest.approx(dml_loss(a, [c, b]).item(), rel=1e-12)


def test_others_are_targets_and_get_no_gradient() -> None:
    own, other = log(0.25, 0.75).requires_grad_(), log(0.5, 0.5).requires_grad_()
    dml_loss(own, [other]).backward()
    # d KL(q || softmax(z)) / dz = softmax(z) - q
    torch.testing.assert_close(own.grad, torch.tensor([[-0.25, 0.25]], dtype=torch.float64))
    assert other.grad is None


def test_logits_of_fifty_stay_finite() -> None:
    own = torch.tensor([[50.0, -50.0]], requires_grad=True)
    loss = dml_loss(own, [torch.tensor([[-50.0, 50.0]])])
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert torch.isfinite(own.grad).all()


def context(networks: Sequence[nn.Module], inputs: Tensor, targets: Tensor) -> StepContext:
    student, *peers = (Outputs(network(inputs)) for network in networks)
    return StepContext(
        batch=Batch(inputs, targets, torch.arange(len(inputs))),
        student=student,
        teachers=(),
        peers=tuple(peers),
        clock=Clock(0, 1, 0, 1),
        networks={},
        task_loss=lambda logits: F.cross_entropy(logits, targets),
        random=lambda name: torch.Generator().manual_seed(0),
        device=inputs.device,
        batch_size=len(inputs),
    )


def test_every_network_is_updated_once_in_order_on_its_own_loss_alone() -> None:
    torch.manual_seed(0)
    networks = [nn.Linear(4, 3) for _ in range(3)]
    names = ["student", "peer_0", "peer_1"]
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.5) for network in networks]
    inputs, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    width = ModelShapes((), 4, 3)
    shapes = Shapes(width, (), (width, width), 3, 6, (1, 2, 2))
    ctx = context(networks, inputs, targets)
    before = [network(inputs).detach() for network in networks]

    updates: list[Update] = []
    for update in DML(AlgorithmOptions(), shapes).step(ctx):
        i = names.index(update.network)
        weights = [network.weight.detach().clone() for network in networks]
        optimizers[i].zero_grad()
        sum(update.loss.values()).backward()
        optimizers[i].step()
        changed = [not torch.equal(network.weight, old) for network, old in zip(networks, weights, strict=True)]
        assert changed == [j == i for j in range(3)]
        updates.append(update)

    assert [update.network for update in updates] == names
    for i, update in enumerate(updates):
        assert set(update.loss) == set(DML.default_weights)
        # all learn from predictions made before the first update
        expected = dml_loss(before[i], [before[j] for j in range(3) if j != i])
        torch.testing.assert_close(update.loss["dml"].detach(), expected)
        torch.testing.assert_close(update.loss["task"].detach(), F.cross_entropy(before[i], targets))
