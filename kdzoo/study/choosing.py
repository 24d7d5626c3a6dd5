"""Choose a student under a budget: candidates are measured, those within it halved, and the last one measured again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdzoo.contract.extension_points import Exporter
from kdzoo.errors import NeedsError
from kdzoo.evaluation.steadiness import Timing, alike, timed
from kdzoo.models.network import Network
from kdzoo.recipe.budget_section import BudgetRecipe
from kdzoo.run.builder import Builder
from kdzoo.run.exporting import calibration_batches
from kdzoo.storage.atomic import sha256_file, write_json
from kdzoo.storage.json_reading import parse_object
from kdzoo.storage.store import Store
from kdzoo.study.budget import Weighed, as_row, check_possible, weighed
from kdzoo.study.candidates import Candidate, Measuring, Target, candidate_cache, machine
from kdzoo.study.halving import Round, TrainRound, front, halve
from kdzoo.types import stable_hash

#: How often a delivered file is timed again.
AGAIN = 10


@dataclass(frozen=True)
class Choice:
    """The student that a budget leads to, and how it came to that."""

    budget: BudgetRecipe
    found: tuple[Weighed, ...]
    rounds: tuple[Round, ...]
    winner: Candidate

    @property
    def noisy(self) -> bool:
        """Whether a limit of time was decided by times of a busy machine, or of one that changed its speed."""
        timings = [each.measurement.timing for each in self.found if each.measurement.timing is not None]
        limited = self.budget.latency_ms is not None
        return limited and (any(each.noisy for each in self.found) or not alike(timings))

    def record(self, again: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Return the parts of a study's results that a budget adds; see docs/studies.md.

        ``again`` are the delivered files as they were measured again.
        """
        limits = self.budget.limits()
        return {
            "budget": {
                **self.budget.model_dump(mode="json"),
                "limits": limits,
                "machine": machine(),
                "quiet": not self.noisy,
                "winner": self.winner.label,
                "rounds": [
                    {"epochs": each.epochs, "candidates": len(each.scores) + len(each.failed), "kept": len(each.kept)}
                    for each in self.rounds
                ],
                "again": [dict(each) for each in again],
            },
            "candidates": [self._row(each, limits) for each in self.found],
            "candidate_front": self._front(),
        }

    def _row(self, found: Weighed, limits: Mapping[str, float]) -> dict[str, Any]:
        """A candidate with its costs, its scores, and why it went."""
        label, row = found.candidate.label, as_row(found, limits)
        why = row.pop("why_not")
        scores = [
            {"epochs": each.epochs, "top1_percent": each.scores[label]} for each in self.rounds if label in each.scores
        ]
        outcome = "chosen" if found.candidate == self.winner else "halved"
        if not row["fits"]:
            outcome = "failed" if found.measurement.problem else "over the budget"
        for number, each in enumerate(self.rounds, 1):
            if label in each.failed:
                outcome, why = "failed", f"could not be trained: {each.failed[label]}"
            elif label in each.scores and label not in each.kept:
                worst = min(each.scores[kept] for kept in each.kept)
                why = f"round {number}: {each.scores[label]:.2f} % on validation, the kept ones {worst:.2f} % or more"
        return {**row, "outcome": outcome, "why": why, "rounds": scores}

    def _front(self) -> dict[str, Any]:
        """The candidates of the first round that no other beats in accuracy, size and time."""
        if not self.rounds:
            return {"epochs": 0, "labels": []}
        scores, points = self.rounds[0].scores, {}
        for each in self.found:
            timing, size = each.measurement.timing, each.measurement.size_bytes
            if each.candidate.label in scores and timing is not None and size is not None:
                points[each.candidate.label] = (scores[each.candidate.label], size, timing.p50_ms)
        return {"epochs": self.rounds[0].epochs, "labels": front(points)}


def choose(
    budget: BudgetRecipe,
    candidates: Sequence[Candidate],
    target: Target,
    train: TrainRound,
    most_epochs: int,
    store: Store,
    say: Callable[[str, str], None],
) -> Choice:
    """Measure the candidates, halve those within the budget by short trainings, and return the choice.

    Measurements and trainings are stored, so after a kill the same choice comes out without repeating them. Raises
    BudgetError where no candidate is within the budget.
    """
    limits = budget.limits()
    measuring = Measuring(target, limits, candidate_cache(), store, say)
    found = [weighed(each, measuring.measure(each), limits) for each in candidates]
    check_possible(found, limits)
    costs = {each.candidate.label: each.measurement.macs_g or 0.0 for each in found if each.fits}
    say("budget", f"{len(costs)} of {len(found)} candidates are within it")
    rounds = halve(costs, train, epochs=budget.trial_epochs, most_epochs=most_epochs, keep=budget.keep)
    label = rounds[-1].kept[0] if rounds else next(iter(costs))
    winner = next(each for each in candidates if each.label == label)
    return Choice(budget, tuple(found), tuple(rounds), winner)


def target_of(build: Builder, exporter: Exporter, threads: int) -> Target:
    """Return what candidates of a recipe are measured for: its data, its classes, its own training samples."""
    quantizer = build.plan.algorithm.cls.quantizer

    def rounded(network: Network) -> Network:
        if quantizer is None:
            raise NeedsError(
                f"format {exporter.name}-{exporter.label}: writes what was trained in integers, and "
                f"'{build.plan.algorithm.cls.name}' trains in floats; a format that quantizes after training would be "
                "right"
            )
        prepared = build.quantized(network, replace(network.spec, quantizer=quantizer))
        assert prepared.quantizer is not None, "it was just prepared"
        prepared.model.train()
        with torch.no_grad():  # ranges come from what it sees
            prepared.model(network.inputs.model_example(8))
        prepared.model.eval()
        return prepared.with_model(prepared.quantizer.convert(prepared.model))

    def plain(network: Network) -> Network:
        return network

    return Target(
        inputs=build.data.inputs,
        classes=tuple(build.data.classes),
        exporter=exporter,
        threads=threads,
        calibration=lambda network: calibration_batches(build, network),
        converted=rounded if exporter.needs_quantizer else plain,
    )


# --- the delivered file -----------------------------------------------------------------------------


def measure_again(
    budget: BudgetRecipe,
    target: Target,
    network: Network,
    path: Path,
    store: Store,
    say: Callable[[str, str], None],
    time: Callable[[Callable[[], Any]], Timing] = timed,
) -> dict[str, Any]:
    """Weigh a delivered file and time it ``AGAIN`` times; return what came out as JSON, held against the budget.

    ``path`` is the file that is loaded; ``network`` is what it was made of. A file is timed once a machine. "inside" is
    how many of the timings were within the limit at p95, and "verdict" is "inside", "outside" or, where the machine was
    busy, "undecided".
    """
    limits = budget.limits()
    key = stable_hash([sha256_file(path), machine(), target.threads, limits])
    if (folder := store.find("timed-again", key)) is not None:
        return parse_object((folder / "timed.json").read_bytes())
    names = target.exporter.file_names(path.name.split(".")[0])
    size = sum((path.parent / name).stat().st_size for name in names)
    answer, sample = target.exporter.load(path, target.threads), network.inputs.model_example(1).numpy()
    say("budget", f"timing {path} {AGAIN} times")
    timings = [time(lambda: answer(sample)) for _ in range(AGAIN)]
    found = held(timings, size, limits)

    def write(folder: Path) -> None:
        write_json(folder / "timed.json", found)

    store.publish("timed-again", key, write)
    return found


def held(timings: Sequence[Timing], size_bytes: int, limits: Mapping[str, float]) -> dict[str, Any]:
    """Hold several timings of one file, and its size, against the limits; as JSON."""
    limit = limits.get("latency_ms", float("inf"))
    inside = sum(each.p95_ms <= limit for each in timings)
    quiet = all(each.quiet for each in timings) and alike(timings)
    fits = size_bytes <= limits.get("size_bytes", size_bytes)
    # Other work makes a file slower, never faster: what is inside on a busy machine is inside.
    verdict = "inside" if inside == len(timings) else "outside" if quiet else "undecided"
    return {
        "size_bytes": size_bytes,
        "size_fits": fits,
        "timings": len(timings),
        "inside": inside,
        "quiet": quiet,
        "latency_p50_ms": statistics.median(each.p50_ms for each in timings),
        "latency_p95_ms": max(each.p95_ms for each in timings),
        "each": [each.record() for each in timings],
        "verdict": verdict if fits else "outside",
    }
