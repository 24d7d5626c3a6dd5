"""What ``Algorithm.stages`` may read and ask, made of a plan and its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kdzoo.contract.classification import NO_LABEL
from kdzoo.contract.stage import Costs, ModelSpec, Stage, StagePlan, StageResult
from kdzoo.contract.step import Outputs
from kdzoo.errors import ContractError
from kdzoo.evaluation.measuring import measure_latency, timed_forward
from kdzoo.models.network import evaluating
from kdzoo.models.weights import count_parameters
from kdzoo.run.builder import Builder
from kdzoo.run.keys import model_hash
from kdzoo.storage.atomic import write_json
from kdzoo.storage.run_folder import RunFolder
from kdzoo.types import stable_hash


class Planning:
    """Makes the ``StagePlan`` of an algorithm and answers what the algorithm asks of it."""

    def __init__(self, build: Builder, folder: RunFolder | None) -> None:
        self.build, self.folder = build, folder
        self.algorithm = build.plan.algorithm.cls

    def stage_plan(self, teachers: tuple[StageResult, ...]) -> StagePlan:
        plan, build = self.build.plan, self.build
        return StagePlan(
            student=plan.student,
            teachers=teachers,
            assistants=plan.assistants,
            peers=plan.peers,
            own=plan.algorithm.choice,
            delegate=plan.delegate.choice if plan.delegate else None,
            options=plan.algorithm.options,
            num_classes=len(build.data.classes),
            seed=build.recipe.seed,
            targets=self._targets(),
            outputs=self._outputs,
            costs=self._costs,
            latency=self._latency,
            folder=self._folder(),
            train=build.train_section(Stage("student", plan.student)).model_dump(mode="json"),
        )

    def _targets(self) -> tuple[int, ...]:
        needed, data = self.algorithm.needs.data, self.build.data
        targets = data.part("train").targets.tolist()
        if data.labelled is not None:
            kept = set(data.labelled)
            targets = [target if row in kept else NO_LABEL for row, target in enumerate(targets)]
        if needed in ("labelled", "any"):
            return tuple(targets)
        return (NO_LABEL,) * len(targets) if needed == "unlabelled" else ()

    def _folder(self) -> Path | None:
        """A folder of the run for what stages() has to remember over kills; the first process alone writes it."""
        if self.folder is None or not self.build.ranks.first:
            return None
        return self.folder.folder_of("planning")

    def _outputs(self, result: StageResult, samples: Sequence[int]) -> Outputs:
        """A trained network's logits and pre_logits of rows of the training split, on the CPU."""
        if self.algorithm.needs.data == "none":
            raise ContractError(
                f"algorithm '{self.algorithm.name}': asked for outputs of training samples, but declared to read no "
                "data"
            )
        build = self.build
        network = build.trained_network(result).to(build.device)
        batches = build.loader.eval_batches("train", build.recipe.data.eval_batch_size, samples)
        with evaluating(network), torch.no_grad():
            parts = [network(batch.inputs, pre_logits=network.pre_logits_width > 0) for batch in batches]
        embedding: Any = None
        if network.pre_logits_width:
            embedding = torch.cat([part.pre_logits for part in parts]).float().cpu()
        return Outputs(torch.cat([part.logits for part in parts]).float().cpu(), (), embedding)

    def _costs(self, spec: ModelSpec) -> Costs:
        network = self.build.network(spec, load=False)
        return Costs(count_parameters(network.model) / 1e6, network.macs / 1e9)

    def _latency(self, spec: ModelSpec) -> float:
        """Median time of one sample's forward pass, milliseconds; timed once a machine, and from then on stored."""
        build, store = self.build, self.build.store
        key = stable_hash(
            {
                "model": asdict(spec),
                "architecture": model_hash(spec.name),
                "data": build.data.fingerprint,  # for the size of a sample
                "environment": build.environment,
            }
        )
        if store.find("latency", key) is None and build.ranks.first:
            network = build.network(spec, load=False).to(build.device).eval()
            sample = next(iter(build.loader.eval_batches("train", 1, (0,)))).inputs
            times = measure_latency({"": timed_forward(network.model, network.preprocess(sample))})[""]

            def write(folder: Path) -> None:
                write_json(folder / "latency.json", times)

            store.publish("latency", key, write)
        build.ranks.barrier()
        folder = store.find("latency", key)
        assert folder is not None, "published above"
        return float(json.loads((folder / "latency.json").read_text())["p50"])
