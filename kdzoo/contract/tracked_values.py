"""What trackers show of a run's recipe, results and files, in the flat form that their libraries take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Measurements of a network or an exported file that trackers show.
MEASURED = ("top1_percent", "top5_percent", "agreement_percent", "ece", "nll", "params_m", "size_mib", "macs_g")


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one of scalars, with dotted keys; a list becomes JSON text.

    >>> flat({"train": {"epochs": 2, "milestones": [1]}})
    {'train.epochs': 2, 'train.milestones': '[1]'}
    """
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list | tuple) else value
    return values


def measured(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of results.json by names such as ``test/student/top1_percent``, and the gain."""
    values: dict[str, float] = {}
    entries = [results.get(key) for key in ("teacher", "control", "student")]
    for entry in (*entries, *results.get("teachers", ()), *results.get("exports", ())):
        if entry is None:
            continue
        place = f"test/{entry['label']}"
        numbers = {key: entry.get(key) for key in MEASURED}
        numbers |= {f"latency_{key}_ms": value for key, value in (entry.get("latency_ms") or {}).items()}
        values |= {f"{place}/{key}": float(value) for key, value in numbers.items() if isinstance(value, int | float)}
    control, student = (values.get(f"test/{label}/top1_percent") for label in ("control", "student"))
    if control is not None and student is not None:
        values["test/gain_points"] = student - control
    return values


def sealed_files(folder: Path) -> list[Path]:
    """Return the files of a finished run folder that its manifest records, and the manifest, as paths below it."""
    names = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    return [Path(name) for name in (*sorted(names), "manifest.json")]
