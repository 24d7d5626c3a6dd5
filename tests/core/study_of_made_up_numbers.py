"""Studies of made-up numbers, as a study leaves them before its arms are ranked."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any


def arm(label: str, gains: Mapping[int, float | None] | Sequence[float | None], **given: Any) -> dict[str, Any]:
    """An arm with one run a seed: its gain over a control of 90 %, or None of a run that failed."""
    gains = gains if isinstance(gains, Mapping) else dict(enumerate(gains))
    made = {
        "label": label,
        "algorithm": label.split("-")[0],
        "student": "resnet8",
        "recipe": f"made-up-{label}",
        "settings": {},
        "upper_bound": False,
    }
    cost = given.pop("cost", 1.0)
    control = given.pop("control", 90.0)
    return made | given | {"runs": [run(label, seed, gain, cost, control) for seed, gain in gains.items()]}


def run(label: str, seed: int, gain: float | None, cost: float, control: float | None) -> dict[str, Any]:
    if gain is None:
        return {"seed": seed, "folder": None, "status": "failed", "error": "DivergedError: the loss is not finite"}
    top1 = (control or 90.0) + gain
    return {
        "seed": seed,
        "folder": f"runs/made-up-{label}/0001-seed{seed}",
        "status": "finished",
        "error": None,
        "top1_percent": top1,
        "control_top1_percent": control,
        "teacher_top1_percent": 95.0,
        "params_m": 0.078,
        "macs_g": 0.0126,
        "step_ms": 12.0 * cost,
        "training_seconds": 100.0 * cost,
        "training_pmacs": {"student": 0.03 * cost, "teacher": 0.09, "search": 0.0, "total": 0.03 * cost + 0.09},
        "files": [
            {"label": "onnx", "format": "onnx", "quantize": None, "top1_percent": top1, "size_mib": 0.31,
             "latency_p50_ms": 0.21, "latency_p95_ms": 0.26},
            {"label": "onnx int8", "format": "onnx", "quantize": "int8", "top1_percent": top1 - 0.2, "size_mib": 0.10,
             "latency_p50_ms": 0.14, "latency_p95_ms": 0.18},
        ],
    }  # fmt: skip


def study(*arms: Mapping[str, Any], baseline: str | None = "kd", **given: Any) -> dict[str, Any]:
    seeds = sorted({run["seed"] for arm in arms for run in arm["runs"]})
    return {
        "name": "made-up",
        "description": "Which algorithm suits a ResNet-8?",
        "seeds": seeds,
        "baseline": baseline,
        "hardware": "a made-up processor, 2 threads",
        "commit": "0123456789ab",
        "command": "kdzoo study made-up.yaml",
        "versions": {"kdzoo": "0.2.0", "torch": "2.15.0", "python": "3.11.7"},
        "seconds": 7384.0,
        "arms": list(arms),
    } | given


def many_arms(count: int, seeds: int = 5) -> dict[str, Any]:
    """A study of so many arms that differ at random, some of whose runs failed."""
    numbers = random.Random(count)
    arms = [arm("kd", [0.8 + numbers.gauss(0, 0.2) for _ in range(seeds)])]
    for i in range(1, count):
        quality, cost = numbers.gauss(0.8, 0.6), numbers.uniform(0.8, 4.0)
        gains: list[float | None] = [quality + numbers.gauss(0, 0.25) for _ in range(seeds)]
        if i % 11 == 2:
            gains[-1] = None
        made = arm(f"algorithm_{i}" if i % 3 else f"a_long_name_of_{i}-temperature-8", gains, cost=cost)
        faster = numbers.uniform(0.6, 1.6)
        for one in made["runs"]:
            for file in one.get("files", []):
                file["size_mib"] *= 0.5 + i / count
                file["latency_p50_ms"] *= faster
        arms.append(made)
    return study(*arms)
