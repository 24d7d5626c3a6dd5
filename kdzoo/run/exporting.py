"""The exported files of a run. A file that fails its verification costs itself alone: it is an entry of the results."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kdzoo.contract.extension_points import Exporter
from kdzoo.contract.stage import StageResult
from kdzoo.errors import ExportError
from kdzoo.evaluation.measuring import predict
from kdzoo.evaluation.verification import export_and_verify, file_label, not_exported
from kdzoo.models.network import Network
from kdzoo.models.weights import count_parameters
from kdzoo.run.builder import Builder
from kdzoo.run.delivered import STUDENT, Measured, Role
from kdzoo.storage.run_folder import RunFolder
from kdzoo.training.device import Precision

#: Training batches that a format may learn the ranges of activations from.
CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class ExportedFile:
    """A file of a network: its entry of results.json, and its own runtime, which is None where it was rejected."""

    entry: dict[str, Any]
    network: Network
    answer: Callable[[np.ndarray], np.ndarray] | None  # inputs -> logits (N, K)


class Exporting:
    """Writes the formats that a recipe asks for; each file is verified on the whole test split in a fresh process."""

    def __init__(self, build: Builder, folder: RunFolder | None, say: Callable[[str, str], None]) -> None:
        self.build, self.folder, self.say = build, folder, say
        self.exporters: Sequence[Exporter] = build.plan.exporters if folder is not None and build.ranks.first else ()

    def of_student(
        self,
        student: Measured,
        targets: np.ndarray,
        reference: np.ndarray | None,
        result: StageResult | None = None,
    ) -> list[ExportedFile]:
        """Every format of the recipe. ``reference`` are the teachers' mean logits, ``result`` the student's stage."""
        done = []
        for exporter in self.exporters:
            if exporter.needs_quantizer:
                done += self._as_trained(exporter, student, result, targets, reference)
            else:
                done += self._files(student, [exporter], targets, reference)
        return done

    def of_control(self, control: Measured, targets: np.ndarray) -> list[ExportedFile]:
        """The control in the coarser formats and in the plain one, so that what each costs can be compared."""
        if not any(exporter.quantizes for exporter in self.exporters):
            return []
        wanted = [copy.copy(exporter) for exporter in self.exporters if not exporter.needs_quantizer]
        for exporter in wanted:
            if exporter.quantizes:
                exporter.tolerance_points = 100.0  # how much it loses is the question, so nothing is too much
        return self._files(control, wanted, targets, None)

    def of_teacher(self, teacher: Measured, targets: np.ndarray) -> list[ExportedFile]:
        """The formats that the recipe wants of teachers too."""
        pairs = zip(self.exporters, self.build.recipe.export, strict=False)
        return self._files(teacher, [exporter for exporter, section in pairs if section.teacher], targets, None)

    def _as_trained(
        self,
        exporter: Exporter,
        student: Measured,
        result: StageResult | None,
        targets: np.ndarray,
        reference: np.ndarray | None,
    ) -> list[ExportedFile]:
        """A file in the quantizer that the student was trained in, compared with the student as it was trained."""
        if problem := without_quantizer(exporter, result):
            return [self._done(student, exporter, not_exported(exporter, student.network, problem))]
        assert result is not None, "it has a quantizer"
        network = self.build.quantized_network(result)
        Precision(self.build.device, None, False).place(network)
        rounded, _ = predict(network, self.build.test_batches(network.inputs))
        assert network.quantizer is not None, "it is prepared"
        converted = network.with_model(network.quantizer.convert(network.model))
        files = self._files(Measured(STUDENT, converted, rounded), [exporter], targets, reference)
        for file in files:
            file.entry["params_m"] = count_parameters(network.model) / 1e6
        return files

    def _files(
        self, of: Measured, exporters: Sequence[Exporter], targets: np.ndarray, reference: np.ndarray | None
    ) -> list[ExportedFile]:
        if not exporters:
            return []
        assert self.folder is not None
        network = of.network.to("cpu")
        inputs = self._test_inputs(network)
        calibration = calibration_batches(self.build, network)
        done = []
        for exporter in exporters:
            self.say(f"export {label_of(exporter, of.role)}", "verifying on the whole test split")
            try:
                entry = export_and_verify(
                    exporter,
                    network,
                    inputs=inputs,
                    targets=targets,
                    student_logits=of.logits,
                    teacher_logits=reference,
                    calibration=calibration,
                    write=self._write,
                    stem=of.role.label.replace(" ", "_"),
                    classes=self.build.data.classes,
                )
            except ExportError as error:
                entry = not_exported(exporter, network, str(error))
            done.append(self._done(of, exporter, entry))
        return done

    def _write(self, files: Mapping[str, bytes | None]) -> None:
        assert self.folder is not None
        self.folder.replace({f"export/{name}": content for name, content in files.items()})

    def _done(self, of: Measured, exporter: Exporter, entry: dict[str, Any]) -> ExportedFile:
        """The file with all of its entry's fields, those that say what it is first."""
        assert self.folder is not None
        label = label_of(exporter, of.role)
        about = of.role.entry(entry["model"]) | {
            "label": label,
            "format": exporter.name,
            "quantize": exporter.label or None,
            "of": of.role.label,
        }
        entry = about | {key: value for key, value in entry.items() if key not in about}
        if entry["rejected"]:
            self.say(f"export {label}", f"rejected: {'; '.join(entry['rejected'])}")
            return ExportedFile(entry | {"usage": None}, of.network, None)
        pixels = of.network.inputs.image_code()
        usage = exporter.usage(f"export/{entry['file']}", of.network.inputs.kind, *([pixels] if pixels else []))
        entry["usage"] = None if usage is None else asdict(usage)
        answer = exporter.load(self.folder.path("export") / entry["file"], torch.get_num_threads())
        return ExportedFile(entry, of.network, answer)

    def _test_inputs(self, network: Network) -> np.ndarray:
        """The whole test split as the model takes it."""
        batches = self.build.test_batches(network.inputs)
        return network.inputs.joined([network.preprocess(batch.inputs.cpu()).numpy() for batch in batches])


def calibration_batches(build: Builder, network: Network) -> list[torch.Tensor]:
    """Training batches as a network's model takes them, which a format may learn the ranges of activations from."""
    batches = itertools.islice(build.loader.train_batches(0, 0), CALIBRATION_BATCHES)
    return [network.preprocess(batch.inputs.cpu()) for batch in batches]


def label_of(exporter: Exporter, role: Role) -> str:
    """What people call a file, e.g. ``onnx int8``, with the network that it is of unless that is the student."""
    return file_label(exporter) if role == STUDENT else f"{file_label(exporter)} of {role.label}"


def without_quantizer(exporter: Exporter, result: StageResult | None) -> str | None:
    """Why a format that writes the student as it was trained cannot write this one; None where it can."""
    if result is None:
        return (
            f"{exporter.name} {exporter.label}: is written by the run that trains the student; a run folder holds its "
            "plain weights only, so name the format under the recipe's export"
        )
    if result.model.quantizer is None:
        return (
            f"{exporter.name} {exporter.label}: the student was trained in floats; an algorithm that trains it in "
            "integers would be right, or a format that quantizes after training"
        )
    return None


def check_rejected(exports: Sequence[Mapping[str, Any]]) -> None:
    """Raise ExportError, which names each rejected file and what is wrong with it, where there is one."""
    rejected = [entry for entry in exports if entry.get("rejected")]
    if not rejected:
        return
    lines = [f"{len(rejected)} of {len(exports)} exported files rejected; everything else is finished"]
    for entry in rejected:
        kept = f"is not the {entry['network']}, kept as export/{entry['file']}" if entry["file"] else "was not written"
        lines += [f"{entry['label']}: {kept}", *(f"  {why}" for why in entry["rejected"])]
    raise ExportError("\n  ".join(lines))
