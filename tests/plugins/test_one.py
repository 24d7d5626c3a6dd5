"""Values worked out by hand, the branches' and the gate's shapes, and what is delivered."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Level, ModelShapes, NeedsError, Outputs, Shapes, StepContext
from kdzoo.contract.step import Batch, Clock
from kdzoo.testing.tiny import tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_online.one import ONE, Branch, Gate, gated, one_loss, one_rampup

LEVELS = (Level("layer1", 8, 8, 12, 4), Level("layer2", 12, 4, 6, 8), Level("layer3", 16, 2, 3, 16))
SHAPES = Shapes(ModelShapes(LEVELS, 16, 5), (), (), 5, 10, (3, 32, 48))


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_two_branches_by_hand() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln (2/3); the second branch agrees. 1e-7 is added to the ensemble.
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    loss = one_loss([log(0.25, 0.75), log(0.5, 0.5)], log(0.5, 0.5), 1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_ensemble_is_a_target_and_gets_no_gradient() -> None:
    branch, ensemble = (torch.randn(4, 5).requires_grad_() for _ in range(2))
    one_loss([branch], ensemble, 3.0).backward()
    assert ensemble.grad is None
    assert branch.grad is not None


def test_the_rampup_is_the_authors() -> None:
    assert one_rampup(0, 80) == pytest.approx(math.exp(-5))
    assert one_rampup(40, 80) == pytest.approx(math.exp(-1.25))
    assert (one_rampup(80, 80), one_rampup(200, 80), one_rampup(0, 0)) == (1.0, 1.0, 1.0)


def test_the_gate_weighs_each_sample_apart() -> None:
    logits = [torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 2.0]])]
    mixed = gated(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), logits)
    torch.testing.assert_close(mixed, torch.tensor([[1.0, 0.0], [0.25, 1.5]]))
    weights = Gate(12, 3)(torch.randn(6, 12, 4, 6))
    assert weights.shape == (6, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(6))


@pytest.mark.parametrize(("shared", "blocks", "made"), [(LEVELS[1], 1, 1), (LEVELS[0], 1, 2), (LEVELS[1], 3, 3)])
def test_a_branch_goes_from_the_shared_shape_to_the_deepest(shared: Level, blocks: int, made: int) -> None:
    branch = Branch(shared, LEVELS[-1], blocks, num_classes=5)
    features = torch.randn(2, shared.channels, shared.height, shared.width)
    assert len(branch.blocks) == made
    assert branch.blocks(features).shape == (2, 16, 2, 3)
    assert branch(features).shape == (2, 5)


def context(logits: Tensor, features: tuple[Tensor, ...], targets: Tensor, epoch: int, notes: dict[str, float]):
    def note(name: str, value: Tensor | float) -> None:
        notes[name] = float(torch.as_tensor(value).detach())

    return StepContext(
        batch=Batch(torch.zeros(len(targets), 3, 32, 48), targets, torch.arange(len(targets))),
        student=Outputs(logits, features),
        teachers=(),
        peers=(),
        clock=Clock(epoch, 10, epoch, 1),
        networks={},
        task_loss=lambda answers: F.cross_entropy(answers, targets),
        random=lambda name: torch.Generator(),
        device=torch.device("cpu"),
        batch_size=len(targets),
        note=note,
    )


def test_the_terms_are_those_of_branches_ensemble_and_teaching() -> None:
    torch.manual_seed(0)
    algorithm = ONE(ONE.Options(rampup_epochs=8), SHAPES).eval()
    features = tuple(torch.randn(6, level.channels, level.height, level.width) for level in LEVELS)
    logits, targets, notes = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0]), {}
    ctx = context(logits, features, targets, 4, notes)
    terms = {name: term for update in algorithm.step(ctx) for name, term in update.loss.items()}
    assert set(terms) == set(ONE.default_weights)
    extra = [branch(features[1]) for branch in algorithm.branches]
    weights = algorithm.gate(features[1])
    ensemble = gated(weights, [logits, *extra])
    torch.testing.assert_close(terms["branches"], sum(F.cross_entropy(own, targets) for own in extra))
    torch.testing.assert_close(terms["ensemble"], F.cross_entropy(ensemble, targets))
    torch.testing.assert_close(terms["one"], math.exp(-1.25) * one_loss([logits, *extra], ensemble, 3.0))
    assert list(notes) == ["gate_0", "gate_1", "gate_2"]
    assert sum(notes.values()) == pytest.approx(1.0)


def test_an_ensemble_of_one_branch_is_warned_about() -> None:
    algorithm = ONE(ONE.Options(), SHAPES)
    assert list(algorithm.warnings({"gate_0": 0.3, "gate_1": 0.4, "gate_2": 0.3})) == []
    assert list(algorithm.warnings({"gate_0": 0.001, "gate_1": 0.995, "gate_2": 0.004})) == [
        "branch 1 has more than 99% of the ensemble: the others teach nothing"
    ]


def test_a_student_with_nothing_to_share_is_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        ONE(ONE.Options(depth=3), SHAPES)
    assert str(caught.value) == (
        "algorithm 'one': depth: 3 leaves no shared level of the student's 3; lower depth, or choose a model with more "
        "levels"
    )


def test_branches_and_ensemble_are_measured_and_the_plain_network_is_delivered(tmp_path: Path) -> None:
    results = tiny_runner(ONE, load_zoo("none"), tmp_path, {"control": True}).run()
    labels = [variant["label"] for variant in results["variants"]]
    assert labels == ["branch 0", "branch 1", "branch 2", "gated ensemble"]
    assert results["variants"][0]["top1_percent"] == results["student"]["top1_percent"]
    assert results["student"]["params_m"] == results["control"]["params_m"] < results["variants"][-1]["params_m"]
    (table,) = results["report_items"]
    assert [row[0] for row in table["rows"]] == labels
    assert sum(row[3] for row in table["rows"][:-1]) == pytest.approx(100.0, abs=0.2)
