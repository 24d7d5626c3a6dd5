"""A graph that was prepared before gives the very same student, and only to a model of the very same build."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import qat_utils

from kdzoo.contract.structure import structure
from kdzoo_quantized import int8, kept_graphs, patterns
from kdzoo_quantized.int8 import Int8

INT8 = Int8(Int8.Options())


class Net(nn.Module):
    """A convolution with a bias, one without, and what decides a graph besides modules: attributes and a buffer."""

    def __init__(self, seed: int = 0, width: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.first_norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
            self.second, self.second_norm = nn.Conv2d(width, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.scale, self.activation = 1.0, torch.relu
        self.register_buffer("mask", torch.ones(4), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.activation(self.first_norm(self.first(inputs)))
        return self.second_norm(self.second(maps)).mean((2, 3)) * self.mask * self.scale


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_graphs, "_kept", type(kept_graphs._kept)())


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def trained(prepared: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Everything that three steps and an evaluation give, the state after them included."""
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
    answers = []
    for _ in range(3):
        answers.append(prepared.train()(inputs))
        optimizer.zero_grad()
        answers[-1].square().mean().backward()
        optimizer.step()
    answers.append(prepared.eval()(inputs))
    converted = INT8.convert(prepared)
    return [*answers, *prepared.state_dict().values(), converted(inputs), *converted.state_dict().values()]


def test_a_kept_graph_gives_the_same_bits_as_a_new_one(inputs: Tensor) -> None:
    new = INT8.prepare(Net(seed=1), inputs[:2])
    expected = trained(new, inputs)
    trained(INT8.prepare(Net(seed=2), inputs[:2]), inputs)  # leaves nothing of its weights and ranges behind
    again = INT8.prepare(Net(seed=1), inputs[:2])
    assert len(kept_graphs._kept) == 1
    got = trained(again, inputs)
    assert list(again.state_dict()) == list(new.state_dict())
    assert len(got) == len(expected) > 20
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_a_graph_is_exported_once_for_a_build(inputs: Tensor) -> None:
    exports: list[int] = []

    def once(seed: int, example: Tensor) -> Any:
        model = Net(seed).train()
        return kept_graphs.prepared_graph(
            model, example, lambda: exports.append(seed) or torch.fx.symbolic_trace(model)
        )

    for seed in (1, 2):
        graph = once(seed, inputs[:2])
        assert torch.equal(graph.first.weight, Net(seed).first.weight)
    assert exports == [1]
    once(3, inputs[:3])  # an example of another shape
    assert exports == [1, 3]


def weights_moved(net: Net) -> None:
    net.first.weight.data += 1


def frozen(net: Net) -> None:
    net.first.weight.requires_grad_(False)


def another(name: str, value: Any, part: str = "") -> Callable[[Net], None]:
    return lambda net: setattr(net.get_submodule(part), name, value)


CHANGES = {
    "eps": another("eps", 1e-3, "first_norm"),
    "momentum": another("momentum", 0.2, "first_norm"),
    "stride": another("stride", (2, 2), "second"),
    "an attribute": another("scale", 2.0),
    "its type": another("scale", 1),
    "a function": another("activation", torch.tanh),
    "frozen": frozen,
    "a buffer that no file holds": lambda net: net.mask.zero_(),
    "tied weights": lambda net: setattr(net.first_norm, "weight", net.first_norm.bias),
    "another module": lambda net: setattr(net, "first_norm", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_another_build_is_another_graph(change: Callable[[Net], None], inputs: Tensor) -> None:
    net = Net()
    change(net)
    assert structure(net, inputs) != structure(Net(), inputs)


def test_weights_make_no_other_build(inputs: Tensor) -> None:
    net = Net(seed=5)
    weights_moved(net)
    assert structure(net, inputs) == structure(Net(), inputs)
    assert hash(structure(net, inputs)) == hash(structure(Net(), inputs))


def test_what_cannot_be_compared_is_exported_each_time(inputs: Tensor) -> None:
    model, exports = Net(), []
    model.settings = object()
    for _ in range(2):
        kept_graphs.prepared_graph(model, inputs, lambda: exports.append(1) or torch.fx.symbolic_trace(model))
    assert len(exports) == 2
    assert not kept_graphs._kept


def test_few_graphs_are_kept_and_without_weights(inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_graphs, "MOST", 2)
    for width in (1, 2, 3):
        model = Net(width=width)
        kept_graphs.prepared_graph(model, inputs, lambda model=model: torch.fx.symbolic_trace(model))
    widths = [graph.first.weight.shape[0] for graph in kept_graphs._kept.values()]
    assert widths == [2, 3]
    assert all(tensor.is_meta for graph in kept_graphs._kept.values() for tensor in graph.state_dict().values())


def test_torchao_has_the_functions_that_are_replaced() -> None:
    assert all(hasattr(qat_utils, name) for name in (*patterns.HELPERS, patterns.EXPORT))


@pytest.mark.slow
def test_torchao_alone_gives_the_same(inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute: torchao exports all of its patterns."""
    ours = trained(INT8.prepare(Net(), inputs[:2]), inputs)
    kept_graphs._kept.clear()
    monkeypatch.setattr(int8, "kept_patterns", contextlib.nullcontext)
    alone = trained(INT8.prepare(Net(), inputs[:2]), inputs)
    assert len(ours) == len(alone)
    assert all(torch.equal(one, other) for one, other in zip(ours, alone, strict=True))
