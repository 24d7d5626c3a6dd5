"""What the runs of a study measured, gathered by arm for the ranking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdzoo.contract.classification import quality
from kdzoo.run.provenance import commit_of_source
from kdzoo.study.arms import Arm
from kdzoo.study.wanted import RunOutcome
from kdzoo.zoo.offered import Zoo

#: Versions of the environment that a study names.
VERSIONS = ("kdzoo", "torch", "timm", "numpy", "python")


def measured(
    name: str,
    description: str,
    arms: Sequence[Arm],
    outcomes: Sequence[RunOutcome],
    zoo: Zoo,
    *,
    baseline: str | None,
    seconds: float,
    command: str | None = None,
) -> dict[str, Any]:
    """Return what study.json holds up to its arms; ``outcomes`` are of the arms' runs, in any order.

    ``seconds`` are those of this call of the study, which is not the first one if it was stopped before.
    """
    environment = next(filter(None, map(_environment, outcomes)), {})
    return {
        "name": name,
        "description": description or None,
        "seeds": list(dict.fromkeys(outcome.run.seed for outcome in outcomes)),
        "baseline": baseline,
        "hardware": _hardware(environment),
        "commit": commit_of_source(),
        "command": command,
        "versions": {key: environment[key] for key in VERSIONS if key in environment},
        "seconds": seconds,
        "arms": [_arm(arm, [each for each in outcomes if each.run.label == arm.label], zoo) for arm in arms],
    }


def _arm(arm: Arm, outcomes: Sequence[RunOutcome], zoo: Zoo) -> dict[str, Any]:
    recipe = arm.loaded.recipe
    algorithm = zoo.algorithm(recipe.algorithm.name)
    return {
        "label": arm.label,
        "algorithm": recipe.algorithm.name,
        "student": recipe.models.student.name,
        "recipe": recipe.name,
        "data": recipe.data.name,
        "teaching": arm.teaching,
        "settings": dict(arm.settings),
        "upper_bound": bool(algorithm.upper_bound) or algorithm.needs.data == "none",
        "runs": [_run(outcome) for outcome in outcomes],
    }


def _run(outcome: RunOutcome) -> dict[str, Any]:
    found: dict[str, Any] = {
        "seed": outcome.run.seed,
        "folder": None if outcome.folder is None else str(outcome.folder),
        "status": outcome.status,
        "error": None if outcome.error is None else str(outcome.error),
    }
    results = outcome.results
    if results is None:
        return found
    student, stages = results["student"], results["stages"]
    own = outcome.student.key[:12] if outcome.student is not None else None
    last = next((stage for stage in stages if stage["key"] == own), stages[-1])
    return found | {
        "top1_percent": _quality(student),
        "control_top1_percent": _quality(results.get("control")),
        "teacher_top1_percent": _quality(results.get("teacher")),
        "params_m": student["params_m"],
        "macs_g": student["macs_g"],
        "step_ms": 1e3 * last["seconds"] / last["steps"] if last.get("steps") else None,
        "training_seconds": sum(stage.get("seconds", 0.0) for stage in _once(stages) if stage["name"] != "control"),
        "training_pmacs": outcome.training_pmacs,
        "files": [_file(entry) for entry in results["exports"] if not entry.get("rejected")],
    }


def _once(stages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each stage once; a search may ask for one twice."""
    return list({stage["key"]: stage for stage in stages}.values())


def _quality(entry: Mapping[str, Any] | None) -> float | None:
    """The share of a network's right answers, percent; None where there is no network or no labelled test sample."""
    return None if entry is None or entry.get("top1_percent") is None else quality(entry)


def _file(entry: Mapping[str, Any]) -> dict[str, Any]:
    times = entry.get("latency_ms") or {}
    return {
        "label": " ".join(filter(None, (entry["format"], entry.get("quantize")))),
        "format": entry["format"],
        "quantize": entry.get("quantize"),
        "top1_percent": entry.get("top1_percent"),
        "size_mib": entry.get("size_mib"),
        "latency_p50_ms": times.get("p50"),
        "latency_p95_ms": times.get("p95"),
    }


def _environment(outcome: RunOutcome) -> dict[str, Any]:
    """The environment that a finished run recorded; empty where it did not."""
    path = (outcome.folder or Path()) / "provenance.json"
    if outcome.folder is None or not path.exists():
        return {}
    return dict(json.loads(path.read_text())["environment"])


def _hardware(environment: Mapping[str, Any]) -> str | None:
    if not environment:
        return None
    threads = environment.get("threads", 1)
    device = environment.get("device", "cpu")
    where = environment.get("cpu", "") if device == "cpu" else device
    return f"{where}, {threads} thread{'s' if threads != 1 else ''} a run"
