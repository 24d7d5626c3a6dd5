"""What the command that measures recipes takes for measured already."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch

from kdzoo.recipe.reading import load_recipe
from kdzoo.zoo.loading import load_zoo
from kdzoo_export.onnx_file import Onnx

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", ROOT / "benchmarks" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_run(out: Path, number: int, status: str, **changes: Any) -> Path:
    recipe = load_recipe(RECIPE).recipe.model_dump(mode="json") | {"seed": 1} | changes
    folder = out / recipe["name"] / f"{number:04d}-seed1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": status, "recipe": recipe}))
    (folder / "results.json").write_text(json.dumps({"number": number}))
    return folder


def test_a_finished_run_of_the_same_settings_serves(measure, tmp_path):
    folder = a_run(tmp_path, 1, "finished", expected=None, description="as it was called before")
    a_run(tmp_path, 2, "finished", threads=7)
    assert measure.one(RECIPE, "quickstart", 1, tmp_path) == (folder, {"number": 1})


@pytest.mark.parametrize(("begun", "asked"), [({}, []), ({"threads": 7}, ["--new"]), ({"expected": None}, ["--new"])])
def test_what_is_missing_is_run(measure, tmp_path, monkeypatch, begun, asked):
    a_run(tmp_path, 1, "finished", threads=7)
    a_run(tmp_path, 2, "running", **begun)
    commands = []

    def run(command: list[str], **_: Any) -> None:
        commands.append(command[-2:] if command[-1] == "--new" else command[-1:])
        a_run(tmp_path, 3, "finished")

    monkeypatch.setattr(measure.subprocess, "run", run)
    assert measure.one(RECIPE, "quickstart", 1, tmp_path)[1] == {"number": 3}
    assert commands == [[str(tmp_path), *asked]]


def test_costs_of_what_every_run_has_are_kept(measure):
    def entry(label: str, accuracy: float, size: float | None = 0.5, ms: float | None = 2.0) -> dict[str, Any]:
        latency = None if ms is None else {"p50": ms, "p95": 9.0}
        return {
            "label": label,
            "top1_percent": accuracy,
            "params_m": 0.25,
            "size_mib": size,
            "macs_g": 0.1,
            "latency_ms": latency,
        }

    def onnx(accuracy: float, ms: float | None = 2.0) -> dict[str, Any]:
        return {**entry("onnx", accuracy, ms=ms), "network": "student", "rejected": []}

    runs = [
        {"student": entry("student", 90.0), "teacher": None, "exports": [onnx(90.0, ms=None)], "teachers": []},
        {
            "student": entry("student", 91.0, ms=3.0),
            "exports": [onnx(91.0), {**onnx(1.0), "label": "onnx of control", "network": "control"}],
            "control": entry("control", 80.0),
        },
    ]
    assert measure.costs_of(runs) == {
        "costs": {
            "student": {
                "top1_percent": [90.0, 91.0],
                "params_m": [0.25, 0.25],
                "size_mib": [0.5, 0.5],
                "macs_g": [0.1, 0.1],
                "latency_ms": [2.0, 3.0],
            },
            "onnx": {
                "top1_percent": [90.0, 91.0],
                "params_m": [0.25, 0.25],
                "size_mib": [0.5, 0.5],
                "macs_g": [0.1, 0.1],
            },
        }
    }


def test_tables_keep_numbers_of_each_seed_and_words_that_all_seeds_share(measure):
    def run(*rows: list[Any]) -> dict[str, Any]:
        return {"report_items": [{"kind": "table", "title": "t", "columns": ["a", "b"], "rows": [*rows], "note": "n"}]}

    found = measure.tables_of(
        [run(["x", 1], ["y", "same"], ["z", "one"]), run(["x", 2], ["y", "same"], ["z", "other"])]
    )
    rows = [["x", [1, 2]], ["y", "same"], ["z", None]]
    assert found == {"tables": [{"title": "t", "columns": ["a", "b"], "rows": rows, "note": "n"}]}


def test_every_file_of_a_run_is_timed(measure, tmp_path):
    load_zoo()  # its plugins tell timm of their models
    torch.manual_seed(0)
    network = timm.create_model("digits_cnn_tiny", in_chans=1, num_classes=10).eval()
    Onnx(Onnx.Options()).export(network, torch.rand(2, 1, 8, 8), tmp_path / "student.onnx", {}, [])
    about = {"network": "student", "index": 0, "format": "onnx", "quantize": None, "rejected": []}
    rejected = {**about, "label": "onnx int8", "quantize": "int8", "rejected": ["why"], "file": "student.onnx.rejected"}
    result = {"exports": [{**about, "label": "onnx", "file": "student.onnx"}, rejected]}
    found = measure.request_times(RECIPE, tmp_path, result, rounds=3)
    assert list(found) == ["onnx"]
    assert set(found["onnx"]) == {"latency_ms", "processor_ms"}
    assert all(milliseconds > 0 for milliseconds in found["onnx"].values())
    assert measure.request_times(RECIPE, tmp_path, {}) == {}
