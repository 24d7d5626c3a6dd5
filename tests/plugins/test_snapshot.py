"""A value by hand, and the plan of mini-generations: budget, start, teacher, learning rate."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.api import AlgorithmChoice, ModelShapes, ModelSpec, NeedsError, Outputs, Shapes, Stage, StageResult
from kdzoo.testing.tiny import bare_plan, tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_self.snapshot import Snapshot

OWN = AlgorithmChoice("snapshot", {}, {"task": 1.0, "snapshot": 1.0})
STUDENT = ModelSpec("resnet20")
SCHEDULE = {"name": "multistep", "milestones": [3, 6], "warmup_epochs": 1, "min_lr": 0.001, "decay_rate": 0.1}


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    width = ModelShapes((), 4, student.shape[1])
    options = Snapshot.Options(temperature=temperature)
    algorithm = Snapshot(options, Shapes(width, (width,), (), student.shape[1], 100, (3, 8, 8)))
    return algorithm.losses(SimpleNamespace(student=Outputs(student), teacher=Outputs(teacher)))["snapshot"]


def test_value_worked_out_by_hand() -> None:
    # the teacher's logits are halved to (1/2, 1/2)-like (1, 1); the student's (1/4, 3/4) stay as they are
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert loss(log(0.25, 0.75), log(0.5, 0.5), 7.0).item() == pytest.approx(expected, rel=1e-12)
    # (1/10, 9/10) softened by 2 is (1/4, 3/4)
    assert loss(log(0.25, 0.75), log(0.1, 0.9), 2.0).item() == pytest.approx(0.0, abs=1e-12)


def test_equal_networks_agree_at_temperature_1_only() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64)
    assert loss(logits, logits, 1.0).item() == pytest.approx(0.0, abs=1e-12)
    assert loss(logits, logits, 2.0).item() > 0


def test_the_snapshot_gets_no_gradient() -> None:
    student, teacher = (torch.randn(4, 5).requires_grad_() for _ in range(2))
    loss(student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def drive(epochs: int, **options: Any) -> list[Any]:
    """Drive the generator as the runner does and return the stages in order, and the student."""
    train = {"epochs": epochs, "schedule": SCHEDULE}
    generator = Snapshot.stages(bare_plan(STUDENT, OWN, Snapshot.Options(**options), train=train))
    done: list[Stage] = []
    answer = None
    while True:
        try:
            stage = generator.send(answer)
        except StopIteration as end:
            return [*done, end.value]
        done.append(stage)
        answer = StageResult(stage.name, f"key of {stage.name}", stage.model, {}, {})


def run(epochs: int, **options: Any) -> list[Stage]:
    return drive(epochs, **options)[:-1]


def test_each_cycle_goes_on_from_the_one_before_and_learns_from_it() -> None:
    first, second, last, student = drive(9, cycles=3)
    assert student.name == "student"
    assert [stage.name for stage in (first, second, last)] == ["cycle_1", "cycle_2", "student"]
    assert (first.algorithm, first.start, first.teachers) == (None, None, ())
    for stage, before in ((second, first), (last, second)):
        assert stage.algorithm == OWN
        assert stage.start is not None
        assert stage.start.name == before.name
        assert stage.teachers == (stage.start,)


@pytest.mark.parametrize(("epochs", "cycles", "lengths"), [(30, 2, [15, 15]), (10, 3, [3, 3, 4]), (5, 5, [1] * 5)])
def test_all_cycles_together_take_the_epochs_of_one_training(epochs: int, cycles: int, lengths: list[int]) -> None:
    assert [stage.train["epochs"] for stage in run(epochs, cycles=cycles)] == lengths


def test_every_cycle_anneals_the_learning_rate_once() -> None:
    first, last = (stage.train["schedule"] for stage in run(8, cycles=2))
    assert first == {"name": "cosine", "milestones": [], "warmup_epochs": 1, "min_lr": 0.001}
    assert last == {**first, "warmup_epochs": 0}


def test_more_cycles_than_epochs_are_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        run(3, cycles=4)
    assert str(caught.value) == "algorithm 'snapshot': 4 cycles do not fit into train.epochs: 3"


def test_a_run_takes_as_many_steps_as_its_control_and_shows_each_snapshot(tmp_path: Path) -> None:
    changes = {"control": True, "train": {"epochs": 5}}
    results = tiny_runner(Snapshot, load_zoo("none"), tmp_path, changes, {"cycles": 2}).run()
    steps = {facts["name"]: facts["steps"] for facts in results["stages"]}
    assert steps["cycle_1"] + steps["student"] == steps["control"]
    (table,) = results["report_items"]
    assert [row[:2] for row in table["rows"]] == [("cycle_1", 2), ("student", 3), ("ensemble of all", 5)]
    assert table["rows"][1][2] == round(results["student"]["top1_percent"], 2)
    assert [variant["label"] for variant in results["variants"]] == ["all snapshots"]
