from __future__ import annotations

import gc
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdzoo.contract.step import Batch, Outputs
from kdzoo.errors import DataError
from kdzoo.evaluation.measuring import measure_latency, network_entry, predict


class Flat(nn.Module):
    """A stand-in for a network: a BatchNorm and a classifier over flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.classifier = nn.BatchNorm1d(12), nn.Linear(12, 5)
        self.dtypes: list[torch.dtype] = []

    def forward(self, inputs):
        logits = self.classifier(self.norm(inputs.flatten(1)))
        self.dtypes.append(logits.dtype)
        return Outputs(logits=logits)


def batches(*sizes):
    drawn = torch.Generator().manual_seed(0)
    for size in sizes:
        inputs = torch.rand(size, 3, 2, 2, generator=drawn)
        yield Batch(inputs, torch.randint(0, 5, (size,), generator=drawn), torch.arange(size))


def test_predict_joins_batches_of_any_size_and_leaves_the_network_as_it_was():
    network = Flat().train()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    logits, targets = predict(network, batches(4, 4, 1))
    assert (logits.shape, logits.dtype, targets.shape) == ((9, 5), np.float32, (9,))
    assert network.training
    assert network.classifier.training
    assert not network.norm.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    whole = torch.cat([batch.inputs for batch in batches(4, 4, 1)])
    np.testing.assert_allclose(logits, network.eval()(whole).logits.detach().numpy(), atol=1e-6)


def test_predict_returns_float32_under_autocast():
    network = Flat()
    logits, _ = predict(network, batches(4, 3), lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert network.dtypes == [torch.bfloat16] * 2
    assert logits.dtype == np.float32


def test_predict_restores_the_mode_when_a_batch_fails():
    network = Flat().train()
    with pytest.raises(RuntimeError):
        predict(network, iter([Batch(torch.zeros(2, 1, 1, 1), torch.zeros(2).long(), torch.arange(2))]))
    assert network.training


def test_predict_refuses_an_empty_split():
    with pytest.raises(DataError, match=r"^nothing to evaluate: the split has no samples$"):
        predict(Flat(), [])


def test_latency_calls_candidates_in_turn():
    calls = []
    timed = measure_latency({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert all(0 <= times["p50"] <= times["p95"] for times in timed.values())


def test_latency_is_in_milliseconds():
    timed = measure_latency({"slow": lambda: time.sleep(0.02), "quick": lambda: None}, repeats=5, warmup=0)
    assert 20 <= timed["slow"]["p50"] < 200
    assert timed["quick"]["p50"] < 1


@pytest.mark.parametrize("enabled", [True, False])
def test_timing_leaves_the_garbage_collector_as_it_was(enabled: bool) -> None:
    before, during = gc.isenabled(), []
    (gc.enable if enabled else gc.disable)()
    try:
        measure_latency({"a": lambda: during.append(gc.isenabled())}, repeats=2, warmup=0)
        assert (during, gc.isenabled()) == ([False, False], enabled)
    finally:
        (gc.enable if before else gc.disable)()


def test_result_entry_counts_the_plain_models_parameters():
    network = SimpleNamespace(model=nn.Linear(12, 5), macs=60)
    entry = network_entry("student", "flat", np.eye(5), np.arange(5), None, network, 2**20)
    assert (entry["params_m"], entry["macs_g"], entry["size_mib"]) == (65e-6, 60e-9, 1.0)
    assert entry["top1_percent"] == 100.0
