"""What a run delivers: every network measured on the test split, the exported files, the plain student."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from kdzoo.contract.classification import have_labels, paired_counts, per_class_percent
from kdzoo.contract.stage import StageResult
from kdzoo.evaluation.measuring import measure_latency, network_entry, timed_forward
from kdzoo.models.network import Network
from kdzoo.run.absent_teachers import AbsentTeachers
from kdzoo.run.builder import Builder
from kdzoo.run.delivered import Delivered, Measured, delivered_networks, same_architecture
from kdzoo.run.exporting import ExportedFile, Exporting
from kdzoo.run.format_losses import format_losses
from kdzoo.run.stored_logits import StoredLogits
from kdzoo.run.student_files import write_student
from kdzoo.storage.run_folder import RunFolder
from kdzoo.training.device import Precision


class Delivery:
    """Opens the test split, once, after every choice has been made."""

    def __init__(self, build: Builder, folder: RunFolder | None, say: Callable[[str, str], None]) -> None:
        self.build, self.folder = build, folder
        self.recipe, self.data, self.loader = build.recipe, build.data, build.loader
        self.exporting = Exporting(build, folder, say)
        self.logits = StoredLogits(build)
        self.entries: dict[str, dict[str, Any]] = {}  # networks and accepted files by label, once measured
        self.reference: np.ndarray | None = None  # the teachers' mean logits of the test split

    def measure(
        self, teachers: tuple[StageResult, ...], control: StageResult | None, student: StageResult
    ) -> dict[str, Any]:
        """Open the test split, once, and measure everything that the run delivers on it."""
        self.data.test_gate.open()
        stored = {each.role.label: each for each in delivered_networks(teachers, control, student)}
        measured, targets = self._answers(stored)
        taught = [label for label, each in measured.items() if each.role.network == "teacher"]
        absent = AbsentTeachers(teachers, self.build)
        self.reference = absent.reference([measured[label].logits for label in taught])
        entries = {label: self._entry(stored[label], each, targets) for label, each in measured.items()}
        entries = absent.entries() | entries
        of_teachers = [entry for entry in entries.values() if entry["network"] == "teacher"]
        files = self._export(measured, taught, targets, student)
        self._latency(measured, entries, files)
        first = self.build.ranks.first and self.folder is not None
        usage = write_student(self.build, self.folder, student) if first and self.folder is not None else None
        exports = [file.entry for file in files]
        accepted = {entry["label"]: entry for entry in exports if not entry["rejected"]}
        self.entries = entries | accepted
        logits = {label: each.logits for label, each in measured.items()}
        return {
            "teacher": of_teachers[0] if of_teachers else None,
            "teachers": of_teachers if len(of_teachers) > 1 else [],
            "control": entries.get("control"),
            "student": entries["student"],
            "peers": [entry for entry in entries.values() if entry["network"] == "peer"],
            "exports": exports,
            "usage": usage,
            "warnings": [
                *absent.warnings,
                *format_losses(entries["student"], entries.get("control"), list(accepted.values()), len(targets)),
            ],
            "paired": paired_counts(logits["student"], logits["control"], targets) if control is not None else None,
            "per_class": {
                "classes": list(self.data.classes),
                "top1_percent": {
                    label: per_class_percent(logits[label], targets)
                    for label in ("teacher", "control", "student")
                    if label in logits and have_labels(targets)
                },
            },
            "data": {
                "name": self.recipe.data.name,
                "test_samples": len(targets),
                "most_common_class_percent": (
                    100 * float(np.bincount(targets).max()) / len(targets) if have_labels(targets) else None
                ),
                **self.data.split_sizes,
            }
            | ({} if self.data.labelled is None else {"labelled": len(self.data.labelled)}),
            "same_network": control is None or same_architecture(control.model, student.model),
            "algorithm": self.build.plan.algorithm.cls.name,
            "upper_bound": self.build.plan.algorithm.cls.upper_bound,
            "data_handed": self.build.plan.algorithm.cls.needs.data,
            "test_evaluations": self.data.test_gate.reads,
        }

    def _answers(self, stored: Mapping[str, Delivered]) -> tuple[dict[str, Measured], np.ndarray]:
        """Every network's logits of the test split, in float32, as what is delivered runs, and the targets (N,)."""
        plain = Precision(self.build.device, None, False)
        networks = {
            label: self.build.trained_network(each.result, each.stored_as, each.spec) for label, each in stored.items()
        }
        measured: dict[str, Measured] = {}
        targets = np.zeros(0)
        for label, network in networks.items():
            plain.place(network)
            logits, targets = self.logits.of(network)
            measured[label] = Measured(stored[label].role, network, logits)
        return measured, targets

    def _entry(self, stored: Delivered, measured: Measured, targets: np.ndarray) -> dict[str, Any]:
        entry = network_entry(
            label=stored.role.label,
            model=_named(measured.network),
            logits=measured.logits,
            targets=targets,
            teacher_logits=self.reference,
            network=measured.network,
            size_bytes=stored.result.weights[stored.stored_as].stat().st_size,
        )
        return stored.role.entry(entry["model"]) | entry

    def _export(
        self, measured: Mapping[str, Measured], taught: Sequence[str], targets: np.ndarray, student: StageResult
    ) -> list[ExportedFile]:
        files = self.exporting.of_student(measured["student"], targets, self.reference, student)
        if "control" in measured:
            files += self.exporting.of_control(measured["control"], targets)
        for label in taught:
            files += self.exporting.of_teacher(measured[label], targets)
        return files

    def _latency(
        self,
        measured: Mapping[str, Measured],
        entries: Mapping[str, dict[str, Any]],
        files: Sequence[ExportedFile],
    ) -> None:
        """Time everything at batch 1, interleaved, so that a noisy machine is equally unfair to all.

        Images are all of one size, so the first stands for them; of text each round takes the next, at its own length.
        """
        requests = self.data.inputs.timed_samples
        rounds = {} if requests == 1 else {"repeats": 2 * requests, "warmup": requests}
        samples = [batch.inputs for batch in itertools.islice(self.loader.eval_batches("test", 1), requests)]
        candidates: dict[str, Callable[[], Any]] = {}
        for label, each in measured.items():
            network = each.network.to(self.build.device).eval()
            candidates[label] = in_turn(
                [timed_forward(network.model, network.preprocess(sample)) for sample in samples]
            )
        for file in files:
            if file.answer is not None:
                network = measured[file.entry["of"]].network
                candidates[file.entry["label"]] = in_turn(
                    [partial(file.answer, network.preprocess(sample).cpu().numpy()) for sample in samples]
                )
        times = measure_latency(candidates, **rounds)
        for entry in [*entries.values(), *(file.entry for file in files)]:
            entry["latency_ms"] = times.get(entry["label"])


def _named(network: Network) -> str:
    """Return a model's name, with its modality and, where the name does not tell it, its architecture."""
    further = [network.spec.modality, getattr(network.model, "architecture", None)]
    told = ", ".join(part for part in further if part)
    return f"{network.spec.name} ({told})" if told else network.spec.name


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """One call that makes the given ones, the next each time."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()
