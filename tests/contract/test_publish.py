"""What is published of the studies of recipes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch

from kdzoo.zoo.loading import load_zoo
from kdzoo_export.onnx_file import Onnx

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"


@pytest.fixture
def publish() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish", ROOT / "benchmarks" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_study(out: Path, **arm: Any) -> Path:
    """A study of the quickstart over two seeds, as far as what is published needs it."""
    runs = []
    for seed, accuracy in ((0, 95.0), (1, 97.5)):
        folder = out / f"{seed:04d}-seed{seed}"
        folder.mkdir(parents=True)
        versions = dict.fromkeys(("kdzoo", "torch", "timm", "python"), "1")
        (folder / "provenance.json").write_text(
            json.dumps({"commit": "c0ffee", "environment": {"threads": 1, **versions}})
        )
        network = {"label": "student", "top1_percent": accuracy, "params_m": 0.1, "size_mib": 0.4, "macs_g": 0.01}
        results = {"data": {"test_samples": 360}, "student": network, "upper_bound": "on more"}
        (folder / "results.json").write_text(json.dumps(results))
        runs.append({"seed": seed, "folder": str(folder), "status": "finished"})
    study = {
        "command": "kdzoo study s.yaml",
        "arms": [{"label": "a", "recipe": "quickstart", "settings": {}, "runs": runs, **arm}],
    }
    (out / "study.json").write_text(json.dumps(study))
    return out


def published(publish: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **arm: Any) -> list[Path]:
    place = tmp_path / "results"
    monkeypatch.setattr(publish, "RESULTS", place)
    monkeypatch.setattr(publish, "read_study", lambda folder: json.loads((folder / "study.json").read_text()))
    monkeypatch.setattr("sys.argv", ["publish.py", str(a_study(tmp_path / "study", **arm))])
    publish.main()
    return sorted(place.glob("*")) if place.exists() else []


def test_the_seeds_of_a_recipe_are_published(publish, monkeypatch, tmp_path):
    (file,) = published(publish, monkeypatch, tmp_path)
    content = json.loads(file.read_text())
    assert file.name == "quickstart.json"
    assert content["recipe"] == "recipes/quickstart.yaml"
    assert (content["command"], content["commit"], content["seeds"]) == ("kdzoo study s.yaml", "c0ffee", [0, 1])
    assert content["student"] == [95.0, 97.5]
    assert content["costs"]["student"]["params_m"] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ({"settings": {"train.epochs": 3}}, "a: no recipe of this repository as it stands, left out"),
        ({"recipe": "mine"}, "a: no recipe of this repository as it stands, left out"),
        ({"runs": [{"seed": 0, "status": "failed"}]}, "a: not finished for every seed, left out"),
    ],
)
def test_what_is_no_finished_recipe_is_left_out(publish, monkeypatch, tmp_path, capsys, arm, reason):
    assert published(publish, monkeypatch, tmp_path, **arm) == []
    assert capsys.readouterr().out == f"{reason}\n"


def test_costs_of_what_every_run_has_are_kept(publish):
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
    assert publish.costs_of(runs) == {
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


def test_tables_keep_numbers_of_each_seed_and_words_that_all_seeds_share(publish):
    def run(*rows: list[Any]) -> dict[str, Any]:
        return {"report_items": [{"kind": "table", "title": "t", "columns": ["a", "b"], "rows": [*rows], "note": "n"}]}

    found = publish.tables_of(
        [run(["x", 1], ["y", "same"], ["z", "one"]), run(["x", 2], ["y", "same"], ["z", "other"])]
    )
    rows = [["x", [1, 2]], ["y", "same"], ["z", None]]
    assert found == {"tables": [{"title": "t", "columns": ["a", "b"], "rows": rows, "note": "n"}]}


def test_every_file_of_a_run_is_timed(publish, tmp_path):
    load_zoo()  # its plugins tell timm of their models
    torch.manual_seed(0)
    network = timm.create_model("digits_cnn_tiny", in_chans=1, num_classes=10).eval()
    Onnx(Onnx.Options()).export(network, torch.rand(2, 1, 8, 8), tmp_path / "student.onnx", {}, [])
    about = {"network": "student", "index": 0, "format": "onnx", "quantize": None, "rejected": []}
    rejected = {**about, "label": "onnx int8", "quantize": "int8", "rejected": ["why"], "file": "student.onnx.rejected"}
    result = {"exports": [{**about, "label": "onnx", "file": "student.onnx"}, rejected]}
    found = publish.request_times(RECIPE, tmp_path, result, rounds=3)
    assert list(found) == ["onnx"]
    assert set(found["onnx"]) == {"latency_ms", "processor_ms"}
    assert all(milliseconds > 0 for milliseconds in found["onnx"].values())
    assert publish.request_times(RECIPE, tmp_path, {}) == {}
