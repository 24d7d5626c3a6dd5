"""Samples without a label: who trains on them, what the task loss makes of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from kdzoo.api import Algorithm, ModelSpec, Needs, Paper, Stage
from kdzoo.contract.classification import NO_LABEL, TaskLoss
from kdzoo.contract.extension_points import ArraySplit, DataSource, DataSplits, OfferOptions
from kdzoo.contract.step import Batch
from kdzoo.data.data_set import DataSet, open_data
from kdzoo.data.loader import Loader
from kdzoo.errors import DataError, KdzooError, NeedsError
from kdzoo.recipe.sections import DataRecipe
from kdzoo.testing.tiny import TEACHER, Stripes, tiny_runner
from kdzoo.training.engine import Engine
from kdzoo.training.step_context import micro_batches
from kdzoo.zoo.loading import load_zoo

CPU = torch.device("cpu")


class Given(DataSource):
    name = "given"

    def __init__(self, made: DataSplits) -> None:
        super().__init__(OfferOptions())
        self.made = made

    def load(self, root: Path) -> DataSplits:
        return self.made


def splits(train: np.ndarray, test: np.ndarray | None = None, **changes: Any) -> DataSplits:
    """Splits of noise with these targets."""

    def split(targets: np.ndarray) -> ArraySplit:
        return ArraySplit(np.random.default_rng(0).integers(0, 256, (len(targets), 8, 8, 3), np.uint8), targets)

    ones = (1.0, 1.0, 1.0)
    held = split(np.arange(8) % 4 if test is None else test)
    made = DataSplits(split(train), lambda: held, tuple("abcd"), 3, (8, 8), ones, ones, unlabelled=True)
    return replace(made, **changes)


def opened(made: DataSplits, **changes: Any) -> DataSet:
    return open_data(Given(made), DataRecipe(name="given", **changes), 0)


def refusal(kind: type[KdzooError], act: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        act()
    return str(caught.value)


HALF = np.where(np.arange(40) < 24, np.arange(40) % 4, NO_LABEL)
NONE = np.full(40, NO_LABEL)

# --- data ---------------------------------------------------------------------------------------


def test_no_label_is_taken_only_where_the_source_means_it() -> None:
    made = splits(HALF, unlabelled=False)
    assert refusal(DataError, lambda: opened(made)) == (
        "data set 'given', split train: targets lie in -1..3; 0..3 would be right"
    )
    assert refusal(DataError, lambda: opened(splits(HALF - 1))) == (
        "data set 'given', split train: targets lie in -2..2; 0..3 and -1 for no label would be right"
    )
    assert len(opened(splits(HALF)).labels or ()) == 24 - 2  # two are held out


@pytest.mark.parametrize(
    ("train", "test", "problem"),
    [
        (HALF, HALF, "data set 'given', split test: targets lie in -1..3; 0..3 would be right"),
        (
            NONE,
            HALF,
            "data set 'given', split test: 16 of 40 samples have no label; all or none would be right",
        ),
    ],
)
def test_a_test_split_lacks_all_labels_or_none(train: np.ndarray, test: np.ndarray, problem: str) -> None:
    assert refusal(DataError, opened(splits(train, test)).check_form) == problem
    opened(splits(NONE, NONE[:8])).check_form()


def test_a_validation_split_has_labels() -> None:
    held = replace(splits(HALF), validation=splits(HALF).train)
    assert refusal(DataError, lambda: opened(held)) == (
        "data set 'given', split validation: targets lie in -1..3; 0..3 would be right"
    )
    data = opened(splits(HALF), validation=8)
    assert np.bincount(data.part("validation").targets).tolist() == [2, 2, 2, 2]
    assert (data.num_train, len(data.labels or ())) == (32, 16)
    assert "validation" not in opened(splits(NONE)).split_sizes


def test_few_labels_are_drawn_from_those_that_there_are() -> None:
    data = opened(splits(HALF), labelled=8, validation=0)
    assert set(data.labelled or ()) < set(data.labels or ())
    assert np.bincount(data.part("train").targets[list(data.labelled or ())]).tolist() == [2, 2, 2, 2]
    assert refusal(DataError, lambda: opened(splits(HALF), labelled=25, validation=0)) == (
        "data set 'given': data.labelled is 25, but there are 24 training samples with a label"
    )


def test_batches_show_the_labels_that_a_stage_has() -> None:
    loader = Loader(opened(splits(HALF), validation=0), CPU, 8)
    for rows, expected in ((None, None), (range(0, 24, 2), set(range(0, 24, 2)))):
        shown = set()
        for batch in loader.with_labels(rows).train_batches(0, 0):
            labelled = batch.targets != NO_LABEL
            shown |= set(batch.index[labelled].tolist())
            assert batch.labelled == (None if rows is None else labelled.sum())
        assert shown == (expected or set(range(24)))


# --- the task loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, (1, 3)])
def test_the_task_loss_is_the_mean_over_samples_with_a_label(classes: tuple[int, ...] | None) -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([3, NO_LABEL, 1, NO_LABEL])
    loss = TaskLoss.among(classes, 4, 0.1, CPU)
    kept = torch.tensor([0, 2])
    assert torch.allclose(loss(logits, labels, 2.0), loss(logits[kept], labels[kept]))
    nothing = loss(logits, torch.full((4,), NO_LABEL), 0.0)
    assert (nothing.item(), torch.autograd.grad(nothing, logits)[0].abs().sum().item()) == (0.0, 0.0)


def test_parts_and_processes_average_to_the_loss_of_the_whole_batch() -> None:
    loader = Loader(opened(splits(HALF), validation=0), CPU, 8).with_labels(range(9))
    whole = next(loader.train_batches(0, 0))
    logits = F.one_hot(whole.index % 4, 4).float() + whole.index[:, None] / 40
    loss = TaskLoss.among(None, 4, 0.0, CPU)
    parts: list[Batch | None] = []
    for rank in range(2):
        parts += micro_batches(next(loader.train_batches(0, 0, rank=rank, world=2)), 2)
    at = {index: row for row, index in enumerate(whole.index.tolist())}
    losses = [loss(logits[[at[i] for i in part.index.tolist()]], part.targets, part.labelled) for part in parts if part]
    assert len({int((part.targets == NO_LABEL).sum()) for part in parts if part}) > 1  # they do not share evenly
    assert torch.allclose(torch.stack(losses).mean(), loss(logits, whole.targets, whole.labelled))
    known = whole.targets != NO_LABEL
    assert torch.allclose(loss(logits, whole.targets, whole.labelled), loss(logits[known], whole.targets[known]))


# --- runs ----------------------------------------------------------------------------------------


def unlabelled_stripes(monkeypatch: pytest.MonkeyPatch, keep: int, test: bool = True) -> None:
    """Take the labels of all training samples but the first ``keep``, and with ``test`` False those of test too."""
    load = Stripes.load

    def loaded(self: Stripes, root: Path) -> DataSplits:
        made = load(self, root)
        train, held = made.train, made.test()
        assert isinstance(train, ArraySplit)
        targets = np.where(np.arange(len(train.targets)) < keep, train.targets, NO_LABEL)
        if not test:
            held = replace(held, targets=np.full(len(held.targets), NO_LABEL))
        return replace(made, train=replace(train, targets=targets), test=lambda: held, unlabelled=True)

    monkeypatch.setattr(Stripes, "load", loaded)


def test_the_student_sees_every_sample_and_the_control_those_with_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabelled_stripes(monkeypatch, 32)
    seen: dict[str, dict[int, int]] = {}
    context = Engine.context

    def watched(self: Engine, batch: Any, *rest: Any) -> Any:
        seen.setdefault(self.job.name, {}).update(zip(batch.index.tolist(), batch.targets.tolist(), strict=True))
        return context(self, batch, *rest)

    monkeypatch.setattr(Engine, "context", watched)
    zoo = load_zoo()
    changes = {
        "data": {"labelled": 8, "validation": 0},
        "train": {"steps_per_epoch": None, "epochs": 2},
        "control": True,
    }
    runner = tiny_runner(zoo.algorithm("kd"), zoo, tmp_path, changes)
    results = runner.run()
    few, known = set(runner.data.labelled or ()), set(runner.data.labels or ())
    assert (len(few), len(known)) == (8, 32)
    assert (set(seen["teacher"]), set(seen["control"]), set(seen["student"])) == (known, few, set(range(64)))
    assert {row for row, target in seen["student"].items() if target != NO_LABEL} == few
    steps = {stage["name"]: stage["steps"] for stage in results["stages"]}
    assert steps == {"teacher": 8, "control": 16, "student": 16}
    assert results["data"]["labelled"] == 8


@pytest.mark.parametrize(
    ("name", "keep", "changes", "problem"),
    [
        (
            "dkd",
            32,
            {},
            "algorithm 'dkd': reads the label of every sample, and 32 of 64 training samples have none; an algorithm "
            "that takes samples without labels, such as kd, would be right, or leave them out",
        ),
        (
            "takd",
            32,
            {"algorithm": {"options": {"via": "dkd"}}},
            "algorithm 'dkd': reads the label of every sample, and 32 of 64 training samples have none; an algorithm "
            "that takes samples without labels, such as kd, would be right, or leave them out",
        ),
        (
            "kd",
            0,
            {"control": True},
            "control: trains on labels alone, and no training sample has one; control: false would be right",
        ),
        (
            "kd",
            0,
            {},
            "teacher 'test_resnet': is trained on labels, and no training sample has one; ready weights would be right",
        ),
        (
            "dml",
            0,
            {},
            "algorithm 'dml': no training sample has a label, and no teacher answers in its place",
        ),
    ],
)
def test_what_needs_labels_is_refused_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, keep: int, changes: Any, problem: str
) -> None:
    unlabelled_stripes(monkeypatch, keep)
    zoo = load_zoo()
    given = {**changes, "data": {"validation": 0}}
    assert refusal(NeedsError, lambda: tiny_runner(zoo.algorithm(name), zoo, tmp_path, given)) == problem


class WithLabelsAtTheEnd(Algorithm):
    name, needs = "late", Needs(data="any")
    paper = Paper("A paper", "An author", 2020, "https://example.org")
    default_weights: ClassVar = {"task": 1.0, "match": 1.0}

    def losses(self, ctx: Any) -> dict[str, Any]:
        return {"match": (ctx.student.logits - ctx.teacher.logits).square().mean()}

    @classmethod
    def stages(cls, plan: Any) -> Any:
        first = yield Stage("first", plan.student, plan.own, plan.teachers)
        return (yield Stage("last", plan.student, start=first))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("kd", None),
        (
            "fitnet",
            "algorithm 'fitnet': none of its terms reads the student's logits, so nothing trains the classifier where "
            "no training sample has a label; kd would be right",
        ),
        ("late", "stage 'last': trains on labels alone, and no training sample has one"),
    ],
)
def test_without_labels_every_part_of_the_student_has_something_to_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str | None
) -> None:
    zoo = load_zoo()
    cls = WithLabelsAtTheEnd if name == "late" else zoo.algorithm(name)
    network = tiny_runner(cls, zoo, tmp_path).build.network(ModelSpec("test_resnet", args=TEACHER))
    save_file(network.model.state_dict(), tmp_path / "teacher.safetensors")
    unlabelled_stripes(monkeypatch, 0, test=False)
    ready = {"name": "test_resnet", "args": TEACHER, "weights": str(tmp_path / "teacher.safetensors")}
    runner = tiny_runner(cls, zoo, tmp_path, {"models": {"teacher": ready, "teachers": []}, "train": {"epochs": 1}})
    if problem is not None:
        assert refusal(NeedsError, runner.run) == problem
        return
    results = runner.run()
    assert [stage["name"] for stage in results["stages"]] == ["teacher", "student"]
    assert (results["student"]["top1_percent"], results["student"]["agreement_percent"] > 0) == (None, True)
