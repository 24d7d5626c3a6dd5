"""What a run delivers: every model measured on the test split, the exported files, the plain student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from kdzoo.building import Builder
from kdzoo.device import Precision
from kdzoo.evaluation import measure_latency, predict, result_entry
from kdzoo.export.verify import export_and_verify
from kdzoo.metrics import paired_counts, per_class_percent
from kdzoo.models import RESERVED, Network, save_ready
from kdzoo.run_folder import RunFolder
from kdzoo.store import sha256_file, write_tensors
from kdzoo.types import ModelSpec, StageResult


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
        named: dict[str, tuple[StageResult, str, ModelSpec]] = {}
        for i, teacher in enumerate(teachers):
            named["teacher" if len(teachers) == 1 else f"teacher {i}"] = (teacher, "student", teacher.model)
        if control is not None:
            named["control"] = (control, "student", control.model)
        named["student"] = (student, "student", student.model)
        for i, peer in enumerate(student.peers):
            named[f"peer {i}"] = (student, f"peer_{i}", peer)
        networks = {
            label: self.build.trained_network(result, which, spec) for label, (result, which, spec) in named.items()
        }
        logits: dict[str, np.ndarray] = {}
        targets = np.zeros(0)
        for label, network in networks.items():
            plain.place(network)
            batches = self.loader.eval_batches("test", self.recipe.data.eval_batch_size)
            logits[label], targets = predict(network, batches)
        reference = (
            np.mean([logits[label] for label in logits if label.startswith("teacher")], axis=0) if teachers else None
        )
        entries = {
            label: result_entry(
                label=label,
                model=networks[label].spec.name,
                logits=logits[label],
                targets=targets,
                teacher_logits=reference,
                network=networks[label],
                size_bytes=named[label][0].weights[named[label][1]].stat().st_size,
            )
            for label in networks
        }
        exports = self.export(networks["student"], logits["student"], targets, reference)
        self._latency(networks, entries, exports)
        if self.build.ranks.first and self.folder is not None:
            self._deliver(student)
        self.entries = entries | {entry["label"]: entry for entry, _ in exports}
        self.reference = reference
        several = [entry for label, entry in entries.items() if label.startswith("teacher")]
        return {
            "teacher": several[0] if several else None,
            "teachers": several if len(several) > 1 else [],
            "control": entries.get("control"),
            "student": entries["student"],
            "peers": [entry for label, entry in entries.items() if label.startswith("peer")],
            "exports": [entry for entry, _ in exports],
            "paired": paired_counts(logits["student"], logits["control"], targets) if control is not None else None,
            "per_class": {
                "classes": list(self.data.classes),
                "top1_percent": {
                    label: per_class_percent(logits[label], targets)
                    for label in ("teacher", "control", "student")
                    if label in logits
                },
            },
            "data": {"name": self.recipe.data.name, "test_samples": len(targets), **self.data.split_sizes},
            "algorithm": self.build.plan.algorithm.cls.name,
            "data_handed": self.build.plan.algorithm.cls.needs.data,
            "test_evaluations": self.data.test_gate.reads,
        }

    def export(
        self, network: Network, logits: np.ndarray, targets: np.ndarray, reference: np.ndarray | None
    ) -> list[tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]]:
        """Every exported file, verified on the whole test split by its own runtime in a fresh process."""
        if self.folder is None or not self.build.ranks.first or not self.build.plan.exporters:
            return []
        network = network.to("cpu")
        inputs = np.concatenate(
            [
                network.prepare(batch.inputs.cpu()).numpy()
                for batch in self.loader.eval_batches("test", self.recipe.data.eval_batch_size)
            ]
        )
        batches = self.loader.train_batches(0, 0, 0, 0, 1, False)
        calibration = [network.prepare(batch.inputs.cpu()) for batch, _ in zip(batches, range(8), strict=False)]
        done = []
        for exporter in self.build.plan.exporters:
            self.say(f"export {exporter.name} {exporter.label}".strip(), "verifying on the whole test split")
            entry = export_and_verify(
                exporter,
                network,
                inputs=inputs,
                targets=targets,
                student_logits=logits,
                teacher_logits=reference,
                calibration=calibration,
                folder=self.folder.path("export"),
                stem="student",
                classes=self.data.classes,
            )
            run = exporter.load(self.folder.path("export") / entry["file"], torch.get_num_threads())
            done.append((entry, run))
        return done

    def _latency(
        self,
        networks: Mapping[str, Network],
        entries: Mapping[str, dict[str, Any]],
        exports: Sequence[tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]],
    ) -> None:
        """Time everything at batch 1, interleaved, so that a noisy machine is equally unfair to all."""
        sample = next(iter(self.loader.eval_batches("test", 1))).inputs
        candidates: dict[str, Callable[[], Any]] = {}
        for label, network in networks.items():
            network.to(self.build.device).eval()
            candidates[label] = _timed_forward(network.model, network.prepare(sample))
        prepared = networks["student"].prepare(sample).cpu().numpy()
        for entry, run in exports:
            candidates[entry["label"]] = partial(run, prepared)
        times = measure_latency(candidates)
        for entry in [*entries.values(), *(entry for entry, _ in exports)]:
            entry["latency_ms"] = times[entry["label"]]

    def _deliver(self, student: StageResult) -> None:
        """Put the plain student beside the results, loadable by timm alone."""
        assert self.folder is not None
        network = self.build.trained_network(student)
        tensors = save_ready(network.model.state_dict())
        write_tensors(self.folder.path("student.safetensors"), tensors, {"model": student.model.name})
        self.folder.write_json(
            "student.json",
            {
                "model": student.model.name,
                "args": network.create_args,
                "imports": network.module_to_import,
                "classes": list(self.data.classes),
                "mean": list(network.mean),
                "std": list(network.std),
                "size": list(network.size),
                "channels": network.channels,
                "sha256": sha256_file(self.folder.path("student.safetensors")),
            },
        )


def delivered_spec(told: Mapping[str, Any]) -> ModelSpec:
    """The network that student.json tells of, which need not be the recipe's student where an algorithm chose one."""
    args = {name: value for name, value in told["args"].items() if name not in RESERVED}
    height, width = told["size"]
    size = height if height == width else None  # only data are not square, and then it is theirs
    return ModelSpec(told["model"], args=args, mean=tuple(told["mean"]), std=tuple(told["std"]), size=size)


def _timed_forward(model: torch.nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    def forward() -> None:
        with torch.inference_mode():
            model(inputs)
        if inputs.device.type == "cuda":
            torch.cuda.synchronize()

    return forward
