"""Few values a weight: the projection by hand, the gradient that passes it, and the student that comes out of it."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from kdzoo.zoo.loading import load_zoo
from kdzoo_quantized.int8 import Int8, Int8Buckets, Projection, StraightThrough
from kdzoo_quantized.quantized_distillation import QuantizedDistillation


def test_a_projection_by_hand() -> None:
    weights = torch.tensor([0.0, 0.4, 0.6, 3.0, 10.0, 10.9, 11.1, 13.0, -1.0])
    # Two bits are four values: 0, 1, 2, 3 in the first bucket of four and 10, 11, 12, 13 in the second.
    expected = [0.0, 0.0, 1.0, 3.0, 10.0, 11.0, 11.0, 13.0, -1.0]
    assert Projection(2, 4)(weights).tolist() == pytest.approx(expected)
    assert Projection(2, 4)(weights.view(3, 3)).shape == (3, 3)


def test_the_last_bucket_and_a_small_tensor_have_a_range_of_their_own() -> None:
    weights = torch.tensor([0.0, 3.0, 0.2, 0.3])
    assert Projection(2, 3)(weights).tolist() == pytest.approx([0.0, 3.0, 0.0, 0.3])
    assert Projection(2, 256)(weights).tolist() == pytest.approx([0.0, 3.0, 0.0, 0.0])


def test_a_bucket_of_one_value_keeps_it() -> None:
    assert torch.equal(Projection(4, 8)(torch.full((8,), 0.25)), torch.full((8,), 0.25))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_bucket_has_two_to_the_bits_values_and_no_weight_moves_more_than_half_a_step(bits: int) -> None:
    weights = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    projected = Projection(bits, 4096)(weights)
    for row, came in zip(weights, projected, strict=True):
        assert len(came.unique()) <= 2**bits
        assert (row - came).abs().max() <= (row.max() - row.min()) / (2**bits - 1) * 0.501


def test_the_gradient_at_the_projected_weights_goes_to_the_full_ones() -> None:
    weights = torch.tensor([0.0, 0.4, 0.6, 3.0], requires_grad=True)
    StraightThrough.apply(weights, Projection(2, 4)).square().sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == pytest.approx([0.0, 0.0, 2.0, 6.0])  # twice the projected ones


@pytest.fixture(scope="module")
def trained() -> tuple[Int8Buckets, nn.Module, nn.Module, torch.Tensor]:
    """The quantizer, a plain network, the one with rounding after a few steps, and inputs."""
    load_zoo()  # registers the networks
    torch.manual_seed(0)
    quantizer = Int8Buckets(Int8Buckets.Options(bits=3, bucket_size=64))
    model = timm.create_model("digits_cnn_small", num_classes=10, in_chans=1)
    inputs, targets = torch.rand(32, 1, 8, 8), torch.arange(32) % 10
    rounded = quantizer.prepare(model, inputs[:2])
    optimizer = torch.optim.SGD(rounded.parameters(), 0.05)
    for _ in range(4):
        torch.nn.functional.cross_entropy(rounded(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return quantizer, model, rounded.eval(), inputs


def buckets(weight: torch.Tensor) -> list[int]:
    return [len(part.unique()) for part in weight.detach().reshape(-1).split(64)]


def test_the_plain_student_has_few_values_and_training_keeps_the_full_ones(trained: Any) -> None:
    quantizer, model, rounded, _ = trained
    plain = quantizer.plain(rounded.state_dict())
    copy.deepcopy(model).load_state_dict(plain, strict=True)
    weights = [name for name, value in model.named_parameters() if value.dim() > 1]
    assert weights == ["stage1.0.weight", "stage2.1.weight", "linear.weight"]
    for name in weights:
        assert max(buckets(plain[name])) <= 8
        assert max(buckets(rounded.body.get_parameter(name))) > 8
    biases = [name for name in plain if name.endswith("bias")]
    assert all(torch.equal(plain[name], rounded.state_dict()[f"body.{name}"]) for name in biases)


def test_what_is_written_computes_what_was_trained(trained: Any) -> None:
    quantizer, model, rounded, inputs = trained
    plain = copy.deepcopy(model)
    plain.load_state_dict(quantizer.plain(rounded.state_dict()))
    with torch.no_grad():
        expected, written, floats = rounded(inputs), quantizer.convert(rounded)(inputs), plain.eval()(inputs)
        unprojected = Int8(Int8.Options()).convert(_without_projection(rounded))(inputs)
    far = (expected - unprojected).abs().mean()
    assert (expected - written).abs().mean() < far / 3
    assert (expected - floats).abs().mean() < far


def _without_projection(rounded: nn.Module) -> nn.Module:
    other: Any = copy.deepcopy(rounded)
    other.projected = ()
    return other


def test_options_go_to_the_quantizer() -> None:
    options = QuantizedDistillation.Options(bits=2, bucket_size=16)
    assert QuantizedDistillation.quantizer_options(options) == {"bits": 2, "bucket_size": 16}


def test_the_loss_is_softened_and_scaled_by_the_square_of_the_temperature() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])  # three to one at T = 2
    algorithm = QuantizedDistillation(QuantizedDistillation.Options(), SimpleNamespace())  # type: ignore[arg-type]
    ctx: Any = SimpleNamespace(student=SimpleNamespace(logits=student), teacher=SimpleNamespace(logits=teacher))
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert algorithm.losses(ctx)["kd"].item() == pytest.approx(expected)
