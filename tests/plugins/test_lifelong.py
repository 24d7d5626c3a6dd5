"""Tasks, the stages made of them, and what they are judged by; values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdzoo.api import AlgorithmChoice, ModelSpec, NeedsError, StagePlan, StageResult
from kdzoo.testing.tiny import tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_lifelong.class_incremental import split_classes
from kdzoo_lifelong.icarl import ICaRL
from kdzoo_lifelong.lwf import LwF
from kdzoo_lifelong.transfer import average_accuracy, average_forgetting, backward_transfer, task_accuracies

MATRIX = ((90.0, None, None), (60.0, 80.0, None), (70.0, 50.0, 100.0))


# --- the numbers ----------------------------------------------------------------------------------


def test_average_accuracy_by_hand() -> None:
    assert [average_accuracy(MATRIX, after) for after in range(3)] == [90.0, 70.0, pytest.approx(220 / 3)]


def test_forgetting_is_against_the_best_there_ever_was() -> None:
    # task 1 was best at 90, task 2 at 80
    assert [average_forgetting(MATRIX, after) for after in range(3)] == [None, 30.0, (20 + 30) / 2]
    recovered = ((50.0, None, None), (90.0, 80.0, None), (70.0, 80.0, 100.0))
    assert average_forgetting(recovered, 2) == (20 + 0) / 2
    assert average_forgetting(recovered, 1) == -40.0


def test_backward_transfer_is_against_the_accuracy_when_learnt() -> None:
    assert [backward_transfer(MATRIX, after) for after in range(3)] == [None, -30.0, (-20 - 30) / 2]
    recovered = ((50.0, None, None), (90.0, 80.0, None), (70.0, 80.0, 100.0))
    assert backward_transfer(recovered, 2) == (20 + 0) / 2


def test_a_task_that_was_not_measured_counts_nowhere() -> None:
    matrix = ((None, None), (None, 40.0))
    assert (average_accuracy(matrix, 0), average_accuracy(matrix, 1)) == (None, 40.0)
    assert (average_forgetting(matrix, 1), backward_transfer(matrix, 1)) == (None, None)


def test_the_answer_is_among_the_classes_seen() -> None:
    tasks = ((3, 0), (1, 2))
    logits = np.array([[5, 9, 9, 4], [4, 9, 9, 5], [0, 2, 1, 9], [9, 1, 8, 0], [0, 8, 9, 0]], dtype=np.float32)
    targets = np.array([0, 0, 1, 2, 2])
    # among 3 and 0 the first two answers are 0 and 3; the rest are of a task to come
    assert task_accuracies(logits, targets, tasks, 0) == (50.0, None)
    # among all: 1, 1 | 3, 0, 2
    assert task_accuracies(logits, targets, tasks, 1) == (0.0, pytest.approx(100 / 3))
    assert task_accuracies(logits[2:], targets[2:], tasks, 1)[0] is None


# --- tasks and stages -----------------------------------------------------------------------------


def test_classes_are_split_evenly_in_a_seeded_order() -> None:
    assert split_classes(10, 5, None) == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    assert split_classes(7, 3, None) == ((0, 1, 2), (3, 4), (5, 6))
    seeded = split_classes(10, 5, 1)
    assert seeded == split_classes(10, 5, 1)
    assert seeded != split_classes(10, 5, 2)
    assert sorted(k for task in seeded for k in task) == list(range(10))


def plan_of(targets: tuple[int, ...], **options: Any) -> StagePlan:
    choice = AlgorithmChoice("lwf", options)
    student = ModelSpec("a_model")
    return StagePlan(student, (), (), (), choice, None, LwF.Options(**options), num_classes=4, seed=0, targets=targets)


def drive(plan: StagePlan) -> tuple[list[list[Any]], StageResult]:
    generator, answer, done = LwF.stages(plan), None, []
    while True:
        try:
            wanted = generator.send(answer)
        except StopIteration as end:
            return done, end.value
        done.append(wanted)
        answer = [StageResult(stage.name, f"key of {stage.name}", stage.model, {}, {}) for stage in wanted]


def test_each_task_is_taught_by_the_network_before_and_fine_tuning_by_nobody() -> None:
    done, final = drive(plan_of((0, 1, 2, 3) * 3, tasks=4, order="given"))
    names = [[(s.name, s.start.name if s.start else None, [t.name for t in s.teachers]) for s in w] for w in done]
    assert names == [
        [("task_1", None, [])],
        [("task_2", "task_1", ["task_1"]), ("fine_tuning_2", "task_1", [])],
        [("task_3", "task_2", ["task_2"]), ("fine_tuning_3", "fine_tuning_2", [])],
        [("task_4", "task_3", ["task_3"]), ("fine_tuning_4", "fine_tuning_3", [])],
    ]
    assert final.name == "task_4"
    assert [(w[0].samples, w[0].classes, w[0].earlier) for w in done[:2]] == [
        ((0, 4, 8), (0,), ()),
        ((1, 5, 9), (0, 1), (0,)),
    ]
    for own, bound in done[1:]:
        assert (own.samples, own.classes, own.earlier) == (bound.samples, bound.classes, bound.earlier)


def test_the_lower_bound_can_be_left_out() -> None:
    done, _ = drive(plan_of((0, 1, 2, 3), tasks=2, order="given", lower_bound=False))
    assert [[stage.name for stage in wanted] for wanted in done] == [["task_1"], ["task_2"]]


def test_a_task_without_a_sample_is_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        drive(plan_of((0, 1, 1), tasks=2, order="given"))
    assert str(caught.value) == "algorithm 'lwf': no training sample of task 2, the classes [2, 3]"


def test_more_tasks_than_classes_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(NeedsError) as caught:
        tiny_runner(LwF, load_zoo(), tmp_path, options={"tasks": 5}).rehearse()
    assert str(caught.value) == ("algorithm 'lwf': options.tasks: 5 tasks need as many classes, the data set has 4")


# --- what a run shows -----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LwF, ICaRL])
def test_a_run_shows_its_tasks_with_lower_and_upper_bound(cls: type[Any], tmp_path: Path) -> None:
    results = tiny_runner(cls, load_zoo(), tmp_path, {"control": True}).run()
    shown = {item["title"]: item for item in results["report_items"]}
    ways = ["lwf"] if cls is LwF else ["nearest mean of exemplars", "own head"]
    maps = [f"Accuracy: {way}" for way in (*ways, "fine-tuning")]
    average, forgetting, transfer = (
        "Average accuracy after each task",
        "Average forgetting after each task",
        "Backward transfer after each task",
    )
    assert list(shown) == [*maps, average, forgetting, transfer]
    assert list(shown[average]["columns"]) == ["after task", *ways, "fine-tuning", "joint training"]
    own = shown[maps[len(ways) - 1]]["values"]
    assert own[0][1] is None
    assert "stripe 3" in shown[maps[0]]["note"]
    assert sum(own[1]) / 2 == pytest.approx(results["student"]["top1_percent"])  # tasks of one size
    assert shown[average]["rows"][1][len(ways)] == pytest.approx(sum(own[1]) / 2)
    assert shown[average]["rows"][1][-1] == pytest.approx(results["control"]["top1_percent"])
    assert shown[transfer]["rows"][1][len(ways)] == pytest.approx(own[1][0] - own[0][0])
    assert shown[forgetting]["rows"][1][len(ways)] == pytest.approx(own[0][0] - own[1][0])
    assert [variant["label"] for variant in results["variants"]] == ways[:-1]
    if cls is ICaRL:
        nearest = shown[maps[0]]["values"][1]
        assert results["variants"][0]["top1_percent"] == pytest.approx(sum(nearest) / 2)
