"""A finished run for tests of trackers: a folder with a manifest, and rows of two stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from kdzoo.api.export import TrackedRun, Tracker

RECIPE = {"name": "tiny", "description": "A tiny run.", "train": {"epochs": 2}, "models": {"student": {"name": "net"}}}
ROWS = [
    (stage, step, values)
    for stage in ("teacher", "student")
    for step in (4, 8)
    for values in ({"task": 1 / step, "lr": 0.1}, {"validation/top1_percent": 10.0 * step})
]
STUDENT = {"label": "student", "top1_percent": 80.0, "ece": None, "latency_ms": {"p50": 1.5, "p95": 2.0}}
EXPORT = {**STUDENT, "label": "onnx", "format": "onnx", "of": "student", "quantize": None, "file": "student.onnx"}
RESULTS: dict[str, Any] = {"control": {**STUDENT, "label": "control", "top1_percent": 75.0}, "student": STUDENT}


def write_folder(place: Path) -> Path:
    """Write what a finished run leaves, with a network in ONNX that doubles its input."""
    folder = place / "runs" / "tiny" / "0001-seed0"
    (folder / "export").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "old").write_text("not delivered")
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("inputs", "logits")]
    graph = helper.make_graph([helper.make_node("Add", ["inputs", "inputs"], ["logits"])], "g", *[[n] for n in numbers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "export" / "student.onnx"))
    for name in ("student.json", "student.safetensors", "results.json"):
        (folder / name).write_text("{}")
    files = ("export/student.onnx", "results.json", "student.json", "student.safetensors")
    (folder / "manifest.json").write_text(json.dumps({"files": {name: {} for name in files}}))
    return folder


def started(cls: type[Tracker], folder: Path, resumed: bool = False, **options: Any) -> Any:
    """A tracker of the run in a folder, as the core makes it."""
    tracker = cls()
    tracker.options = cls.Options(**options)
    cls.check(tracker.options)
    tracker.run = TrackedRun("0123456789abcdef" * 2, folder, "tiny", 0, RECIPE, resumed)
    tracker.start(folder)
    return tracker


def log(tracker: Tracker, rows: Any = ROWS) -> None:
    for row in rows:
        tracker.log(*row)
