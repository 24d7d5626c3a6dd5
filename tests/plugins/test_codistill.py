"""Values worked out by hand, the burn-in, and predictions that are an epoch old."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import AlgorithmChoice, ModelShapes, ModelSpec, NeedsError, Outputs, Shapes, StepContext
from kdzoo.contract.step import Batch, Clock
from kdzoo.testing.tiny import bare_plan, tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_online.codistill import Codistill, codistill_loss
from kdzoo_online.dml import DML, dml_loss

WIDTH = ModelShapes((), 4, 3)
SHAPES = Shapes(WIDTH, (), (WIDTH, WIDTH), 3, 6, (1, 2, 2))
TARGETS = torch.tensor([0, 1, 2])


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_the_mean_of_the_others_is_the_target() -> None:
    # the others hold 1/4 and 3/4 for probable, 1/2 on average: KL((1/2, 1/2) || (1/4, 3/4))
    others = [log(0.25, 0.75), log(0.75, 0.25)]
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert codistill_loss(log(0.25, 0.75), others).item() == pytest.approx(expected, rel=1e-12)
    assert codistill_loss(log(0.5, 0.5), others).item() == pytest.approx(0.0, abs=1e-12)


def test_of_one_other_it_is_mutual_learning() -> None:
    own, other = torch.randn(2, 4, 5, dtype=torch.float64)
    assert codistill_loss(own, [other]).item() == pytest.approx(dml_loss(own, [other]).item(), rel=1e-12)


def test_the_others_get_no_gradient_and_extreme_logits_stay_finite() -> None:
    own, other = torch.tensor([[1e4, -1e4]]).requires_grad_(), torch.tensor([[-1e4, 1e4]]).requires_grad_()
    loss = codistill_loss(own, [other, other])
    loss.backward()
    assert loss.isfinite()
    assert own.grad.isfinite().all()
    assert other.grad is None


def context(logits: Sequence[Tensor], index: Sequence[int], epoch: int) -> StepContext:
    student, *peers = map(Outputs, logits)
    return StepContext(
        batch=Batch(torch.zeros(3, 1, 2, 2), TARGETS, torch.tensor(index)),
        student=student,
        teachers=(),
        peers=tuple(peers),
        clock=Clock(epoch, 3, 0, 2),
        networks={},
        task_loss=lambda answers: F.cross_entropy(answers, TARGETS),
        random=lambda name: torch.Generator(),
        device=torch.device("cpu"),
        batch_size=3,
    )


def drawn(seed: int) -> list[Tensor]:
    made = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return [own.requires_grad_() for own in made]


def test_every_network_is_updated_on_its_own_loss_and_only_after_the_burn_in() -> None:
    algorithm = Codistill(Codistill.Options(burn_in_epochs=2), SHAPES)
    logits = drawn(0)
    for epoch, taught in ((1, False), (2, True)):
        updates = list(algorithm.step(context(logits, [0, 1, 2], epoch)))
        assert [update.network for update in updates] == ["student", "peer_0", "peer_1"]
        for i, update in enumerate(updates):
            expected = codistill_loss(logits[i], logits[:i] + logits[i + 1 :])
            torch.testing.assert_close(update.loss["codistill"], expected)
            assert update.loss["codistill"].requires_grad == taught
            torch.testing.assert_close(update.loss["task"], F.cross_entropy(logits[i], TARGETS))


def test_stale_predictions_are_those_of_the_last_visit() -> None:
    algorithm = Codistill(Codistill.Options(stale=True), SHAPES)
    old, now = drawn(0), drawn(1)
    with torch.no_grad():
        algorithm.update(context(old, [4, 0, 2], 0))
    # of the samples 2, 3 and 4, number 3 was never seen: its answers of today stand in
    ctx = context(now, [2, 3, 4], 1)
    told = [torch.stack([old[i][2], now[i][1], old[i][0]]).detach() for i in range(3)]
    for i, update in enumerate(algorithm.step(ctx)):
        expected = codistill_loss(now[i], told[:i] + told[i + 1 :])
        torch.testing.assert_close(update.loss["codistill"], expected)


def test_without_stale_predictions_nothing_is_remembered() -> None:
    algorithm = Codistill(Codistill.Options(), SHAPES)
    algorithm.update(context(drawn(0), [4, 0, 2], 0))
    assert algorithm.remembered.numel() == algorithm.seen.numel() == 0
    assert Codistill(Codistill.Options(stale=True), SHAPES).remembered.shape == (3, 6, 3)


def test_stale_predictions_without_a_burn_in_are_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        Codistill(Codistill.Options(stale=True, burn_in_epochs=0), SHAPES)
    assert str(caught.value) == "algorithm 'codistill': stale predictions need burn_in_epochs: 1 or more, got 0"


def test_peers_of_another_architecture_are_refused() -> None:
    peers = (ModelSpec("a", args={"depth": 2}), ModelSpec("a", args={"depth": 3}))
    plan = bare_plan(peers[0], AlgorithmChoice("codistill"), Codistill.Options(), peers=peers)
    with pytest.raises(NeedsError) as caught:
        next(Codistill.stages(plan))
    assert str(caught.value) == (
        "algorithm 'codistill': peer 1 is 'a' with args {'depth': 3}, the student 'a' with args {'depth': 2}; all are "
        "of one architecture, 'dml' takes different ones"
    )


@pytest.mark.parametrize("cls", [Codistill, DML])
def test_every_network_of_the_group_and_their_ensemble_are_measured(cls: Any, tmp_path: Path) -> None:
    results = tiny_runner(cls, load_zoo("none"), tmp_path, {}).run()
    (table,) = results["report_items"]
    (ensemble,) = results["variants"]
    assert [row[0] for row in table["rows"]] == ["student", "peer 0", "ensemble"]
    accuracies = [results["student"], results["peers"][0], ensemble]
    assert [row[1] for row in table["rows"]] == [round(entry["top1_percent"], 2) for entry in accuracies]
    assert table["rows"][0][2] == 0.0
    assert ensemble["params_m"] == pytest.approx(results["student"]["params_m"] + results["peers"][0]["params_m"])


def test_a_run_with_stale_predictions_learns_and_remembers(tmp_path: Path) -> None:
    options = {"stale": True, "burn_in_epochs": 1}
    runner = tiny_runner(Codistill, load_zoo("none"), tmp_path, {"train": {"epochs": 3}}, options)
    runner.run()
    rows = [row for row in runner.stages[-1].rows if row["split"] == "train"]
    assert all(row["codistill"] > 0 for row in rows)
