"""irg: values worked out by hand, what a graph does not see, and what is refused."""

from __future__ import annotations

import pytest
import torch

from kdzoo.api import Level, ModelShapes, NeedsError, Shapes
from kdzoo_graph.irg import IRG, irg_edge_loss, irg_transformation_loss, irg_vertex_loss


def embedding(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_vertex_worked_out_by_hand() -> None:
    assert irg_vertex_loss(embedding([1, 2], [3, 4]), embedding([1, 0], [0, 4])).item() == pytest.approx((4 + 9) / 4)


def test_edges_worked_out_by_hand() -> None:
    # On a line 0-1-2 gives 1, 4, 1 over 4; 0-2-2 gives 4, 4, 0 over 4. Three pairs, twice each, of 9.
    student, teacher = embedding([0.0], [1.0], [2.0]), embedding([0.0], [2.0], [2.0])
    differences = [1 / 4 - 1, 1 - 1, 1 / 4 - 0]
    assert irg_edge_loss([student], [teacher]).item() == pytest.approx(2 * sum(d**2 for d in differences) / 9)
    # Mean over layers: the second one agrees.
    assert irg_edge_loss([student, student], [teacher, student]).item() == pytest.approx(
        sum(d**2 for d in differences) / 9
    )


def test_the_transformation_worked_out_by_hand() -> None:
    # Two channels against one, two pixels against one: everything is averaged to one number a sample.
    first = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]])  # means 2 and 0
    second = torch.tensor([[[[1.0]], [[1.0]]], [[[0.0]], [[4.0]]]])  # means 1 and 2
    moves = torch.tensor([1.0, 4.0]) / 4
    still = torch.zeros(2, 1, 1, 1), torch.tensor([1.0, 1.0]).view(2, 1, 1, 1)  # both move by 1
    loss = irg_transformation_loss((first, second), still)
    assert loss.item() == pytest.approx((moves - 1).square().mean().item())


def test_all_terms_are_zero_for_a_student_equal_to_its_teacher() -> None:
    first, second, vector = maps(0, 4, 3, 6, 6), maps(1, 4, 6, 3, 3), maps(2, 4, 5)
    assert irg_edge_loss([first, second, vector], [first, second, vector]).item() == 0
    assert irg_transformation_loss((first, second), (first, second)).item() == 0
    assert irg_vertex_loss(vector, vector).item() == 0


@pytest.mark.parametrize("change", [lambda x: 1000 * x, lambda x: x + 3, lambda x: x.flip(1), lambda x: -x])
def test_edges_see_no_scale_shift_or_turn_of_a_layer(change) -> None:
    layer = maps(0, 5, 4, 3, 3)
    assert irg_edge_loss([change(layer)], [layer]).item() == pytest.approx(0, abs=1e-20)


def test_the_teacher_gets_no_gradient_and_inputs_stay_as_they_were() -> None:
    student, teacher = ([maps(i, 4, 3, 6, 6).requires_grad_(), maps(i, 4, 6, 3, 3).requires_grad_()] for i in (0, 1))
    before = [x.detach().clone() for x in (*student, *teacher)]
    (irg_edge_loss(student, teacher) + irg_transformation_loss((*student,), (*teacher,))).backward()
    assert all(x.grad is None for x in teacher)
    assert all(x.grad is not None for x in student)
    assert all(torch.equal(x, y) for x, y in zip((*student, *teacher), before, strict=True))


@pytest.mark.parametrize("student", [torch.zeros(4, 3, 6, 6), torch.ones(4, 3, 6, 6), 1e10 * torch.randn(4, 3, 6, 6)])
def test_coinciding_and_enormous_samples_give_finite_gradients(student: torch.Tensor) -> None:
    student = student.clone().requires_grad_()
    teacher = torch.randn(4, 3, 6, 6)
    next_layer = torch.zeros(4, 6, 3, 3)
    loss = irg_edge_loss([student], [teacher]) + irg_transformation_loss((student, next_layer), (teacher, next_layer))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_float32_keeps_close_pairs_far_from_the_origin() -> None:
    # Expanding the square would leave nothing of distances of 0.01 between samples of length 1000.
    near = embedding([0.0, 0.0], [0.01, 0.0], [0.0, 0.03])
    far = (near + 1000).float()
    assert irg_edge_loss([far], [near.float()]).item() < 1e-3


def test_a_single_paired_level_is_refused() -> None:
    level = Level("x", 3, 8, 8, stride=1)
    own = ModelShapes((level,), 8, 10)
    with pytest.raises(NeedsError) as error:
        IRG(IRG.Options(), Shapes(own, (own,), (), 10, 100, (3, 32, 32)))
    assert str(error.value) == "algorithm 'irg': needs two paired levels to see how samples move, got 1"
