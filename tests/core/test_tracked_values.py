"""What trackers send: the recipe and the results as flat values, and the files of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

from run_of_made_up_numbers import RESULTS

from kdzoo.api.export import flat, measured, sealed_files


def test_nested_values_become_flat_ones():
    recipe = {"name": "x", "train": {"epochs": 2, "schedule": {"milestones": (1, 2)}}, "export": [{"format": "onnx"}]}
    assert flat(recipe) == {
        "name": "x",
        "train.epochs": 2,
        "train.schedule.milestones": "[1, 2]",
        "export": '[{"format": "onnx"}]',
    }


def test_results_become_numbers_by_name():
    values = measured(RESULTS)
    student, control, [file, *_] = RESULTS["student"], RESULTS["control"], RESULTS["exports"]
    assert values["test/student/top1_percent"] == student["top1_percent"]
    assert values["test/student/latency_p50_ms"] == student["latency_ms"]["p50"]
    assert values[f"test/{file['label']}/size_mib"] == file["size_mib"]
    assert values["test/gain_points"] == student["top1_percent"] - control["top1_percent"]
    assert all(isinstance(value, float) for value in values.values())
    alone = measured({**RESULTS, "control": None, "student": {**student, "ece": None}})
    assert not {"test/gain_points", "test/student/ece", "test/control/top1_percent"} & alone.keys()


def test_files_are_those_of_the_manifest(tmp_path: Path):
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"student.json": {}, "export/student.onnx": {}}}))
    assert [str(path) for path in sealed_files(tmp_path)] == ["export/student.onnx", "student.json", "manifest.json"]
