"""Values worked out by hand, and what the paper claims of the loss."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.api import Level, ModelShapes, NeedsError, Shapes
from kdzoo.contract.step import Clock
from kdzoo_self.sad import SAD, sad_attention, sad_loss


def shapes(*sizes: int) -> Shapes:
    levels = tuple(Level(f"layer{i}", 4, size, size, 2**i) for i, size in enumerate(sizes))
    return Shapes(ModelShapes(levels, 4, 3), (), (), 3, 10, (3, 8, 8))


def test_two_maps_by_hand() -> None:
    # sums of squares (ln 3, 0) -> attention (3/4, 1/4); the deeper map is (1/2, 1/2): mean of two squares of 1/4
    shallow = torch.tensor([math.log(3) ** 0.5, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    deep = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64).view(1, 2, 1, 2)
    assert sad_loss([shallow, deep]).item() == pytest.approx(1 / 16, rel=1e-12)


def test_attention_is_a_distribution_over_positions_of_the_shallower_size() -> None:
    attention = sad_attention(torch.randn(3, 5, 4, 2), (8, 4))
    assert attention.shape == (3, 32)
    torch.testing.assert_close(attention.sum(1), torch.ones(3))


def test_equal_levels_cost_nothing_and_neither_does_the_sign() -> None:
    features = torch.randn(2, 3, 4, 4)
    assert sad_loss([features, features, -features]).item() == 0.0


def test_only_the_shallower_level_learns() -> None:
    shallow, deep = torch.randn(2, 3, 4, 4).requires_grad_(), torch.randn(2, 6, 2, 2).requires_grad_()
    sad_loss([shallow, deep]).backward()
    assert deep.grad is None
    assert shallow.grad.abs().max() > 0
    sad_loss([shallow, deep], train_target=True).backward()
    assert deep.grad.abs().max() > 0


def context(features: list[Tensor], step: int) -> Any:
    return SimpleNamespace(student=SimpleNamespace(features=features), clock=Clock(step // 10, 10, step, 10))


def test_before_its_beginning_the_term_is_only_logged() -> None:
    algorithm = SAD(SAD.Options(begin=0.4), shapes(4, 2))
    features = [torch.randn(2, 3, 4, 4).requires_grad_(), torch.randn(2, 6, 2, 2)]
    early, late = (algorithm.losses(context(features, step))["sad"] for step in (39, 40))
    assert not early.requires_grad
    assert late.requires_grad
    assert early.item() == late.item() > 0


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        (
            (4,),
            "algorithm 'sad': the student has 1 level of features, and none that could teach it; choose a model with "
            "more levels",
        ),
        (
            (1, 1),
            "algorithm 'sad': every level is a single pixel, whose attention map is always 1; use larger images or a "
            "network with shallower levels",
        ),
    ],
)
def test_a_student_that_cannot_learn_from_itself_is_refused(sizes: tuple[int, ...], problem: str) -> None:
    with pytest.raises(NeedsError) as caught:
        SAD(SAD.Options(), shapes(*sizes))
    assert str(caught.value) == problem
