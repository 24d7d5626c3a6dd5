"""The task, classification: its loss, its metrics, and the quantity that networks are selected and judged by.

This is the one place that says what comes out of a network. Metrics take numpy arrays: logits are (N, K) floats,
targets (N,) integers. Shares are in percent where the name says so and in [0, 1] otherwise. Full floats are stored; the
report rounds what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdzoo.contract.step import Mixed

ECE_BINS = 15
#: Quantile of the normal distribution for a two-sided interval of 95 %.
Z95 = 1.959963984540054
#: The quantity that networks are selected and judged by, a key of validation metrics and of entries in results.json.
QUALITY = "top1_percent"
#: The target of a sample that has no label.
NO_LABEL = -1


def quality(metrics: Mapping[str, Any]) -> float:
    """Return the quantity that a network is selected and judged by; more is better.

    Where no test sample has a label, that is the agreement with the teacher.
    """
    found = metrics[QUALITY]
    return float(metrics["agreement_percent"] if found is None else found)


def have_labels(targets: np.ndarray) -> bool:
    """Whether the samples of a test split have labels; either all or none do."""
    return bool((targets != NO_LABEL).all())


def validation_metrics(logits: np.ndarray, targets: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Return the metrics of one epoch; the answer is the largest logit among ``classes`` (C,), which are sorted."""
    return {QUALITY: float((classes[logits[:, classes].argmax(1)] == targets).mean() * 100)}


@dataclass(frozen=True)
class TaskLoss:
    """Cross-entropy with label smoothing, among some classes or all.

    ``classes`` None: all. ``places`` (K,) maps a class to its place in ``classes``, -1 for the others.
    """

    smoothing: float
    classes: tuple[int, ...] | None = None
    places: Tensor | None = None

    @classmethod
    def among(cls, classes: Sequence[int] | None, num_classes: int, smoothing: float, device: torch.device) -> TaskLoss:
        """The loss among ``classes`` of ``num_classes``, its tables on ``device``."""
        if not classes:
            return cls(smoothing, None if classes is None else ())
        import torch  # only here: who reads results needs no torch

        places = torch.full((num_classes,), -1, device=device)
        places[list(classes)] = torch.arange(len(classes), device=device)
        return cls(smoothing, tuple(classes), places)

    def __call__(
        self, logits: Tensor, labels: Tensor, labelled: float | None = None, mixed: Mixed | None = None
    ) -> Tensor:
        """Return the mean loss. Shapes: (N, K), (N,) -> ().

        Of mixed images the two labels count by their shares. ``labelled`` None: every sample has a label. Else the
        samples without one are left out, and the sum over the others is divided by ``labelled``, see ``Batch``; without
        any it is 0.
        """
        from torch.nn.functional import cross_entropy

        if mixed is not None:
            both = mixed.share * self._of_each(logits, labels) + (1 - mixed.share) * self._of_each(
                logits, mixed.targets
            )
            return both.sum() / (float(len(labels)) if labelled is None else labelled or 1.0)
        masked = labelled is not None
        if self.classes is not None and self.places is not None:
            places = self.places[labels].where(labels != NO_LABEL, NO_LABEL) if masked else self.places[labels]
            logits, labels = logits[:, list(self.classes)], places
        if labelled is None:
            return cross_entropy(logits, labels, label_smoothing=self.smoothing)
        total = cross_entropy(logits, labels, label_smoothing=self.smoothing, ignore_index=NO_LABEL, reduction="sum")
        return total / (labelled or 1.0)

    def _of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample (N,), 0 of one without a label."""
        from torch.nn.functional import cross_entropy

        if self.classes is not None and self.places is not None:
            labels = self.places[labels].where(labels != NO_LABEL, NO_LABEL)
            logits = logits[:, list(self.classes)]
        smoothing = self.smoothing
        return cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=NO_LABEL, reduction="none")


def top1_percent(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of samples whose largest logit is the target's, in percent."""
    return _percent(logits.argmax(axis=1) == targets)


def top5_percent(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of samples whose target is among the five largest logits, in percent; equal logits count
    by class number, as argmax counts them."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return _percent((order == np.asarray(targets)[:, None]).any(axis=1))


def agreement_percent(logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """Return the share of samples on which both choose the same class, in percent."""
    return _percent(logits.argmax(axis=1) == teacher_logits.argmax(axis=1))


def ece(logits: np.ndarray, targets: np.ndarray, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the chosen class, in [0, 1]: the mean gap between confidence and
    accuracy over equally wide bins of confidence, each weighed by its samples."""
    probabilities = np.exp(log_softmax(logits))
    confidence = probabilities.max(axis=1)
    correct = logits.argmax(axis=1) == targets
    place = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    gap = np.bincount(place, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / _count(correct))


def nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the targets, in nats."""
    chosen = log_softmax(logits)[np.arange(_count(targets)), targets]
    return float(-chosen.mean())


def confusion(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return counts (K, K): row the target, column the chosen class."""
    classes = logits.shape[1]
    return np.bincount(targets * classes + logits.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def per_class_percent(logits: np.ndarray, targets: np.ndarray) -> list[float | None]:
    """Return each class's share of samples recognised, in percent; None for a class without samples."""
    counts = confusion(logits, targets)
    return [100.0 * float(row[k]) / float(row.sum()) if row.sum() else None for k, row in enumerate(counts)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities (N, K) in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def paired_counts(student: np.ndarray, control: np.ndarray, targets: np.ndarray) -> dict[str, int]:
    """Count on which samples student and control, both logits (N, K), are right together, alone or not at all."""
    right, other = student.argmax(axis=1) == targets, control.argmax(axis=1) == targets
    return {
        "both": int((right & other).sum()),
        "student_only": int((right & ~other).sum()),
        "control_only": int((~right & other).sum()),
        "neither": int((~right & ~other).sum()),
    }


def paired_difference(counts: Mapping[str, int]) -> tuple[float, float, float]:
    """Return student minus control in points of accuracy, with the ends of its 95 % interval.

    The interval is Bonett and Price's adjusted Wald interval for paired proportions: one sample is added to each
    kind of disagreement, so that two models which never disagree still get an interval of some width. It covers
    the choice of test samples, not the choice of training seed.
    """
    total = sum(counts[key] for key in ("both", "student_only", "control_only", "neither"))
    gained, lost = counts["student_only"], counts["control_only"]
    p, q = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    half = Z95 * math.sqrt(max(0.0, p + q - (p - q) ** 2) / (total + 2))
    low, high = max(-1.0, p - q - half), min(1.0, p - q + half)
    return 100.0 * (gained - lost) / total, 100.0 * low, 100.0 * high


def result_entry(
    *,
    label: str,
    model: str,
    logits: np.ndarray,
    targets: np.ndarray,
    teacher_logits: np.ndarray | None,
    parameters: int,
    size_bytes: int,
    macs: int,
) -> dict[str, Any]:
    """Return one entry of results.json: what a model or file scores, and what it costs in millions of parameters,
    MiB and 10^9 multiply-accumulates of one sample.

    The agreement is None without a teacher and top-5 without more than five classes; the latency is filled in when
    all have been timed together. Where the samples have no label, nothing that compares with one is known. Nothing is
    rounded here, so that entries can be compared and re-checked.
    """
    known = have_labels(targets)
    return {
        "label": label,
        "model": model,
        "top1_percent": top1_percent(logits, targets) if known else None,
        "top5_percent": top5_percent(logits, targets) if known and logits.shape[1] > 5 else None,
        "agreement_percent": None if teacher_logits is None else agreement_percent(logits, teacher_logits),
        "ece": ece(logits, targets) if known else None,
        "nll": nll(logits, targets) if known else None,
        "params_m": parameters / 1e6,
        "size_mib": size_bytes / 2**20,
        "macs_g": macs / 1e9,
        "latency_ms": None,
    }


def _percent(hits: np.ndarray) -> float:
    return 100.0 * float(hits.sum()) / _count(hits)


def _count(values: np.ndarray) -> int:
    assert len(values), "metrics of no samples"
    return len(values)
