"""Losses and gradients equal the authors' public code, on reference numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapters import ADAPTERS
from cases import OWN_SET, Answer, Case, compare, compared, gradients_of, read_cases
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import soft_target_loss


def test_value_and_gradients(case: Case) -> None:
    arrays = case.arrays()
    inputs = case.inputs(arrays)
    before = {name: value.detach().clone() for name, value in inputs.items()}
    compared = compare(case, arrays, inputs, ADAPTERS[case.loss](inputs, case.hyper))
    assert compared >= 2, "a case must compare the loss and at least one gradient"
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), f"the loss changed its input {name}"


def test_float32_is_finite_and_close(case: Case) -> None:
    arrays = case.arrays()
    inputs = case.inputs(arrays, torch.float32)
    answer = ADAPTERS[case.loss](inputs, case.hyper)
    want = arrays[case.entry["outputs"]["loss"]].item()
    assert answer.loss.item() == pytest.approx(want, rel=1e-4, abs=1e-5)
    for name, gradient in gradients_of(answer.loss, inputs, case.gradients).items():
        assert gradient.isfinite().all(), f"the gradient of {name} is not finite"


def test_every_adapter_has_a_case_and_every_loss_an_adapter() -> None:
    assert {case.loss for case in read_cases(OWN_SET)} == set(ADAPTERS)


# --- the comparison itself can fail ---------------------------------------------------------


def kd_cases() -> list[Case]:
    # Not the case where student equals teacher: there many wrong losses are 0 as well.
    cases = [case for case in read_cases(OWN_SET) if case.loss == "kd" and case.entry["loss_value"] > 1e-6]
    assert len(cases) >= 5
    return cases


def element_mean(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_target_loss(student, teacher, temperature=temperature) / student.shape[1]


def reversed_direction(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_student, log_teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return F.kl_div(log_teacher, log_student, reduction="batchmean", log_target=True) * temperature**2


def right_value_wrong_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    loss = soft_target_loss(student, teacher, temperature=temperature)
    return loss + 1e-3 * (student - student.detach()).sum()


def right_value_no_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_target_loss(student, teacher, temperature=temperature).detach()


def not_a_number(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_target_loss(student, teacher, temperature=temperature) * torch.nan


@pytest.mark.parametrize(
    "wrong",
    [element_mean, reversed_direction, right_value_wrong_gradient, right_value_no_gradient, not_a_number],
    ids=lambda wrong: wrong.__name__,
)
@pytest.mark.parametrize("case_", kd_cases(), ids=lambda case: case.name)
def test_a_wrong_loss_is_caught(case_: Case, wrong: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    arrays = case_.arrays()
    inputs = case_.inputs(arrays)
    loss = wrong(inputs["student_logits"], inputs["teacher_logits"], case_.hyper["temperature"])
    with pytest.raises(AssertionError, match=r"times what the case allows"):
        compare(case_, arrays, inputs, Answer(loss))


def test_a_missing_extra_is_caught() -> None:
    case = next(case for case in read_cases(OWN_SET) if case.loss == "crd")
    arrays = case.arrays()
    inputs = case.inputs(arrays)
    answer = replace(ADAPTERS["crd"](inputs, case.hyper), extras={})
    with pytest.raises(AssertionError, match="extras"):
        compare(case, arrays, inputs, answer)


def test_a_changed_file_is_caught(tmp_path: Path) -> None:
    case = read_cases(OWN_SET)[0]
    shutil.copy(OWN_SET / case.entry["file"], tmp_path)
    assert replace(case, folder=tmp_path).arrays()
    data = bytearray((tmp_path / case.entry["file"]).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / case.entry["file"]).write_bytes(data)
    with pytest.raises(AssertionError, match="sha256"):
        replace(case, folder=tmp_path).arrays()


def test_a_case_without_an_adapter_is_skipped_with_the_reason() -> None:
    case = read_cases(OWN_SET)[0]
    assert not compared(case, ADAPTERS).marks
    (mark,) = compared(case, set()).marks
    assert mark.name == "skip"
    assert mark.kwargs == {"reason": f"loss '{case.loss}' has no adapter in tests/parity/adapters.py"}
