"""MLflow runs: metrics of every stage, the run folder's files, and the student as a registered model."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdzoo.api.export import (
    NeedsError,
    OfferOptions,
    RunState,
    Tracker,
    flat,
    measured,
    quiet_logger,
    sealed_files,
    suppress_output,
)

if TYPE_CHECKING:
    pass

STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
#: The tag by which a run that goes on finds itself.
ID_TAG = "kdzoo.id"
#: Most parameters that a server takes at once, and most characters of one.
MOST, LONGEST = 100, 6000


class MLflow(Tracker):
    """Logs to an MLflow server, a database or a folder; see it with ``mlflow ui``.

    Each kdzoo run is one MLflow run, also after it was killed and resumed: what is stored already is not logged twice.
    When the run has finished, its files become artifacts, and the student becomes a version of the registered model of
    the recipe's name: the exported ONNX file in MLflow's onnx flavour where there is one, else the plain files.
    """

    name = "mlflow"
    description = "MLflow: metrics, the run folder's files as artifacts, the student as a registered model"

    class Options(OfferOptions):
        uri: str | None = Field(
            None, description="Where MLflow stores; null: MLFLOW_TRACKING_URI, or MLflow's own default."
        )
        experiment: str | None = Field(
            None, description="Name of the experiment; null: MLFLOW_EXPERIMENT_NAME, or kdzoo."
        )
        upload: bool = Field(True, description="Whether the files of the finished run folder become artifacts.")
        register_model: bool = Field(True, description="Whether the student becomes a version of a registered model.")

    options: Options

    @classmethod
    def check(cls, options: OfferOptions) -> None:
        if find_spec("mlflow") is None:
            raise NeedsError('needs the library mlflow, which is not installed; pip install "kdzoo[mlflow]"')

    def start(self, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # training waits for a server that is not there
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        with quiet_logger("mlflow"), quiet_logger("alembic"):
            self.client = MlflowClient(self.options.uri)
            experiment = self._experiment()
            found = self.client.search_runs([experiment], f"tags.`{ID_TAG}` = '{self.run.id}'", max_results=1)
            self.id = found[0].info.run_id if found else self._create(experiment)
        self.known = {
            key: {point.step for point in self.client.get_metric_history(self.id, key)}
            for key in (found[0].data.metrics if found else ())
        }
        if found:
            self.client.update_run(self.id, status="RUNNING")

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "kdzoo"
        for _ in range(2):  # another run may create it in between
            if (found := self.client.get_experiment_by_name(name)) is not None:
                return str(found.experiment_id)
            try:
                return str(self.client.create_experiment(name))
            except MlflowException as error:
                refused = error
        raise refused

    def _create(self, experiment: str) -> str:
        from mlflow.entities import Param

        tags = {
            ID_TAG: self.run.id,
            "kdzoo.folder": str(self.run.folder),
            "kdzoo.recipe": self.run.name,
            "mlflow.note.content": str(self.run.recipe.get("description", "")),
        }
        run = self.client.create_run(experiment, tags=tags, run_name=f"{self.run.name}-{self.run.folder.name}")
        params = [Param(legal(key), str(value)[:LONGEST]) for key, value in flat(self.run.recipe).items()]
        for begin in range(0, len(params), MOST):
            self.client.log_batch(run.info.run_id, params=params[begin : begin + MOST])
        return str(run.info.run_id)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._log({f"{stage}/{name}": value for name, value in values.items()}, step)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = {key: value for name, value in values.items() if step not in self.known.get(key := legal(name), ())}
        if new:
            self.client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in new.items()])

    def close(self) -> None: ...

    def finish(self, state: RunState, results: Mapping[str, Any]) -> None:
        try:
            if state == "finished":
                self._log(measured(results), 0)
                if self.options.upload:
                    for file in sealed_files(self.run.folder):
                        place = None if file.parent == Path() else file.parent.as_posix()
                        self.client.log_artifact(self.id, str(self.run.folder / file), place)
                if self.options.register_model:
                    self._register(results)
        except Exception:
            state = "failed"
            raise
        finally:
            self.client.set_terminated(self.id, STATES[state])

    def _register(self, results: Mapping[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        exported = next(exported_onnx(results), None)
        if exported is not None:
            self._upload_onnx(self.run.folder / "export" / exported)
        else:
            for name in ("student.safetensors", "student.json"):
                self.client.log_artifact(self.id, str(self.run.folder / name), "model")
        try:
            self.client.create_registered_model(self.run.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {key.replace("/", "."): f"{value:g}" for key, value in measured(results).items() if "student" in key}
        self.client.create_model_version(self.run.name, f"runs:/{self.id}/model", self.id, tags=tags)

    def _upload_onnx(self, path: Path) -> None:
        """Upload an ONNX file as a model that MLflow loads."""
        import onnx
        from mlflow import onnx as flavour

        with TemporaryDirectory() as scratch:
            place = Path(scratch) / "model"
            with suppress_output(), quiet_logger("mlflow"):
                flavour.save_model(
                    onnx.load(str(path)), str(place), pip_requirements=["onnxruntime"], save_as_external_data=False
                )
            self.client.log_artifacts(self.id, str(place), "model")


def exported_onnx(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of accepted ONNX files of the student, those in float32 first."""
    entries = [e for e in results.get("exports", ()) if e.get("format") == "onnx" and e.get("of") == "student"]
    for entry in sorted(entries, key=lambda entry: entry.get("quantize") is not None):
        if not entry.get("rejected") and entry.get("file"):
            yield str(entry["file"])


def legal(name: str) -> str:
    """A name of a metric or parameter as MLflow takes it."""
    return re.sub(r"[^\w\-./ :]", "_", name)[:250]
