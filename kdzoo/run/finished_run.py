"""A finished run as an algorithm sees it; see ``Algorithm.report_items``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdzoo.contract import classification as metrics
from kdzoo.contract.shared_losses import mean_prediction
from kdzoo.contract.stage import ModelSpec, StagePlan, StageResult
from kdzoo.contract.step import Outputs
from kdzoo.errors import ContractError
from kdzoo.evaluation.measuring import measure_latency, predict, timed_forward
from kdzoo.models.network import Network, evaluating
from kdzoo.models.weights import count_parameters
from kdzoo.run.builder import Builder
from kdzoo.run.stored_logits import StoredLogits
from kdzoo.storage.atomic import tensor_bytes
from kdzoo.storage.sealed import read_tensors
from kdzoo.training.job import Job
from kdzoo.types import derive_seed


class DeliveredRun:
    """Hands an algorithm its trained networks and the test split; see ``kdzoo.contract.report_items.FinishedRun``.

    ``rebuild`` makes a stage's job again, by its key.
    """

    def __init__(
        self,
        build: Builder,
        *,
        plan: StagePlan,
        teachers: tuple[StageResult, ...],
        control: StageResult | None,
        student: StageResult,
        stages: tuple[StageResult, ...],
        entries: Mapping[str, Mapping[str, Any]],
        reference: np.ndarray | None,
        rows: Mapping[str, list[dict[str, Any]]],
        rebuild: Callable[[str], Job],
    ) -> None:
        self.options = build.plan.algorithm.options
        self.plan = plan
        self.classes = build.data.classes
        self.teachers, self.control, self.student, self.stages = teachers, control, student, stages
        self.entries = entries
        self.variants: list[dict[str, Any]] = []
        self._logits = StoredLogits(build)
        self._build, self._reference, self._rows, self._rebuild = build, reference, rows, rebuild

    def network(self, result: StageResult, which: str = "student", levels: Sequence[str] = ()) -> nn.Module:
        network = self._network(result, which)
        return Reading(network, [network.level(name) for name in levels]) if levels else network

    def section(self, result: StageResult, level: str, which: str = "student") -> nn.Module:
        network = self._network(result, which)
        return network.section(network.level(level))

    def _network(self, result: StageResult, which: str) -> Network:
        if which == "student_quantized":
            return self._build.quantized_network(result).to(self._build.device).eval()
        peers = {f"peer_{i}": peer for i, peer in enumerate(result.peers)}
        spec: ModelSpec = peers.get(which, result.model)
        return self._build.trained_network(result, which, spec).to(self._build.device).eval()

    def algorithm(self, result: StageResult) -> Any:
        if "algorithm" not in result.weights:
            raise ContractError(f"stage '{result.name}': holds no state of an algorithm; it was trained without one")
        algorithm = self._rebuild(result.key).algorithm
        algorithm.load_state_dict(read_tensors(result.weights["algorithm"]), strict=True)
        return algorithm.to(self._build.device).eval()

    def ensemble(self, modules: Sequence[nn.Module]) -> nn.Module:
        return Ensemble(modules)

    def predict(self, module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(module, Network) and module.quantizer is None:
            return self._logits.of(module)
        network = module.network if isinstance(module, Reading) else module
        inputs = network.inputs if isinstance(network, Network) else None
        return predict(Answering(module), self._build.test_batches(inputs))

    def measure(self, modules: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
        sample = next(iter(self._build.loader.eval_batches("test", 1))).inputs
        timed = {"": timed_forward(self.network(self.student), sample)}
        entries = []
        for label, module in modules.items():
            module.to(self._build.device)
            logits, targets = self.predict(module)
            stored = module.model if isinstance(module, Network) else module  # of a network, what its stage stores
            tensors = {t.data_ptr(): (name, t) for name, t in stored.state_dict().items()}  # tied ones once
            entry = metrics.result_entry(
                label=label,
                model=label,
                logits=logits,
                targets=targets,
                teacher_logits=self._reference,
                parameters=count_parameters(module),
                size_bytes=len(tensor_bytes(dict(tensors.values()), {"network": "student"})),
                macs=_macs(module, sample),
            )
            entries.append(entry)
            timed[label] = timed_forward(module.eval(), sample)
        times = measure_latency(timed)
        for entry in entries:
            entry["latency_ms"] = times[entry["label"]]
            entry["latency_ratio"] = times[entry["label"]]["p50"] / times[""]["p50"]
        self.variants += entries
        return entries

    def log(self, result: StageResult) -> list[dict[str, Any]]:
        return self._rows.get(result.key, [])

    def random(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._build.recipe.seed, "exhibits", name))


class Reading(nn.Module):
    """A network that always answers with the same levels."""

    def __init__(self, network: Network, levels: Sequence[int]) -> None:
        super().__init__()
        self.network, self.levels = network, tuple(levels)

    def forward(self, inputs: Tensor) -> Outputs:
        return self.network(inputs, levels=self.levels)


class Answering(nn.Module):
    """A module whose answers are ``Outputs``, whichever of the two it gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Outputs:
        answer = self.module(inputs)
        return answer if isinstance(answer, Outputs) else Outputs(answer)


class Ensemble(nn.Module):
    """The mean of the probabilities of some modules, as logarithms (N, K)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(Answering(module) for module in modules)

    def forward(self, inputs: Tensor) -> Tensor:
        return mean_prediction([member(inputs).logits for member in self.members])


def _macs(module: nn.Module, sample: Tensor) -> int:
    # The counter follows parameters that are handed on as arguments, which takes gradients.
    with evaluating(module), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        module(sample)
    return counter.get_total_flops() // 2
