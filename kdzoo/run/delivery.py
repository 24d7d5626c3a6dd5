"""What a run delivers: every model measured on the test split, the exported files, the plain student."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from kdzoo.contract.classification import paired_counts, per_class_percent, top1_percent
from kdzoo.contract.extension_points import Exporter
from kdzoo.contract.stage import ModelSpec, StageResult
from kdzoo.errors import ExportError
from kdzoo.evaluation.measuring import measure_latency, network_entry, predict, timed_forward
from kdzoo.evaluation.verification import export_and_verify
from kdzoo.models.building import RESERVED
from kdzoo.models.network import Network
from kdzoo.models.weights import count_parameters
from kdzoo.run.builder import Builder
from kdzoo.storage.atomic import sha256_file, write_bytes, write_tensors
from kdzoo.storage.run_folder import RunFolder
from kdzoo.training.device import Precision

#: Training batches that a format may learn the ranges of activations from.
CALIBRATION_BATCHES = 8

#: An exported file: its entry of results.json, and its own runtime, inputs -> logits (N, K).
Exported = tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]


class Delivery:
    """Opens the test split, once, after every choice has been made."""

    def __init__(self, build: Builder, folder: RunFolder | None, say: Callable[[str, str], None]) -> None:
        self.build, self.folder, self.say = build, folder, say
        self.recipe, self.data, self.loader = build.recipe, build.data, build.loader
        self.entries: dict[str, dict[str, Any]] = {}  # every model and file by label, once measured
        self.reference: np.ndarray | None = None  # the teachers' mean logits of the test split

    def measure(
        self, teachers: tuple[StageResult, ...], control: StageResult | None, student: StageResult
    ) -> dict[str, Any]:
        """Open the test split, once, and measure everything that the run delivers on it."""
        self.data.test_gate.open()
        plain = Precision(self.build.device, None, False)  # what is delivered runs in float32
        stored = by_label(teachers, control, student)
        networks = {label: self.build.trained_network(*where) for label, where in stored.items()}
        taught = [label for label in networks if label.startswith("teacher")]
        logits: dict[str, np.ndarray] = {}
        targets = np.zeros(0)
        for label, network in networks.items():
            plain.place(network)
            batches = self.loader.eval_batches("test", self.recipe.data.eval_batch_size)
            logits[label], targets = predict(network, batches)
        reference = np.mean([logits[label] for label in taught], axis=0) if taught else None
        entries = {
            label: network_entry(
                label=label,
                model=_named(networks[label].spec),
                logits=logits[label],
                targets=targets,
                teacher_logits=reference,
                network=networks[label],
                size_bytes=result.weights[which].stat().st_size,
            )
            for label, (result, which, _) in stored.items()
        }
        exports = self.export(networks["student"], logits["student"], targets, reference, student)
        beside = self._export_control(networks.get("control"), logits.get("control"), targets)
        teacher_exports = {
            label: self.export_teacher(label, networks[label], logits[label], targets) for label in taught
        }
        self._latency(networks, entries, {"student": exports, "control": beside, **teacher_exports})
        if self.build.ranks.first and self.folder is not None:
            self._deliver(student)
        files = [*exports, *beside, *(done for exported in teacher_exports.values() for done in exported)]
        self.entries = entries | {entry["label"]: entry for entry, _ in files}
        self.reference = reference
        return {
            "teacher": entries[taught[0]] if taught else None,
            "teachers": [entries[label] for label in taught] if len(taught) > 1 else [],
            "control": entries.get("control"),
            "student": entries["student"],
            "peers": [entry for label, entry in entries.items() if label.startswith("peer")],
            "exports": [entry for entry, _ in exports],
            "control_exports": [entry for entry, _ in beside],
            "warnings": losses_of_coarse_files(entries, [e for e, _ in exports], [e for e, _ in beside], len(targets)),
            "teacher_exports": [entry for files in teacher_exports.values() for entry, _ in files],
            "paired": paired_counts(logits["student"], logits["control"], targets) if control is not None else None,
            "per_class": {
                "classes": list(self.data.classes),
                "top1_percent": {
                    label: per_class_percent(logits[label], targets)
                    for label in ("teacher", "control", "student")
                    if label in logits
                },
            },
            "data": {
                "name": self.recipe.data.name,
                "test_samples": len(targets),
                "most_common_class_percent": 100 * float(np.bincount(targets).max()) / len(targets),
                **self.data.split_sizes,
            }
            | ({} if self.data.labelled is None else {"labelled": len(self.data.labelled)}),
            "same_network": control is None or _same(control.model, student.model),
            "algorithm": self.build.plan.algorithm.cls.name,
            "upper_bound": self.build.plan.algorithm.cls.upper_bound,
            "data_handed": self.build.plan.algorithm.cls.needs.data,
            "test_evaluations": self.data.test_gate.reads,
        }

    def export(
        self,
        network: Network,
        logits: np.ndarray,
        targets: np.ndarray,
        reference: np.ndarray | None,
        student: StageResult | None = None,
    ) -> list[Exported]:
        """Every exported file, verified on the whole test split by its own runtime in a fresh process."""
        if self.folder is None or not self.build.ranks.first or not self.build.plan.exporters:
            return []
        done = []
        for exporter in self.build.plan.exporters:
            if exporter.needs_quantizer:
                done += self._exported_quantized(exporter, student, targets, reference)
            else:
                done += self._exported("student", [exporter], network, logits, targets, reference)
        return done

    def _exported_quantized(
        self, exporter: Exporter, student: StageResult | None, targets: np.ndarray, reference: np.ndarray | None
    ) -> list[Exported]:
        """A file in the quantizer that the student was trained in, held against the student as it was trained."""
        if student is None:
            raise ExportError(
                f"{exporter.name} {exporter.label}: is written by the run that trains the student; a run folder holds "
                "its plain weights only, so name the format under the recipe's export"
            )
        if student.model.quantizer is None:
            raise ExportError(
                f"{exporter.name} {exporter.label}: the student was trained in floats; an algorithm that trains it in "
                "integers would be right, or a format that quantizes after training"
            )
        network = self.build.quantized_network(student)
        Precision(self.build.device, None, False).place(network)
        rounded, _ = predict(network, self.loader.eval_batches("test", self.recipe.data.eval_batch_size))
        assert network.quantizer is not None, "it is prepared"
        converted = network.with_model(network.quantizer.convert(network.model))
        done = self._exported("student", [exporter], converted, rounded, targets, reference)
        for entry, _ in done:
            entry["params_m"] = count_parameters(network.model) / 1e6
            entry["rounded_top1_percent"] = top1_percent(rounded, targets)
        return done

    def _export_control(
        self, network: Network | None, logits: np.ndarray | None, targets: np.ndarray
    ) -> list[Exported]:
        """The control in the coarser formats, and in the plain one they are held against."""
        coarse = [exporter for exporter in self.build.plan.exporters if exporter.quantizes]
        if network is None or logits is None or self.folder is None or not self.build.ranks.first or not coarse:
            return []
        wanted = [copy.copy(exporter) for exporter in self.build.plan.exporters if not exporter.needs_quantizer]
        for exporter in wanted:
            if exporter.quantizes:
                exporter.tolerance_points = 100.0  # how much it loses is what is asked, and refuses nothing
        return self._exported("control", wanted, network, logits, targets, None)

    def export_teacher(self, label: str, network: Network, logits: np.ndarray, targets: np.ndarray) -> list[Exported]:
        """A teacher's files in the formats that the recipe wants of it too, verified like the student's."""
        if self.folder is None or not self.build.ranks.first:
            return []
        pairs = zip(self.build.plan.exporters, self.recipe.export, strict=True)
        wanted = [exporter for exporter, section in pairs if section.teacher]
        return self._exported(label, wanted, network, logits, targets, None)

    def _exported(
        self,
        label: str,
        exporters: Sequence[Exporter],
        network: Network,
        logits: np.ndarray,
        targets: np.ndarray,
        reference: np.ndarray | None,
    ) -> list[Exported]:
        if not exporters:
            return []
        assert self.folder is not None
        network = network.to("cpu")
        inputs = self._test_inputs(network)
        batches = self.loader.train_batches(0, 0)
        calibration = [
            network.preprocess(batch.inputs.cpu()) for batch in itertools.islice(batches, CALIBRATION_BATCHES)
        ]
        done = []
        for exporter in exporters:
            file = " ".join(part for part in (exporter.name, exporter.label) if part)
            what = file if label == "student" else f"{file} of {label}"
            self.say(f"export {what}", "verifying on the whole test split")
            entry = export_and_verify(
                exporter,
                network,
                inputs=inputs,
                targets=targets,
                student_logits=logits,
                teacher_logits=reference,
                calibration=calibration,
                folder=self.folder.path("export"),
                stem=label.replace(" ", "_"),
                classes=self.data.classes,
            )
            entry["label"] = what
            run = exporter.load(self.folder.path("export") / entry["file"], torch.get_num_threads())
            done.append((entry, run))
        return done

    def _test_inputs(self, network: Network) -> np.ndarray:
        """The whole test split as the model takes it."""
        batches = self.loader.eval_batches("test", self.recipe.data.eval_batch_size)
        return network.inputs.joined([network.preprocess(batch.inputs.cpu()).numpy() for batch in batches])

    def _latency(
        self,
        networks: Mapping[str, Network],
        entries: Mapping[str, dict[str, Any]],
        exports: Mapping[str, Sequence[Exported]],
    ) -> None:
        """Time everything at batch 1, interleaved, so that a noisy machine is equally unfair to all.

        Images are all of one size, so the first stands for them; of text each round takes the next, at its own length.
        """
        requests = self.data.inputs.timed_samples
        rounds = {} if requests == 1 else {"repeats": 2 * requests, "warmup": requests}
        samples = [batch.inputs for batch in itertools.islice(self.loader.eval_batches("test", 1), requests)]
        candidates: dict[str, Callable[[], Any]] = {}
        for label, network in networks.items():
            network.to(self.build.device).eval()
            candidates[label] = in_turn(
                [timed_forward(network.model, network.preprocess(sample)) for sample in samples]
            )
        files = [(networks[label], *done) for label, exported in exports.items() for done in exported]
        for network, entry, run in files:
            candidates[entry["label"]] = in_turn(
                [partial(run, network.preprocess(sample).cpu().numpy()) for sample in samples]
            )
        times = measure_latency(candidates, **rounds)
        for entry in [*entries.values(), *(entry for _, entry, _ in files)]:
            entry["latency_ms"] = times[entry["label"]]

    def _deliver(self, student: StageResult) -> None:
        """Put the plain student beside the results, loadable by timm alone."""
        assert self.folder is not None
        network = self.build.trained_network(student)
        weights = network.model.state_dict()
        write_tensors(self.folder.path("student.safetensors"), weights, {"model": student.model.name})
        self.folder.write_json(
            "student.json",
            {
                "model": student.model.name,
                "args": network.create_args,
                "imports": network.module_to_import,
                "classes": list(self.data.classes),
                **network.inputs.record(),
                "sha256": sha256_file(self.folder.path("student.safetensors")),
            },
        )
        for name, content in network.inputs.files().items():
            path = self.folder.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)


def by_label(
    teachers: Sequence[StageResult], control: StageResult | None, student: StageResult
) -> dict[str, tuple[StageResult, str, ModelSpec]]:
    """What a run delivers or compares with: label -> the stage, which of its networks, and that network's model."""
    stored = {}
    for i, teacher in enumerate(teachers):
        stored["teacher" if len(teachers) == 1 else f"teacher {i}"] = (teacher, "student", teacher.model)
    if control is not None:
        stored["control"] = (control, "student", control.model)
    stored["student"] = (student, "student", student.model)
    for i, peer in enumerate(student.peers):
        stored[f"peer {i}"] = (student, f"peer_{i}", peer)
    return stored


def _named(spec: ModelSpec) -> str:
    return spec.name if spec.modality is None else f"{spec.name} ({spec.modality})"


def losses_of_coarse_files(
    entries: Mapping[str, Mapping[str, Any]],
    exports: Sequence[Mapping[str, Any]],
    beside: Sequence[Mapping[str, Any]],
    samples: int,
) -> list[str]:
    """Warn of each format in which the student loses more accuracy than its control, both against their floats.

    Of how many of the test samples is told as well: a difference of one or two of them says little.
    """
    of_control = {entry["label"].removesuffix(" of control"): entry for entry in beside}
    warnings = []
    for entry in exports:
        twin = of_control.get(entry["label"])
        if twin is None and "rounded_top1_percent" in entry:  # the control has no such file, but may have a coarse one
            twin = next((of_control[label] for label in of_control if _coarse(label, entry["label"])), None)
        if twin is None:
            continue
        lost = entries["student"]["top1_percent"] - entry["top1_percent"]
        usual = entries["control"]["top1_percent"] - twin["top1_percent"]
        if lost > max(usual, 0.0):
            more = round((lost - max(usual, 0.0)) * samples / 100)
            warnings.append(
                f"export {entry['label']}: the student loses {lost:.2f} points of accuracy, the control {usual:.2f}, a "
                f"difference of {more} of {samples:,} samples; what distillation gave does not all survive in this "
                "format"
            )
    return warnings


def _coarse(label: str, trained: str) -> bool:
    """Whether a file's label is of the same format as another's and not of the plain one."""
    name = trained.split()[0]
    return label != name and label.split()[0] == name


def _same(first: ModelSpec, second: ModelSpec) -> bool:
    """Whether two models are one architecture at one input size, whatever their weights."""
    one, other = ((model.name, dict(model.args), model.size, model.modality) for model in (first, second))
    return one == other


def delivered_spec(told: Mapping[str, Any]) -> ModelSpec:
    """The network that student.json tells of, which need not be the recipe's student where an algorithm chose one."""
    args = {name: value for name, value in told["args"].items() if name not in RESERVED}
    height, width = told["size"]
    size = height if height == width else None  # only data are not square, and then it is theirs
    if told.get("tokens"):
        return ModelSpec(told["model"], args=args)
    modality = told.get("modality")
    return ModelSpec(
        told["model"], args=args, mean=tuple(told["mean"]), std=tuple(told["std"]), size=size, modality=modality
    )


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """One call that makes the given ones, the next each time."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()
