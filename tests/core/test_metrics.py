from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from kdzoo.contract import classification as metrics

SHAPES = [(1, 2), (7, 2), (64, 10), (200, 37)]


def draw(samples: int, classes: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(samples * 1000 + classes)
    logits = (random.normal(size=(samples, classes)) * scale).astype(np.float32)
    return logits, random.integers(0, classes, samples)


@pytest.mark.parametrize(("samples", "classes"), SHAPES)
def test_accuracy_equals_torchmetrics(samples, classes):
    logits, targets = draw(samples, classes)
    for k, ours in ((1, metrics.top1_percent), (5, metrics.top5_percent)):
        if classes >= k:
            theirs = multiclass_accuracy(
                torch.from_numpy(logits), torch.from_numpy(targets), classes, average="micro", top_k=k
            )
            assert ours(logits, targets) == pytest.approx(100 * float(theirs), abs=1e-4)


@pytest.mark.parametrize(("samples", "classes"), SHAPES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_calibration_equals_torchmetrics(samples, classes, scale):
    logits, targets = draw(samples, classes, scale)
    theirs = multiclass_calibration_error(
        torch.from_numpy(logits).double().softmax(1), torch.from_numpy(targets), classes, n_bins=15, norm="l1"
    )
    assert metrics.ece(logits, targets) == pytest.approx(float(theirs), abs=1e-6)


def test_calibration_by_hand():
    # two sure answers, one of them wrong, and two at one half, both right: gaps 0.5 and 0.5, half the samples each
    logits = np.array([[40.0, 0.0], [40.0, 0.0], [1.0, 1.0], [1.0, 1.0]], dtype=np.float32)
    assert metrics.ece(logits, np.array([0, 1, 0, 0])) == pytest.approx(0.5)


@pytest.mark.parametrize(("samples", "classes"), SHAPES)
def test_likelihood_and_confusion_equal_torch(samples, classes):
    logits, targets = draw(samples, classes)
    tensor, labels = torch.from_numpy(logits), torch.from_numpy(targets)
    assert metrics.nll(logits, targets) == pytest.approx(float(torch.nn.functional.cross_entropy(tensor, labels)), 1e-5)
    assert (metrics.confusion(logits, targets) == multiclass_confusion_matrix(tensor, labels, classes).numpy()).all()


def test_extreme_logits_stay_finite():
    logits = np.array([[1e30, -1e30], [-1e30, 1e30]], dtype=np.float32)
    assert metrics.nll(logits, np.array([0, 1])) == 0.0
    assert metrics.ece(logits, np.array([0, 1])) == 0.0


def test_agreement_is_with_the_other_model_not_with_the_targets():
    ours, theirs = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 1, 2, 0]]
    assert metrics.agreement_percent(ours, theirs) == 75.0


def test_top5_counts_equal_logits_by_class_number():
    assert metrics.top5_percent(np.zeros((7, 7), dtype=np.float32), np.arange(7)) == pytest.approx(100 * 5 / 7)


def test_a_class_without_samples_has_no_accuracy():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 0]]
    assert metrics.per_class_percent(logits, np.array([0, 0, 0])) == [pytest.approx(200 / 3), None, None]


def test_paired_counts_and_difference_by_hand():
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    student = np.stack([right, right, right, wrong])
    control = np.stack([right, wrong, wrong, wrong])
    counts = metrics.paired_counts(student, control, np.zeros(4, dtype=np.int64))
    assert counts == {"both": 1, "student_only": 2, "control_only": 0, "neither": 1}
    points, low, high = metrics.paired_difference(counts)
    half = 1.959964 * math.sqrt((3 / 6 + 1 / 6 - (2 / 6) ** 2) / 6)
    assert (points, low, high) == pytest.approx((50.0, 100 * (2 / 6 - half), 100 * (2 / 6 + half)), rel=1e-6)


@given(st.tuples(*[st.integers(0, 5000)] * 4).filter(lambda counts: sum(counts) > 0))
def test_swapping_student_and_control_mirrors_the_interval(drawn):
    both, gained, lost, neither = drawn
    counts = {"both": both, "student_only": gained, "control_only": lost, "neither": neither}
    points, low, high = metrics.paired_difference(counts)
    mirrored = metrics.paired_difference({**counts, "student_only": lost, "control_only": gained})
    assert mirrored == pytest.approx((-points, -high, -low), abs=1e-9)
    assert -100 <= low <= high <= 100
    assert low < high


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_interval_covers_the_true_difference_about_95_times_in_100(seed):
    random = np.random.default_rng(seed)
    chances = np.array([0.80, 0.06, 0.04, 0.10])
    keys = ("both", "student_only", "control_only", "neither")
    hits = 0
    for drawn in random.multinomial(500, chances, size=2000):
        _, low, high = metrics.paired_difference(dict(zip(keys, drawn.tolist(), strict=True)))
        hits += low <= 2.0 <= high
    assert 0.93 <= hits / 2000 <= 0.975


def entry_of(logits, targets, teacher_logits=None):
    return metrics.result_entry(
        label="student",
        model="test_vit",
        logits=logits,
        targets=targets,
        teacher_logits=teacher_logits,
        parameters=123_456,
        size_bytes=3 * 2**19,
        macs=7_000_001,
    )


def test_result_entry_keeps_units_and_full_floats():
    logits = np.eye(4, dtype=np.float32)
    assert entry_of(logits, np.array([3, 3, 3, 3]), logits[[0, 1, 2, 0]]) == {
        "label": "student",
        "model": "test_vit",
        "top1_percent": 25.0,
        "top5_percent": None,
        "agreement_percent": 75.0,
        "ece": pytest.approx(math.e / (math.e + 3) - 0.25),
        "nll": pytest.approx(math.log(math.e + 3) - 0.25),
        "params_m": 0.123456,
        "size_mib": 1.5,
        "macs_g": 0.007000001,
        "latency_ms": None,
    }


def test_result_entry_without_a_teacher_has_no_agreement():
    assert entry_of(*draw(20, 7))["agreement_percent"] is None
    assert entry_of(*draw(20, 7))["top5_percent"] is not None


# --- what networks are trained, selected and judged by --------------------------------------------


def test_validation_answers_with_the_largest_logit_among_the_known_classes() -> None:
    logits = np.array([[9.0, 1, 2, 0], [0, 1, 2, 9], [0, 1, 2, 3], [0, 3, 1, 9]], dtype=np.float32)
    targets = np.array([2, 2, 1, 1])
    assert metrics.validation_metrics(logits, targets, np.array([1, 2])) == {metrics.QUALITY: 75.0}
    assert metrics.validation_metrics(logits, targets, np.arange(4)) == {metrics.QUALITY: 0.0}


def test_every_entry_of_the_results_holds_the_quality() -> None:
    logits, targets = draw(7, 2)
    entry = entry_of(logits, targets)
    assert metrics.quality(entry) == metrics.top1_percent(logits, targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_task_loss_is_cross_entropy_among_its_classes(smoothing: float) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 1, 1, 3, 3, 1])
    expected = torch.nn.functional.cross_entropy
    among = metrics.TaskLoss.among((3, 1), 5, smoothing, torch.device("cpu"))
    assert torch.equal(
        among(logits, labels), expected(logits[:, [3, 1]], (labels == 1).long(), label_smoothing=smoothing)
    )
    everything = metrics.TaskLoss.among(None, 5, smoothing, torch.device("cpu"))
    assert torch.equal(everything(logits, labels), expected(logits, labels, label_smoothing=smoothing))
