"""What training logs: terms, notes and gradient norms of a step, rows of an epoch, warnings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdzoo.errors import ContractError
from kdzoo.training.job import TASK

if TYPE_CHECKING:
    from kdzoo.training.job import Job

#: The owner, in place of a network, of a value that an algorithm noted.
NOTES = "notes"


class StepValues:
    """What one step logs: raw loss terms by name, gradient norms, and what the algorithm notes."""

    def __init__(self) -> None:
        self.notes: dict[str, list[Tensor | float]] = {}
        self.owners: dict[str, str] = {}  # term -> the network that it trains
        self._values: dict[str, float] = {}
        self._updates: Counter[str] = Counter()  # that had a term

    def add_terms(self, network: str, terms: Mapping[str, float], part: int, parts: int) -> None:
        """Add the terms of one update of ``network``, on micro-batch ``part`` of ``parts``."""
        prefix = f"{network}." if network.startswith("peer_") else ""
        for term, value in terms.items():
            name = prefix + term
            self._values[name] = self._values.get(name, 0.0) + value / parts
            self.owners.setdefault(name, network)
            self._updates[name] += part == 0

    def add_norm(self, network: str, norm: float) -> None:
        """Add the gradient norm of one update; the last of a network's is logged."""
        self._values["grad_norm" if network == "student" else f"grad_norm_{network}"] = norm

    def note(self, name: str, value: Tensor | float) -> None:
        """Keep a scalar of the algorithm; the mean of all under one name is logged."""
        self.notes.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)

    def values(self) -> dict[str, float]:
        """Terms, each as its mean over the updates that had it, and gradient norms; the notes are still to come."""
        return self._values | {name: self._values[name] / count for name, count in self._updates.items()}


class TrainingLog:
    """The log of one stage. ``rows`` are those of metrics.jsonl; ``logged_of`` maps names to networks or NOTES."""

    def __init__(self, job: Job) -> None:
        self.rows: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.logged_of: dict[str, str] = {}
        self._job = job
        self._sums: dict[str, float] = {}
        self._extremes: dict[str, list[float]] = {}
        epochs, warmup = job.train.epochs, job.train.schedule.warmup_epochs
        if warmup >= epochs:
            self._warn(
                f"the learning rate warms up over {warmup} epochs (train.schedule.warmup_epochs), and the stage ends "
                f"after {epochs}, before it is reached"
            )

    def start_epoch(self) -> None:
        """Forget the sums of the epoch before."""
        self._sums, self._extremes = {}, {}

    def add_step(self, step: StepValues) -> dict[str, float]:
        """Add a step; return all its values by name. Raises ContractError for a note that is no finite scalar."""
        for name, network in step.owners.items():
            self.logged_of.setdefault(name, network)
        values = step.values()
        values |= self._noted(step.notes, values)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            low, high = self._extremes.get(name, [math.inf, -math.inf])
            self._extremes[name] = [min(low, value), max(high, value)]
        return values

    def end_epoch(self, epoch: int, step: int, lr: float) -> dict[str, float]:
        """Add the epoch's row and its warnings; return the means of all values by name."""
        means = {name: total / self._job.steps_per_epoch for name, total in self._sums.items()}
        self.add_row(epoch, step, "train", {**means, "lr": lr})
        self._warn_about(means)
        for text in self._job.algorithm.warnings(means):
            self._warn(text)
        return means

    def add_row(self, epoch: int, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add a row of metrics.jsonl."""
        self.rows.append({"stage": self._job.name, "epoch": epoch, "step": step, "split": split, **values})

    def loss(self, values: Mapping[str, float]) -> float | None:
        """The weighted sum of the student's terms among values by name; None where it has none."""
        weights = self._job.loss_weights
        own = [name for name, network in self.logged_of.items() if network == "student" and name in values]
        return sum(weights[name] * values[name] for name in own) if own else None

    def state(self) -> dict[str, Any]:
        """All that ``restore`` needs, as JSON."""
        return {
            "rows": self.rows,
            "warnings": self.warnings,
            "logged_of": self.logged_of,
            "sums": self._sums,
            "extremes": self._extremes,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue a saved log."""
        self.rows, self.warnings = list(saved["rows"]), list(saved["warnings"])
        self.logged_of = dict(saved["logged_of"])
        self._sums, self._extremes = dict(saved["sums"]), {k: list(v) for k, v in saved["extremes"].items()}

    def _noted(self, notes: Mapping[str, list[Tensor | float]], taken: Mapping[str, float]) -> dict[str, float]:
        """The mean of what the algorithm noted in a step, over its parts and over all processes."""
        if not notes:
            return {}
        job = self._job
        means = []
        for name, noted in notes.items():
            if name in taken or name in job.loss_weights:
                raise ContractError(f"{job.title}: the note '{name}' has the name of something logged")
            self.logged_of[name] = NOTES
            values = [torch.as_tensor(value, device=job.precision.device).detach().float() for value in noted]
            if any(value.dim() for value in values):
                raise ContractError(f"{job.title}: the note '{name}' is not a scalar")
            means.append(torch.stack(values).mean())
        numbers = dict(zip(notes, job.ranks.mean(torch.stack(means)).tolist(), strict=True))
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ContractError(f"{job.title}: the note '{name}' is {value}")
        return numbers

    def _warn_about(self, means: Mapping[str, float]) -> None:
        """Name terms that are constant over an epoch and cannot help."""
        job, weights = self._job, self._job.loss_weights
        weighted = {name: abs(weights[name] * means[name]) for name in means if weights.get(name)}
        for name in weighted:
            low, high = self._extremes[name]
            if job.steps_per_epoch > 1 and low == high and not (name == TASK and job.unlabelled):
                self._warn(f"the loss term '{name}' is constant ({low:g}): it trains nothing")

    def _warn(self, text: str) -> None:
        text = f"stage '{self._job.name}': {text}"
        if text not in self.warnings:
            self.warnings.append(text)
