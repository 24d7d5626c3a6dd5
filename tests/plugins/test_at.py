"""at: a value worked out by hand, what an attention map does not depend on, and sizes that differ."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdzoo.api import Level, ModelShapes, NeedsError, Shapes
from kdzoo_attention.at import AT, at_loss


def maps(seed: int, channels: int = 5, size: tuple[int, int] = (4, 4)) -> torch.Tensor:
    return torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_value_worked_out_by_hand() -> None:
    # One channel, 1x2 pixels. Student (1, 1): map (1, 1) / sqrt 2. Teacher (0, 3): map (0, 1).
    student, teacher = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
    r = 0.5**0.5
    expected = ((r - 0) ** 2 + (r - 1) ** 2) / 2
    assert at_loss([student], [teacher], 2).item() == pytest.approx(expected, rel=1e-6)


def test_levels_are_summed() -> None:
    levels = [(maps(0), maps(1)), (maps(2, size=(2, 2)), maps(3, size=(2, 2)))]
    each = [at_loss([student], [teacher], 2) for student, teacher in levels]
    torch.testing.assert_close(at_loss(*zip(*levels, strict=True), p=2), each[0] + each[1])


def test_a_map_depends_neither_on_scale_nor_sign_nor_the_order_of_channels() -> None:
    student, teacher = maps(4), maps(5)
    expected = at_loss([student], [teacher], 2)
    for same in (student * 1e5, student * 1e-5, -student, student.flip(1), torch.cat([student, student], dim=1)):
        torch.testing.assert_close(at_loss([same], [teacher], 2), expected)


def test_a_perfect_student_scores_zero_at_any_power() -> None:
    for p in (2, 4, 16):
        assert at_loss([maps(6)], [maps(6)], p).item() == 0


@pytest.mark.parametrize(
    ("have", "want", "common"), [((8, 8), (4, 4), (4, 4)), ((4, 4), (7, 5), (4, 4)), ((8, 3), (4, 6), (4, 3))]
)
def test_the_larger_map_is_averaged_to_the_smaller(
    have: tuple[int, int], want: tuple[int, int], common: tuple[int, int]
) -> None:
    student, teacher = maps(7, 2, have), maps(8, 3, want)
    smaller = [F.adaptive_avg_pool2d(features, common) for features in (student, teacher)]
    torch.testing.assert_close(at_loss([student], [teacher], 2), at_loss(smaller[:1], smaller[1:], 2))


def test_a_dead_sample_has_no_map_and_no_gradient() -> None:
    student = maps(9).clone()
    student[1] = 0
    student.requires_grad_()
    loss = at_loss([student], [maps(10)], 2)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad[1].abs().max() == 0
    assert student.grad[0].abs().max() > 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("p", [2, 16])
def test_any_scale_of_activations_stays_in_range_in_float32(scale: float, p: int) -> None:
    student, teacher = (maps(11).float() * scale).requires_grad_(), maps(12).float() * scale
    loss = at_loss([student], [teacher], p)
    loss.backward()
    torch.testing.assert_close(loss.double(), at_loss([maps(11)], [maps(12)], p), rtol=1e-4, atol=1e-6)
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0


def test_the_teacher_gets_no_gradient_and_inputs_stay_as_they_were() -> None:
    student, teacher = maps(13).requires_grad_(), maps(14).requires_grad_()
    at_loss([student], [teacher], 2).backward()
    assert teacher.grad is None
    assert torch.equal(student.detach(), maps(13))


def test_single_pixels_are_refused() -> None:
    def shapes(*sizes: int) -> Shapes:
        model = ModelShapes(tuple(Level("x", 4, size, size, 1) for size in sizes), 8, 10)
        return Shapes(model, (model,), (), 10, 100, (3, 32, 32))

    AT(AT.Options(), shapes(2, 1))
    with pytest.raises(NeedsError) as error:
        AT(AT.Options(), shapes(1, 1))
    assert str(error.value) == (
        "algorithm 'at': every paired level is a single pixel, whose attention map is always 1; "
        "use larger images or a network with shallower levels"
    )
