"""Values by hand, what the paper claims of soft targets, numbers at the edge, and what kdzoo.losses offers."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import kdzoo
from kdzoo import losses
from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.declared import Paper
from kdzoo.contract.extension_points import Offer
from kdzoo.errors import PluginError
from kdzoo.losses import UnknownLoss, mean_prediction, offered, sample_distances, soft_target_loss
from kdzoo.zoo.loading import load_zoo
from kdzoo.zoo.plugin_checks import check_algorithm

ROOT = Path(kdzoo.__file__).resolve().parents[1]


def test_value_worked_out_by_hand() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert soft_target_loss(student, teacher, temperature=1.0).item() == pytest.approx(expected, abs=1e-7)


def test_temperature_divides_the_logits_and_scales_the_loss() -> None:
    # At T=2 logits of twice the size give the same probabilities, and the loss is four times as large.
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    assert soft_target_loss(2 * student, 2 * teacher, temperature=2.0).item() == pytest.approx(
        4 * soft_target_loss(student, teacher, temperature=1.0).item()
    )


def test_mean_over_samples_and_sum_over_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    alone = torch.stack(
        [soft_target_loss(s[None], t[None], temperature=3.0) for s, t in zip(student, teacher, strict=True)]
    )
    torch.testing.assert_close(soft_target_loss(student, teacher, temperature=3.0), alone.mean())


def test_ignores_a_constant_added_to_the_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        soft_target_loss(student + 5, teacher - 9, temperature=4.0), soft_target_loss(student, teacher, temperature=4.0)
    )


def test_a_perfect_student_scores_zero_with_zero_gradient() -> None:
    student = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = soft_target_loss(student, student.detach().clone(), temperature=4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert student.grad.abs().max().item() < 1e-6


def test_gradient_is_that_of_the_cross_entropy_with_soft_targets() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    (ours,) = torch.autograd.grad(soft_target_loss(student, teacher, temperature=4.0), student)
    (soft_targets,) = torch.autograd.grad(16 * F.cross_entropy(student / 4, F.softmax(teacher / 4, dim=1)), student)
    torch.testing.assert_close(ours, soft_targets)


def test_at_high_temperature_it_matches_centred_logits() -> None:
    # Section 2.1 of the paper: for large T the loss becomes half the squared distance of centred logits over K.
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = difference.square().sum(1).mean() / (2 * 6)
    torch.testing.assert_close(soft_target_loss(student, teacher, temperature=1e4), expected, rtol=1e-3, atol=0)


def test_the_teacher_gets_no_gradient_and_inputs_stay_as_they_were() -> None:
    student = torch.randn(3, 4).requires_grad_()
    teacher = torch.randn(3, 4).requires_grad_()
    before = student.detach().clone(), teacher.detach().clone()
    soft_target_loss(student, teacher, temperature=4.0).backward()
    assert teacher.grad is None
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_of_several_teachers_the_divergences_are_summed() -> None:
    generator = torch.Generator().manual_seed(5)
    student, *teachers = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    alone = torch.stack([soft_target_loss(student, teacher, temperature=3.0) for teacher in teachers])
    torch.testing.assert_close(soft_target_loss(student, *teachers, temperature=3.0), alone.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [128.0, 8192.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_extreme_logits_stay_finite_and_exact(size: float, temperature: float, dtype: torch.dtype) -> None:
    # The teacher is sure of class 0, the student of class 1: the loss is T^2 * 2 * size / T. All are powers of 2.
    teacher = torch.tensor([[size, -size, 0.0]], dtype=dtype)
    student = (-teacher).requires_grad_()
    loss = soft_target_loss(student, teacher, temperature=temperature)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == 2 * size * temperature
    expected = torch.tensor([[-temperature, temperature, 0.0]], dtype=dtype)
    torch.testing.assert_close(student.grad, expected, atol=1e-6, rtol=0)


# --- the other two ----------------------------------------------------------------------------


def test_a_mean_prediction_by_hand() -> None:
    # (1/4, 3/4) and (1/2, 1/2) have the mean (3/8, 5/8); at temperature 2 the logits count half.
    first, second = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = torch.tensor([[3 / 8, 5 / 8]])
    torch.testing.assert_close(mean_prediction([first, second]).exp(), expected)
    torch.testing.assert_close(mean_prediction([2 * first, 2 * second], 2.0).exp(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_of_extreme_predictions_stays_finite(dtype: torch.dtype) -> None:
    # One is sure of class 0, one of class 1: both have 1/2, and the third class what e^-8192 leaves.
    sure = torch.tensor([[8192.0, -8192.0, 0.0]], dtype=dtype)
    mean = mean_prediction([sure, -sure])
    assert mean.isfinite().all()
    torch.testing.assert_close(mean.float().exp(), torch.tensor([[0.5, 0.5, 0.0]]), atol=4e-3, rtol=0)


def test_distances_by_hand_over_samples_of_any_shape() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    expected = torch.tensor([[0.0, 5.0, 4.0], [5.0, 0.0, 3.0], [4.0, 3.0, 0.0]])
    torch.testing.assert_close(sample_distances(features), expected)
    torch.testing.assert_close(sample_distances(features.reshape(3, 1, 2, 1)), expected)


def test_close_samples_far_from_zero_keep_their_distance() -> None:
    # In float32 the product form, |a|^2 + |b|^2 - 2ab, has nothing left of 1e-3 beside 1000.
    features = torch.full((2, 30), 1000.0)
    features[1, 0] += 2**-10
    assert sample_distances(features)[0, 1].item() == 2**-10


# --- kdzoo.losses -------------------------------------------------------------------------------


def test_every_public_loss_of_a_plugin_is_offered() -> None:
    written = {
        node.name
        for path in (ROOT / "plugins").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_loss") and not node.name.startswith("_")
    }
    assert len(written) >= 40
    own = {name for name, modules in offered().items() if all(module.startswith("kdzoo_") for module in modules)}
    assert own == written
    assert set(dir(kdzoo.losses)) == written | {"mean_prediction", "sample_distances", "soft_target_loss"}


def test_a_loss_is_the_function_of_its_algorithm() -> None:
    assert kdzoo.losses.soft_target_loss is soft_target_loss
    (loss,) = load_zoo().algorithm("kd").loss_functions
    assert kdzoo.losses.kd_loss is loss
    student, teacher = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loss(student, teacher, 4.0), soft_target_loss(student, teacher, temperature=4.0))


def test_an_unknown_loss_says_the_nearest() -> None:
    with pytest.raises(UnknownLoss) as unknown:
        kdzoo.losses.kdd_loss  # noqa: B018
    assert str(unknown.value) == "kdzoo.losses: unknown loss 'kdd_loss'; did you mean 'kd_loss'?"
    assert not hasattr(kdzoo.losses, "nothing_like_it")
    with pytest.raises(AttributeError, match="no attribute '__wrapped__'"):
        kdzoo.losses.__wrapped__  # noqa: B018


class Matching(Algorithm):
    name = "matching"
    paper = Paper("", "", 0, "")


def claimed(module: str) -> Any:
    def kd_loss(logits: torch.Tensor) -> torch.Tensor: ...

    def matching_loss(logits: torch.Tensor) -> torch.Tensor: ...

    functions = (kd_loss, matching_loss)
    for function in functions:
        function.__module__ = module
    return type("Other", (Matching,), {"loss_functions": functions})


def test_two_of_one_name_are_an_error_that_names_both_and_kdzoos_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = load_zoo()
    algorithms = dict(zoo.algorithms)
    for name in ("one", "other"):
        algorithms[f"of_{name}"] = Offer(f"of_{name}", claimed(f"kdzoo_{name}"), name, f"kdzoo-{name}", "1.0")
    monkeypatch.setattr(losses, "catalogue", lambda: replace(zoo, algorithms=algorithms))
    assert kdzoo.losses.kd_loss is load_zoo().algorithm("kd").loss_functions[0]
    with pytest.raises(PluginError) as clash:
        kdzoo.losses.matching_loss  # noqa: B018
    assert str(clash.value) == (
        "kdzoo.losses: 'matching_loss' is offered by kdzoo_one of kdzoo-one 1.0 and by kdzoo_other of kdzoo-other 1.0; "
        "import it from the module that is meant"
    )


@pytest.mark.parametrize("wrong", [[soft_target_loss], (lambda x: x,), (torch.exp,), (sample_distances,)])
def test_what_is_no_loss_function_is_refused(wrong: Any) -> None:
    cls = type("Wrong", (Matching,), {"loss_functions": wrong, "losses": lambda self, ctx: {}})
    with pytest.raises(PluginError, match=r"Wrong: loss_functions is .*; it is a tuple of functions named \.\.\._loss"):
        check_algorithm(cls)
