"""fitnet: a value worked out by hand, every size the projector has to bridge, and the choice of a level."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdzoo.api import Level, ModelShapes, NeedsError, Shapes
from kdzoo_feature.fitnet import FitNet, HintProjector, fitnet_loss


def level(channels: int, height: int, width: int) -> Level:
    return Level("x", channels, height, width, stride=1)


def shapes(*pairs: tuple[Level, Level]) -> Shapes:
    student, teacher = (ModelShapes(tuple(side), 8, 10) for side in zip(*pairs, strict=True))
    return Shapes(student, (teacher,), (), 10, 100, (3, 32, 32))


def test_value_worked_out_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    assert fitnet_loss(student, teacher).item() == pytest.approx((4 + 9) / 4)
    assert fitnet_loss(student, student.clone()).item() == 0


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(2, 3).requires_grad_(), torch.randn(2, 3).requires_grad_()
    fitnet_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("have", "want", "convolution"),
    [
        (level(3, 8, 8), level(5, 8, 8), "Conv2d kernel (1, 1) stride (1, 1)"),
        (level(3, 8, 8), level(5, 4, 4), "Conv2d kernel (3, 3) stride (2, 2)"),
        (level(3, 4, 4), level(5, 8, 8), "ConvTranspose2d kernel (4, 4) stride (2, 2)"),
        (level(3, 8, 8), level(5, 6, 6), "Conv2d kernel (3, 3) stride (1, 1)"),
        (level(3, 9, 8), level(5, 4, 8), "Conv2d kernel (6, 1) stride (1, 1)"),
        (level(3, 7, 7), level(5, 8, 8), "resize, Conv2d kernel (1, 1) stride (1, 1)"),
        (level(3, 4, 9), level(5, 8, 5), "resize, Conv2d kernel (1, 1) stride (1, 1)"),
        (level(3, 1, 1), level(5, 7, 7), "resize, Conv2d kernel (1, 1) stride (1, 1)"),
        (level(3, 14, 14), level(5, 1, 1), "Conv2d kernel (14, 14) stride (1, 1)"),
    ],
)
def test_the_projector_bridges_any_sizes(have: Level, want: Level, convolution: str) -> None:
    projector = HintProjector(have, want, use_relu=True)
    made = f"{type(projector.conv).__name__} kernel {projector.conv.kernel_size} stride {projector.conv.stride}"
    assert ("resize, " if projector.resize else "") + made == convolution
    features = torch.randn(4, have.channels, have.height, have.width).requires_grad_()
    projected = projector(features)
    assert projected.shape == (4, want.channels, want.height, want.width)
    projected.square().sum().backward()
    assert all(p.grad is not None for p in projector.parameters())


def test_relu_is_optional() -> None:
    features = torch.randn(4, 3, 6, 6)
    assert HintProjector(level(3, 6, 6), level(5, 6, 6), use_relu=True)(features).min() == 0
    assert HintProjector(level(3, 6, 6), level(5, 6, 6), use_relu=False)(features).min() < 0


def test_the_projector_has_no_running_state() -> None:
    assert not list(HintProjector(level(3, 6, 6), level(5, 6, 6), use_relu=True).buffers())


def test_batch_norm_of_the_projector_makes_the_scale_of_the_student_irrelevant() -> None:
    projector = HintProjector(level(3, 6, 6), level(5, 6, 6), use_relu=False).double()
    nn.init.zeros_(projector.conv.bias)
    features = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(projector(1000 * features), projector(features), rtol=1e-4, atol=1e-4)


def test_the_middle_level_is_the_default() -> None:
    pairs = [(level(2 + i, 8, 8), level(4 + i, 8, 8)) for i in range(4)]
    for count, middle in ((1, 0), (2, 1), (3, 1), (4, 2)):
        assert FitNet(FitNet.Options(), shapes(*pairs[:count])).level == middle
    assert FitNet(FitNet.Options(level=3), shapes(*pairs)).projector.conv.in_channels == 5


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(NeedsError) as error:
        FitNet(FitNet.Options(level=2), shapes((level(3, 8, 8), level(5, 8, 8)), (level(3, 4, 4), level(5, 4, 4))))
    assert str(error.value) == "algorithm 'fitnet': option 'level' is 2, but 2 levels are paired: 0 to 1"
