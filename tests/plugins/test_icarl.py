"""Values worked out by hand: the loss, herding, the nearest mean; what is kept from task to task."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdzoo.api import AlgorithmChoice, ModelSpec, NeedsError, Outputs, StagePlan, StageResult
from kdzoo.contract.step import Clock
from kdzoo.testing.tiny import tiny_runner
from kdzoo.training.engine import Engine
from kdzoo.zoo.loading import load_zoo
from kdzoo_lifelong.exemplars import NearestMean, choose_exemplars, class_mean, herding
from kdzoo_lifelong.icarl import ICaRL, icarl_loss

STUDENT = ModelSpec("a_model")


def logit(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).logit()


def test_a_value_by_hand() -> None:
    # -ln 3/4 - ln (1 - 1/4), and for a soft target of 1/2 -(1/2 ln 1/5 + 1/2 ln 4/5)
    hard = icarl_loss(logit(0.75, 0.25), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert hard.item() == pytest.approx(-2 * math.log(0.75), rel=1e-12)
    soft = icarl_loss(logit(0.2), torch.tensor([[0.5]], dtype=torch.float64))
    assert soft.item() == pytest.approx(-0.5 * math.log(0.2) - 0.5 * math.log(0.8), rel=1e-12)


def test_classes_are_summed_and_samples_averaged() -> None:
    one = icarl_loss(logit(0.75, 0.25), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    logits = logit(0.75, 0.25).repeat(3, 2)
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64).repeat(3, 1)
    assert icarl_loss(logits, targets).item() == pytest.approx(2 * one.item(), rel=1e-12)


def test_herding_by_hand() -> None:
    # Directions of 0, 90 and 50 degrees: the mean points to 48 or so, 50 is nearest; with it, 0 and 90 are to decide.
    angles = torch.tensor([0.0, 90.0, 50.0]).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1]])
    # mean ((0 + 1 + cos 50) / 3, (1 + 0 + sin 50) / 3) = (0.548, 0.589); half of 50 + 0: (0.821, 0.383), at a distance
    # of 0.342; half of 50 + 90: (0.321, 0.883), at 0.371
    assert herding(points, 3) == [2, 0, 1]
    assert herding(points, 2) == [2, 0]
    assert herding(points, 9) == [2, 0, 1]


def test_herding_comes_nearer_to_the_mean_than_the_first_rows() -> None:
    points = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) + 0.3
    features = nn.functional.normalize(points, dim=1)
    chosen, mean = herding(points, 6), features.mean(0)
    assert (features[chosen].mean(0) - mean).norm() < 0.5 * (features[:6].mean(0) - mean).norm()
    assert len(set(herding(points, 60))) == 60


def test_a_class_mean_has_length_one_and_ignores_the_length_of_its_samples() -> None:
    mean = class_mean(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.5]).sqrt())


class Embedding(nn.Module):
    """Answers with its inputs as embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor, pre_logits: bool = False) -> Outputs:
        assert pre_logits
        return Outputs(torch.zeros(len(inputs), 3), (), inputs)


def test_the_nearest_mean_by_hand() -> None:
    means = {2: torch.tensor([1.0, 0.0]), 0: torch.tensor([0.0, 1.0])}
    outputs = NearestMean(Embedding(), means, 3)(torch.tensor([[2.0, 0.0], [0.3, 0.4]]))
    # squared distances 0 and 2; (0.6, 0.8): 0.16 + 0.64 and 0.36 + 0.04
    expected = torch.tensor([[-2.0, -torch.inf, 0.0], [-0.4, -torch.inf, -0.8]])
    torch.testing.assert_close(outputs.logits, expected)


def plan_of(targets: tuple[int, ...], memory: int) -> StagePlan:
    """A plan whose network's embedding of row r points to r degrees."""

    def outputs(result: StageResult, samples: object) -> Outputs:
        angles = torch.tensor([float(row) for row in samples]).deg2rad()  # type: ignore[attr-defined]
        return Outputs(torch.zeros(len(angles), 4), (), torch.stack([angles.cos(), angles.sin()], dim=1))

    options = ICaRL.Options(tasks=2, order="given", memory=memory)
    choice = AlgorithmChoice("icarl", {})
    return StagePlan(
        STUDENT, (), (), (), choice, None, options, num_classes=4, seed=0, targets=targets, outputs=outputs
    )


def test_the_memory_is_shared_equally_and_shortened_later() -> None:
    plan = plan_of((0,) * 5 + (1,) * 5 + (2,) * 5 + (3,) * 5, memory=9)
    results = [StageResult(name, name, STUDENT, {}, {}) for name in ("task_1", "task_2")]
    tasks = ((0, 1), (2, 3))
    first = choose_exemplars(plan, tasks, results[:1], 9)
    second = choose_exemplars(plan, tasks, results, 9)
    assert {k: len(rows) for k, rows in first.items()} == {0: 4, 1: 4}
    assert {k: len(rows) for k, rows in second.items()} == dict.fromkeys(range(4), 2)
    assert {k: rows[:2] for k, rows in first.items()} == {k: second[k] for k in (0, 1)}
    assert first[0][0] == 2  # the middle of 0 to 4 degrees
    assert all(plan.targets[row] == k for k, rows in second.items() for row in rows)
    assert choose_exemplars(plan, tasks, [], 9) == {}


def test_a_task_is_trained_on_its_samples_and_the_exemplars_alone() -> None:
    plan = plan_of((0, 1, 2, 3) * 5, memory=8)
    generator = ICaRL.stages(plan)
    first, bound = next(generator)
    assert first.algorithm == AlgorithmChoice("icarl", {}, {"icarl": 0.0})
    assert (bound.algorithm, bound.samples) == (None, first.samples)
    result = StageResult("task_1", "key", STUDENT, {}, {})
    lower = StageResult("fine_tuning_1", "lower", STUDENT, {}, {})
    second, bound = generator.send([result, lower])
    kept = ICaRL.kept(plan, ((0, 1), (2, 3)), [result])
    assert len(kept) == 8
    new = {row for row, target in enumerate(plan.targets) if target in (2, 3)}
    assert set(second.samples or ()) == new | set(kept)
    assert set(bound.samples or ()) == new
    assert (second.teachers, second.start, bound.teachers, bound.start) == ((result,), result, (), lower)
    assert (second.algorithm, second.classes, second.earlier) == (plan.own, (0, 1, 2, 3), (0, 1))


def test_targets_are_labels_on_new_classes_and_the_teacher_on_old_ones(tmp_path: Path) -> None:
    run = tiny_runner(ICaRL, load_zoo(), tmp_path)
    generator = ICaRL.stages(run.stage_plan(()))
    stages = next(generator)
    second = generator.send([run.train(stage) for stage in stages])[0]
    job = run.build.job(second, run.plan.algorithm, run.build.train_section(second))[0]
    ctx = Engine(job).context(next(iter(job.loader.train_batches(0, 0))), Clock(0, 1, 0, 1))
    (update,) = job.algorithm.step(ctx)
    old, new = job.algorithm.old.tolist(), job.algorithm.new.tolist()
    assert set(ctx.batch.targets.tolist()) & set(old), "no exemplar in the batch"
    student, teacher = ctx.student.logits.detach().double(), ctx.teacher.logits.double()
    by_hand = {"task": 0.0, "icarl": 0.0}
    for row, label in enumerate(ctx.batch.targets.tolist()):
        for k in range(4):
            g = student[row, k].sigmoid()
            q = teacher[row, k].sigmoid() if k in old else float(k == label)
            by_hand["icarl" if k in old else "task"] -= float(q * g.log() + (1 - q) * (1 - g).log()) / len(student)
    assert sorted(old + new) == [0, 1, 2, 3]
    assert {name: term.item() for name, term in update.loss.items()} == pytest.approx(by_hand, rel=1e-5)


def test_less_memory_than_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeedsError) as caught:
        tiny_runner(ICaRL, load_zoo(), tmp_path, options={"memory": 3}).rehearse()
    assert str(caught.value) == ("algorithm 'icarl': options.memory: 3 exemplars are not one for each of the 4 classes")
