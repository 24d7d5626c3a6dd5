"""Values worked out by hand; which outputs the terms touch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdzoo.contract.stage import Stage
from kdzoo.contract.step import Clock
from kdzoo.testing.tiny import tiny_runner
from kdzoo.training.engine import Engine
from kdzoo.zoo.loading import load_zoo
from kdzoo_lifelong.lwf import LwF, lwf_loss


def log(*probabilities: float) -> Tensor:
    """Logits of one sample whose softmax is exactly these probabilities."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_a_value_by_hand() -> None:
    # -(1/4 ln 1/2 + 3/4 ln 1/2)
    assert lwf_loss(log(0.5, 0.5), log(0.25, 0.75), 1.0).item() == pytest.approx(math.log(2), rel=1e-12)
    # -(1/2 ln 1/5 + 1/2 ln 4/5)
    expected = -0.5 * math.log(0.2) - 0.5 * math.log(0.8)
    assert lwf_loss(log(0.2, 0.8), log(0.5, 0.5), 1.0).item() == pytest.approx(expected, rel=1e-12)


def test_temperature_two_is_the_square_root_of_the_probabilities() -> None:
    # square roots of 1/10 and 9/10 are as 1 to 3
    expected = -0.25 * math.log(0.5) - 0.75 * math.log(0.5)
    assert lwf_loss(log(0.5, 0.5), log(0.1, 0.9), 2.0).item() == pytest.approx(expected, rel=1e-12)
    expected = -0.5 * math.log(0.25) - 0.5 * math.log(0.75)
    assert lwf_loss(log(0.1, 0.9), log(0.5, 0.5), 2.0).item() == pytest.approx(expected, rel=1e-12)


def test_smoothing_mixes_in_the_uniform_distribution() -> None:
    # (1/5 + 1/20) / (11/10) and (4/5 + 1/20) / (11/10) with a tenth
    expected = -0.5 * math.log(0.25 / 1.1) - 0.5 * math.log(0.85 / 1.1)
    assert lwf_loss(log(0.2, 0.8), log(0.5, 0.5), 1.0, smoothing=0.1).item() == pytest.approx(expected, rel=1e-12)


def test_a_student_equal_to_its_teacher_has_no_gradient_and_the_teacher_never() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student, teacher = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    lwf_loss(student, teacher, 2.0).backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(logits))
    assert teacher.grad is None


def test_a_later_task_keeps_old_outputs_and_learns_new_ones(tmp_path: Path) -> None:
    run = tiny_runner(LwF, load_zoo(), tmp_path)
    plan = run.stage_plan(())
    generator = LwF.stages(plan)
    (first,) = next(generator)
    result = run.train(first)
    second, bound = generator.send([result])
    assert (second.teachers, second.start, bound.start) == ((result,), result, result)
    job = run.build.job(second, run.plan.algorithm, run.build.train_section(second))[0]
    ctx = Engine(job).context(next(iter(job.loader.train_batches(0, 0))), Clock(0, 1, 0, 1))
    assert set(ctx.batch.targets.tolist()) <= set(job.algorithm.new.tolist())
    for term, touched in (
        (job.algorithm.losses(ctx)["lwf"], job.algorithm.old),
        (ctx.task_loss(ctx.student.logits), job.algorithm.new),
    ):
        (gradient,) = torch.autograd.grad(term, ctx.student.logits, retain_graph=True)
        assert gradient.abs().sum(0).nonzero().flatten().tolist() == sorted(touched.tolist())
    assert sorted([*job.algorithm.old.tolist(), *job.algorithm.new.tolist()]) == [0, 1, 2, 3]


def test_without_a_past_there_is_nothing_to_keep(tmp_path: Path) -> None:
    run = tiny_runner(LwF, load_zoo(), tmp_path)
    stage = Stage("student", run.plan.student, run.plan.algorithm.choice)
    job = run.build.job(stage, run.plan.algorithm, run.build.train_section(stage))[0]
    ctx = Engine(job).context(next(iter(job.loader.train_batches(0, 0))), Clock(0, 1, 0, 1))
    assert job.algorithm.losses(ctx)["lwf"].item() == 0
