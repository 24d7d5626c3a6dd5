"""What a stage saves: the state to resume from, and the weights of its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kdzoo.errors import CorruptError
from kdzoo.training.job import has_report_items
from kdzoo.training.sharding import part_like, shard_slots, whole

if TYPE_CHECKING:
    from torch import Tensor

    from kdzoo.training.job import Job
    from kdzoo.training.selection import Selection
    from kdzoo.training.trained_networks import TrainedNetworks
    from kdzoo.training.training_log import TrainingLog


def stage_state(
    job: Job, step: int, networks: TrainedNetworks, selection: Selection, log: TrainingLog
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that a resumed stage needs: tensors by name, and JSON. All processes call it where the job is sharded."""
    tensors: dict[str, Tensor] = {}
    for name, module in networks.modules.items():
        tensors |= {f"network/{name}/{key}": value for key, value in module.state_dict().items()}
    own = {id(t) for m in networks.modules.values() for t in m.state_dict(keep_vars=True).values()}
    for key, value in job.algorithm.state_dict(keep_vars=True).items():
        if id(value) not in own:
            tensors[f"algorithm/{key}"] = value.detach()
    if networks.ema is not None:
        tensors |= {f"ema/{key}": value for key, value in networks.ema.state_dict().items()}
    tensors |= {f"best/{key}": value for key, value in selection.weights.items()}
    tensors |= {f"best_algorithm/{key}": value for key, value in selection.algorithm.items()}
    optimizers: dict[str, Any] = {}
    for name, optimized in networks.optimized.items():
        slots, optimizers[name] = optimized.state()
        tensors |= {f"optimizer/{name}/{key}": value for key, value in slots.items()}
    tensors = whole(tensors)
    state = {
        "step": step,
        **log.state(),
        "best": selection.state(),
        "optimizers": optimizers,
        "teachers": [teacher.state() for teacher in job.teachers],
        "tensors": sorted(tensors),
    }
    return tensors, state


def restore_stage(
    job: Job,
    networks: TrainedNetworks,
    selection: Selection,
    log: TrainingLog,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> int:
    """Continue from a saved state, bit-identical to never having stopped; return the step to go on with."""
    missing = sorted(set(state["tensors"]) - tensors.keys())
    if missing:
        raise CorruptError(f"stage '{job.name}': the saved state lacks {', '.join(missing[:5])}")
    for name, module in networks.modules.items():
        saved = _below(tensors, f"network/{name}/")
        now = module.state_dict()
        own = {key: part_like(value, now.get(key, value)) for key, value in saved.items()}
        module.load_state_dict(own, strict=True)
    own = job.algorithm.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, value in _below(tensors, "algorithm/").items():
            own[key].copy_(value)
    if networks.ema is not None:
        networks.ema.load_state_dict(_below(tensors, "ema/"), strict=True)
    device = job.precision.device
    best, shown = (
        {key: value.to(device) for key, value in _below(tensors, prefix).items()}
        for prefix in ("best/", "best_algorithm/")
    )
    selection.restore(state["best"], best, shown)
    for name, optimized in networks.optimized.items():
        optimized.restore(_below(tensors, f"optimizer/{name}/"), state["optimizers"][name])
        shard_slots(optimized.optimizer)
    log.restore(state)
    for teacher, saved in zip(job.teachers, state["teachers"], strict=True):
        teacher.restore(saved)
    return int(state["step"])


def result_weights(job: Job, networks: TrainedNetworks, selection: Selection) -> dict[str, dict[str, Tensor]]:
    """Weights to keep: the selected student, peers as they ended, and the algorithm's for its report.

    All processes call it where the job is sharded.
    """
    weights = {"student": selection.weights or networks.result_model.state_dict()}
    quantizer = job.student.quantizer
    if quantizer is not None:
        weights = {"student": quantizer.plain(weights["student"]), "student_quantized": weights["student"]}
    if has_report_items(type(job.algorithm)):
        weights["algorithm"] = selection.algorithm or job.algorithm.state_dict()
    weights |= {f"peer_{i}": peer.model.state_dict() for i, peer in enumerate(job.peers)}
    return {name: whole(tensors) for name, tensors in weights.items()}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
