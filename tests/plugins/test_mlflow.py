"""Runs in MLflow, on a database in a temporary folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tracked_run import EXPORT, RESULTS, ROWS, log, started, write_folder

from kdzoo.api.export import NeedsError
from kdzoo_mlflow import mlflow_tracker
from kdzoo_mlflow.mlflow_tracker import MLflow, exported_onnx, legal


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "find_spec", lambda name: None)
    with pytest.raises(NeedsError) as caught:
        MLflow.check(MLflow.Options())
    assert str(caught.value) == 'needs the library mlflow, which is not installed; pip install "kdzoo[mlflow]"'


def test_names_are_made_legal() -> None:
    assert legal("student/kd loss: 95%, größe") == "student/kd loss: 95__ größe"


def test_the_float32_file_is_registered_and_a_rejected_one_never() -> None:
    int8 = {**EXPORT, "quantize": "int8", "file": "student.int8.onnx"}
    of_teacher = {**EXPORT, "of": "teacher", "file": "teacher.onnx"}
    assert list(exported_onnx({"exports": [int8, of_teacher, EXPORT]})) == ["student.onnx", "student.int8.onnx"]
    assert list(exported_onnx({"exports": [{**EXPORT, "rejected": ["too far off"]}]})) == []


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> str:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip('needs the extra: pip install "kdzoo[mlflow]"')
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.slow
def test_a_killed_run_goes_on_as_one_and_its_files_and_model_are_stored(tmp_path: Path, store: str) -> None:
    folder = write_folder(tmp_path)
    options: dict[str, Any] = {"uri": store, "experiment": "digits"}
    log(started(MLflow, folder, **options), ROWS[:5])  # then it is killed
    tracker = started(MLflow, folder, resumed=True, **options)
    log(tracker)
    tracker.close()
    tracker.finish("finished", {**RESULTS, "exports": [EXPORT]})

    import mlflow

    client = mlflow.MlflowClient(store)
    [run] = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny-0001-seed0", "FINISHED")
    assert run.data.params == {
        "name": "tiny",
        "description": "A tiny run.",
        "train.epochs": "2",
        "models.student.name": "net",
    }
    logged = {
        (key, p.step, p.value) for key in run.data.metrics for p in client.get_metric_history(run.info.run_id, key)
    }
    points = [p for key in run.data.metrics for p in client.get_metric_history(run.info.run_id, key)]
    wanted = {(f"{stage}/{name}", step, value) for stage, step, row in ROWS for name, value in row.items()}
    assert wanted <= logged
    assert len(points) == len(logged), "no point is there twice"
    assert run.data.metrics["test/gain_points"] == 5.0
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "export",
        "manifest.json",
        "model",
        "results.json",
        "student.json",
        "student.safetensors",
    }
    mlflow.set_tracking_uri(store)
    model = mlflow.pyfunc.load_model("models:/tiny/1")
    assert model.predict({"inputs": np.array([[1.0, 2.0]], np.float32)})["logits"].tolist() == [[2.0, 4.0]]


@pytest.mark.slow
def test_without_onnx_the_plain_student_is_registered_and_a_failure_is_recorded(tmp_path: Path, store: str) -> None:
    folder = write_folder(tmp_path)
    tracker = started(MLflow, folder, uri=store, upload=False)
    tracker.finish("stopped", {})
    assert tracker.client.get_run(tracker.id).info.status == "KILLED"
    tracker = started(MLflow, folder, resumed=True, uri=store, upload=False)
    assert tracker.client.get_run(tracker.id).info.status == "RUNNING"
    tracker.finish("finished", RESULTS)
    assert [file.path for file in tracker.client.list_artifacts(tracker.id)] == ["model"]
    files = {file.path for file in tracker.client.list_artifacts(tracker.id, "model")}
    assert files == {"model/student.json", "model/student.safetensors"}
    [version] = tracker.client.search_model_versions("name='tiny'")
    assert (version.run_id, version.tags["test.student.top1_percent"]) == (tracker.id, "80")


@pytest.mark.slow
def test_a_server_that_is_not_there_is_an_error_within_seconds(tmp_path: Path, store: str) -> None:
    with pytest.raises(Exception, match="Max retries exceeded"):
        started(MLflow, write_folder(tmp_path), uri="http://127.0.0.1:9")
