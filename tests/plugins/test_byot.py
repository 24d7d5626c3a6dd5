"""Values worked out by hand, the exits' shapes, and that nothing of them is delivered."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Level, ModelShapes, NeedsError, Outputs, Shapes, StepContext
from kdzoo.contract.step import Batch, Clock
from kdzoo.testing.tiny import tiny_folder, tiny_recipe, tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_self.byot import BYOT, AllExits, Exit, byot_hint_loss, byot_soft_label_loss

LEVELS = (
    Level("stem", 6, 16, 24, 2),
    Level("layer1", 8, 8, 12, 4),
    Level("layer2", 12, 4, 6, 8),
    Level("layer3", 16, 2, 3, 16),
)


def shapes(*levels: Level) -> Shapes:
    return Shapes(ModelShapes(levels, 16, 5), (), (), 5, 10, (3, 32, 48))


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_soft_labels_by_hand() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln (2/3), for one exit of two; at T = 2 logits are doubled first
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    exits, deepest = [log(0.25, 0.75), log(0.5, 0.5)], log(0.5, 0.5)
    assert byot_soft_label_loss(exits, deepest, 1.0).item() == pytest.approx(expected, rel=1e-12)
    doubled = [2 * own for own in exits]
    assert byot_soft_label_loss(doubled, deepest, 2.0).item() == pytest.approx(4 * expected, rel=1e-12)


def test_hints_by_hand() -> None:
    deepest = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # squared distances 1 and 4, mean 2.5; the second exit is equal
    assert byot_hint_loss([torch.tensor([[0.0, 0.0], [0.0, 0.0]]), deepest], deepest).item() == pytest.approx(2.5)


def test_the_deepest_is_a_target_and_gets_no_gradient() -> None:
    deepest, shallow = (torch.randn(4, 5).requires_grad_() for _ in range(2))
    (byot_soft_label_loss([shallow], deepest, 3.0) + byot_hint_loss([shallow], deepest)).backward()
    assert deepest.grad is None
    assert shallow.grad is not None


def test_exits_stand_after_each_section_but_the_deepest() -> None:
    four = BYOT(BYOT.Options(), shapes(*LEVELS))
    assert [level.name for level in four.sections] == ["stem", "layer1", "layer2", "layer3"]
    two = BYOT(BYOT.Options(sections=2), shapes(*LEVELS))
    assert ([level.name for level in two.sections], len(two.exits)) == (["layer2", "layer3"], 1)


@pytest.mark.parametrize("level", LEVELS[:-1])
def test_a_bottleneck_ends_in_the_deepest_shape(level: Level) -> None:
    exit_ = Exit(level, LEVELS[-1], num_classes=5)
    features = torch.randn(3, level.channels, level.height, level.width)
    assert exit_.bottleneck(features).shape == (3, 16, 2, 3)
    logits, embedding = exit_(features)
    assert (logits.shape, embedding.shape) == ((3, 5), (3, 16))


def test_all_four_kinds_of_supervision_are_terms() -> None:
    torch.manual_seed(0)
    algorithm = BYOT(BYOT.Options(temperature=2.0), shapes(*LEVELS)).eval()
    features = tuple(torch.randn(6, level.channels, level.height, level.width) for level in LEVELS)
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    logits = torch.randn(6, 5)
    ctx = StepContext(
        batch=Batch(torch.zeros(6, 3, 32, 48), targets, torch.arange(6)),
        student=Outputs(logits, features),
        teachers=(),
        peers=(),
        clock=Clock(0, 1, 0, 1),
        networks={},
        task_loss=lambda answers: F.cross_entropy(answers, targets),
        random=lambda name: torch.Generator(),
        device=torch.device("cpu"),
        batch_size=6,
    )
    terms = {name: term for update in algorithm.step(ctx) for name, term in update.loss.items()}
    assert set(terms) == set(BYOT.default_weights)
    answers = [exit_(own) for exit_, own in zip(algorithm.exits, features[:-1], strict=True)]
    torch.testing.assert_close(terms["task"], F.cross_entropy(logits, targets))
    torch.testing.assert_close(terms["exit_labels"], sum(F.cross_entropy(own, targets) for own, _ in answers))
    torch.testing.assert_close(terms["exit_soft"], byot_soft_label_loss([own for own, _ in answers], logits, 2.0))
    hint = byot_hint_loss([embedding for _, embedding in answers], features[-1].mean(dim=(2, 3)))
    torch.testing.assert_close(terms["exit_hint"], hint)


def test_the_ensemble_is_the_mean_of_probabilities() -> None:
    features = (torch.randn(4, 12, 4, 6),)
    exit_ = Exit(LEVELS[2], LEVELS[3], num_classes=5).eval()
    logits = torch.randn(4, 5)
    network: Any = torch.nn.Identity()
    answered = AllExits(network, [exit_])
    expected = (logits.softmax(1) + exit_(features[0])[0].softmax(1)) / 2
    torch.testing.assert_close(answered(Outputs(logits, features)).exp(), expected)


def test_a_student_without_sections_is_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        BYOT(BYOT.Options(), shapes(LEVELS[0]))
    assert str(caught.value) == (
        "algorithm 'byot': the student has 1 level of features, and nothing before the deepest to put an exit after; "
        "choose a model with more levels"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    root = tmp_path_factory.mktemp("byot")
    changes = {"control": True, "train": {"epochs": 4}}
    with tiny_folder(root / "out", tiny_recipe(BYOT, changes)) as folder:
        results = tiny_runner(BYOT, load_zoo("none"), root, changes, folder=folder).run()
    return results, folder.path("")


def test_the_student_on_disk_has_as_many_parameters_as_the_plain_model(
    finished: tuple[dict[str, Any], Path],
) -> None:
    results, folder = finished
    tensors = load_file(folder / "student.safetensors")
    counted = sum(value.numel() for name, value in tensors.items() if name.endswith(("weight", "bias")))
    assert counted / 1e6 == pytest.approx(results["control"]["params_m"])
    assert results["student"]["params_m"] == results["control"]["params_m"]
    assert results["student"]["macs_g"] == results["control"]["macs_g"]
    assert not [name for name in tensors if "exit" in name]


def test_each_exit_is_measured_and_costs_less_than_the_next(finished: tuple[dict[str, Any], Path]) -> None:
    results, _ = finished
    exits = results["variants"][:-1]
    assert [variant["label"] for variant in results["variants"]] == ["exit 1", "exit 2", "exit 3", "exit 4", "ensemble"]
    assert exits[-1]["top1_percent"] == results["student"]["top1_percent"]
    assert exits[-1]["params_m"] == results["student"]["params_m"]
    costs = [variant["macs_g"] for variant in results["variants"]]
    assert costs == sorted(costs)
    assert len(set(costs)) == 5
    assert all(variant["latency_ms"]["p50"] > 0 for variant in results["variants"])
    table, scatter = results["report_items"]
    assert [row[1] for row in table["rows"]] == ["layer1", "layer2", "layer3", "layer4", "all"]
    assert (table["rows"][3][4], table["rows"][3][6]) == (100.0, 1.0)
    assert [point["label"] for point in scatter["points"]] == [row[0] for row in table["rows"]]
