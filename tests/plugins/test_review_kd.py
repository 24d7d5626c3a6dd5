"""review_kd: a value worked out by hand, the way down through the levels, and every size the fusion has to bridge."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdzoo.api import Level, ModelShapes, Outputs, Shapes
from kdzoo.contract.step import Clock
from kdzoo_feature.review_kd import Fusion, ReviewKD, review_kd_loss


def level(channels: int, height: int, width: int) -> Level:
    return Level("x", channels, height, width, stride=1)


STUDENT = (level(3, 8, 8), level(4, 4, 4))
TEACHER = (level(5, 8, 8), level(6, 4, 4))
SHAPES = Shapes(ModelShapes(STUDENT, 7, 10), (ModelShapes(TEACHER, 9, 10),), (), 10, 100, (3, 32, 32))


def outputs(levels: tuple[Level, ...], width: int, seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    maps = tuple(torch.randn(4, x.channels, x.height, x.width, generator=generator).requires_grad_() for x in levels)
    return Outputs(torch.zeros(4, 10), maps, torch.randn(4, width, generator=generator).requires_grad_())


def context(epoch: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        student=outputs(STUDENT, 7, 0), teacher=outputs(TEACHER, 9, 1), clock=Clock(epoch, 240, epoch * 10, 10)
    )


def test_value_worked_out_by_hand() -> None:
    # A 2x2 map that differs by 2 in one pixel: 4/4 at full size, weight 1; pooled to one pixel it differs by 1/2,
    # squared 1/4, weight 1/2. A one-pixel map is compared at full size only. (1 + 1/8) / (3/2) = 3/4, plus 9.
    student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]])
    pixel = torch.zeros(1, 1, 1, 1)
    assert review_kd_loss([student], [teacher]).item() == pytest.approx(0.75)
    assert review_kd_loss([student, pixel], [teacher, pixel + 3]).item() == pytest.approx(9.75)
    assert review_kd_loss([teacher], [teacher]).item() == 0


def test_a_map_is_pooled_to_the_sizes_that_are_smaller() -> None:
    # Constant differences are the same at every size, so that only the weights could show; checkerboards vanish when
    # pooled, so that the full size shows alone, over the sum of the weights in use.
    for side, weights in ((1, 1), (2, 1.5), (3, 1.75), (4, 1.75), (8, 1.875)):
        assert review_kd_loss([torch.zeros(1, 1, side, side)], [torch.ones(1, 1, side, side)]).item() == 1
        if side in (2, 4, 8):
            board = (-1.0) ** (torch.arange(side)[:, None] + torch.arange(side))
            loss = review_kd_loss([board[None, None]], [torch.zeros(1, 1, side, side)])
            assert loss.item() == pytest.approx(1 / weights)


def test_the_teacher_gets_no_gradient() -> None:
    ctx = context()
    ReviewKD(ReviewKD.Options(), SHAPES).losses(ctx)["review"].backward()
    assert all(feature.grad is None for feature in (*ctx.teacher.features, ctx.teacher.pre_logits))
    assert all(feature.grad is not None for feature in (*ctx.student.features, ctx.student.pre_logits))


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (level(3, 8, 8), level(5, 8, 8)),
        (level(3, 8, 8), level(5, 4, 4)),
        (level(3, 4, 4), level(5, 8, 8)),
        (level(3, 7, 9), level(5, 5, 3)),
        (level(3, 1, 1), level(5, 7, 7)),
        (level(3, 7, 7), level(5, 1, 1)),
    ],
)
def test_the_fusion_bridges_any_sizes(have: Level, want: Level) -> None:
    fusion = Fusion(have, want, width=6, deepest=False)
    compared, handed_on = fusion(torch.randn(4, 3, have.height, have.width), torch.randn(4, 6, 2, 3))
    assert compared.shape == (4, 5, want.height, want.width)
    assert handed_on.shape == (4, 6, want.height, want.width)
    compared.square().sum().backward()
    assert all(p.grad is not None for p in fusion.parameters())


def test_every_level_hears_of_the_deeper_ones_and_of_no_shallower_one() -> None:
    algorithm, ctx = ReviewKD(ReviewKD.Options(), SHAPES), context()
    maps = [*ctx.student.features, ctx.student.pre_logits[:, :, None, None]]
    reviewed = algorithm.review(maps)
    assert [tuple(x.shape[1:]) for x in reviewed] == [(5, 8, 8), (6, 4, 4), (9, 1, 1)]
    for depth, own in enumerate(reviewed):
        found = torch.autograd.grad(own.square().sum(), maps, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in found] == [other >= depth for other in range(3)]


def test_the_width_of_the_fused_maps() -> None:
    assert ReviewKD(ReviewKD.Options(), SHAPES).fusions[0].enter[0].out_channels == 7  # the student's embedding
    assert ReviewKD(ReviewKD.Options(max_width=4), SHAPES).fusions[0].enter[0].out_channels == 4


def test_the_term_warms_up_linearly() -> None:
    algorithm = ReviewKD(ReviewKD.Options(warmup_epochs=4), SHAPES)
    values = [algorithm.losses(context(epoch))["review"].item() for epoch in (0, 1, 3, 9)]
    assert [value / values[-1] for value in values] == pytest.approx([0.25, 0.5, 1, 1])
    assert ReviewKD(ReviewKD.Options(warmup_epochs=0), SHAPES).losses(context())["review"].item() > 0


def test_the_fusion_modules_have_no_running_state() -> None:
    assert not list(ReviewKD(ReviewKD.Options(), SHAPES).buffers())
