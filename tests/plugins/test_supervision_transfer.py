"""The squared difference of two maps by hand, and what happens where they differ in shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdzoo.api import Level, ModelShapes, NeedsError, Shapes
from kdzoo_cross_modal.supervision_transfer import SupervisionTransfer, supervision_transfer_loss


def test_two_maps_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0], [3.0, 1.0]]]])
    assert supervision_transfer_loss(student, teacher).item() == pytest.approx((4 + 9) / 4)
    assert supervision_transfer_loss(teacher, teacher).item() == 0.0


def test_the_larger_map_is_pooled_to_the_smaller() -> None:
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # whose mean is 2.5
    assert supervision_transfer_loss(student, torch.tensor([[[[1.5]]]])).item() == pytest.approx(1.0)
    assert supervision_transfer_loss(torch.tensor([[[[1.5]]]]), student).item() == pytest.approx(1.0)


def test_the_gradient_is_that_of_a_mean_square() -> None:
    student = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    supervision_transfer_loss(student, teacher).backward()
    torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / student.numel())


def shapes(student: int, teacher: int) -> Shapes:
    def model(channels: int) -> ModelShapes:
        levels = (Level("a", 2, 8, 8, 1), Level("b", channels, 4, 4, 2))
        return ModelShapes(levels, channels, 3)

    return Shapes(model(student), (model(teacher),), (), 3, 10, (1, 8, 8))


@pytest.mark.parametrize(("student", "projected"), [(5, True), (7, False)])
def test_channels_are_projected_only_where_they_differ(student: int, projected: bool) -> None:
    algorithm = SupervisionTransfer(SupervisionTransfer.Options(), shapes(student, 7))
    assert isinstance(algorithm.projector, nn.Conv2d) == projected


@pytest.mark.parametrize("asked", [2, -3])
def test_a_level_that_is_not_there_is_refused(asked: int) -> None:
    with pytest.raises(NeedsError) as caught:
        SupervisionTransfer(SupervisionTransfer.Options(level=asked), shapes(5, 5))
    assert str(caught.value) == (
        f"algorithm 'supervision_transfer': option 'level' is {asked}, but 2 levels are paired: -2 to 1"
    )
