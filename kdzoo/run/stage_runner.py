"""One stage at a time: taken from the store, or trained, checkpointed, published and logged."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kdzoo.contract.stage import ModelSpec, Stage, StageResult
from kdzoo.errors import DivergedError, ModelError, OutputError, ResumeError
from kdzoo.models.weights import weights_sha256
from kdzoo.plan.resolve import ResolvedAlgorithm, resolve_choice
from kdzoo.report.verdict import shortfall
from kdzoo.run.builder import Builder
from kdzoo.run.control import Control
from kdzoo.run.keys import STAGE_FORMAT
from kdzoo.run.stage_key import stage_key
from kdzoo.run.stage_log import StageLog
from kdzoo.storage.atomic import write_json, write_tensors
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.unfinished import UnfinishedStage
from kdzoo.training.engine import Engine, Progress
from kdzoo.training.job import Job
from kdzoo.training.stored_answers import AnsweringTeacher
from kdzoo.training.teacher import CachedTeacher
from kdzoo.types import stable_hash
from kdzoo.zoo.offered import Zoo


@dataclass
class Trained:
    """One finished stage with what the report says about it."""

    result: StageResult
    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    stage: Stage | None = None  # None where ready weights were loaded


class StageRunner:
    """Trains the stages of one run, and remembers what it finished."""

    def __init__(
        self,
        build: Builder,
        zoo: Zoo,
        folder: RunFolder | UnfinishedStage | None,
        control: Control,
        log: StageLog,
        warnings: list[str],
    ) -> None:
        """``folder`` is where checkpoints go; ``warnings`` are the run's, and those of its stages are added."""
        self.build, self.zoo, self.folder, self.control, self.log = build, zoo, folder, control, log
        self.store, self.ranks = build.store, build.ranks
        self.first_teacher: StageResult | None = None  # what a model with weights "teacher" starts from
        self.trained: list[Trained] = []
        self.warnings = warnings
        self.pairings: dict[str, list[str]] = {}

    def train(self, stage: Stage) -> StageResult:
        """Run one stage, or take its result from the store."""
        stage = self.started(stage)
        self.control.check_stop(f"before stage '{stage.name}'")
        chosen, train = self._chosen(stage), self.build.train_section(stage)
        key = stage_key(self.build, stage, chosen, train)
        if (result := self.stored(stage, key)) is not None:
            self.control.display.stage(stage.name, "taken from the store")
            self._drop_checkpoints(stage.name)  # of a run killed after its result was stored
            return result
        self.control.display.stage(stage.name, "training")
        job, pairing = self.build.job(stage, chosen, train)
        engine = Engine(job, lambda progress: self._on_progress(engine, progress))
        begin = time.monotonic()
        self.restore(engine, stage.name, key)
        if not self._run_engine(engine, stage.name, key):
            raise self.control.interrupted(f"in stage '{stage.name}' at step {engine.step}")
        for teacher in job.teachers:
            teacher.check_untouched(stage.name)
        facts: dict[str, Any] = {
            "warnings": engine.log.warnings,
            "pairing": pairing.describe() if pairing else [],
            "best_epoch": engine.selection.epoch,
            "seconds": time.monotonic() - begin,
            "steps": engine.step,
            "precision": job.precision.name,
            "logged_of": engine.log.logged_of,
            "answers": [t.kept.record() for t in job.teachers if t.kept is not None],
            "teacher_outputs": [
                asdict(t.hits) for t in job.teachers if isinstance(t, CachedTeacher | AnsweringTeacher)
            ],
        }
        folder: Path | None = None
        weights = engine.result_weights() if self.ranks.first or job.sharded else {}
        if self.ranks.first:
            metrics = validation_of(engine)
            folder = self._publish(key, weights, metrics, engine.log.rows, facts)
            self._drop_checkpoints(stage.name)
        self.ranks.barrier()
        return self._finish(stage.name, key, stage.model, stage.peers, folder or self.store.find("stage", key), stage)

    def stored(self, stage: Stage, key: str) -> StageResult | None:
        """Take the result of a stage from the store; None where it is not there yet."""
        folder = self.store.find("stage", key)
        return None if folder is None else self._finish(stage.name, key, stage.model, stage.peers, folder, stage)

    def take_ready(self, name: str, spec: ModelSpec) -> StageResult:
        """Store a network whose weights come ready like a trained one, so that later stages treat it alike."""
        if spec.answers is not None:
            return self._take_answers(name, spec)
        network = self.build.network(spec)
        if network.fresh_head:
            raise ModelError(
                f"{name} '{spec.name}': '{spec.weights}' is for other classes than the data's {network.num_classes}, "
                "so that its answers would be random; give weights of these classes, or say finetune: true"
            )
        validate = self.build.validator(self.build.precision(network))
        identity = {
            "format": STAGE_FORMAT,
            "weights": weights_sha256(network.model),
            "model": asdict(spec),
            "data": self.build.data_identity(),
            "seed": self.build.recipe.seed,
        }
        key = stable_hash(identity)
        folder = self.store.find("stage", key)
        if folder is None:
            metrics = validate(network) if validate else {}
            weights = {"student": network.model.state_dict()}
            facts: dict[str, Any] = {"imported": spec.weights}
            if network.read_from is not None and network.read_from.top1_percent is not None:
                facts["stated_top1_percent"] = network.read_from.top1_percent
                facts["stated_by"] = network.read_from.stated_by
            folder = self._publish(key, weights, metrics, [], facts)
        self.control.display.stage(name, "weights loaded")
        return self._finish(name, key, spec, (), folder)

    def falls_short(self, teacher: StageResult) -> str:
        """Say that a ready network is far below what its file states of it; empty where it is not."""
        facts, top1 = self.trained[-1].facts, teacher.metrics.get("top1_percent")
        stated, samples = facts.get("stated_top1_percent"), self.build.data.split_sizes.get("validation", 0)
        short = "" if stated is None or top1 is None else shortfall(top1, stated, facts["stated_by"], samples)
        return f"{teacher.name} '{teacher.model.name}': {top1:.2f} % on the validation split, {short}" if short else ""

    def _take_answers(self, name: str, spec: ModelSpec) -> StageResult:
        """The result of a teacher that is known by its stored answers only: it has metrics, and no weights."""
        answers = self.build.teachers.answers(spec)
        result = StageResult(name, answers.key, spec, {}, answers.metrics, folder=answers.root)
        self.trained.append(Trained(result, [], {"imported": spec.weights, "answers": [answers.kept.record()]}))
        self.control.display.stage(name, f"stored answers of {answers.root}, {answers.views} views")
        return result

    def started(self, stage: Stage) -> Stage:
        """A stage with the result that it starts from, where its model says that this is the teacher's."""
        from_teacher = stage.model.weights == "teacher" and stage.start is None
        return replace(stage, start=self.first_teacher) if from_teacher else stage

    def key(self, stage: Stage) -> str:
        return stage_key(self.build, stage, self._chosen(stage), self.build.train_section(stage))

    def rebuild(self, key: str) -> Job:
        """Make the job of a finished stage again."""
        stage = next(trained.stage for trained in self.trained if trained.result.key == key)
        assert stage is not None, "ready weights have no job"
        return self.build.job(stage, self._chosen(stage), self.build.train_section(stage))[0]

    def _chosen(self, stage: Stage) -> ResolvedAlgorithm | None:
        """The algorithm of a stage, resolved; None for one that trains on the task alone."""
        return None if stage.algorithm is None else resolve_choice(stage.algorithm, self.zoo)

    # --- training -----------------------------------------------------------------------------

    def _run_engine(self, engine: Engine, name: str, key: str) -> bool:
        checkpoints = self.folder.checkpoints(name) if self.folder is not None and self.ranks.first else None

        def save(engine: Engine) -> None:
            if checkpoints is None and not engine.job.sharded:
                return
            tensors, state = engine.state()
            if checkpoints is not None:
                checkpoints.save(tensors, {"key": key, "world": self.ranks.world, **state})

        try:
            return engine.run(save, lambda: bool(self.control.stop()))
        except DivergedError as error:
            if self.folder is not None and self.ranks.first:
                self.folder.write_json("nan_dump.json", getattr(error, "dump", {}))
            raise

    def _on_progress(self, engine: Engine, progress: Progress) -> None:
        if progress.end_of_epoch:
            self.log.add(engine.log.rows)
        self.control.display.progress(progress)

    def restore(self, engine: Engine, name: str, key: str) -> None:
        """Continue from the last checkpoint of the stage, if there is one; ResumeError if it cannot be continued."""
        if self.folder is None or not self.folder.has_checkpoints(name):
            return
        loaded = self.folder.checkpoints(name).load()
        if loaded is None:
            return
        tensors, state = loaded
        if state["world"] != self.ranks.world:
            raise ResumeError(
                f"stage '{name}' was begun by {state['world']} processes and cannot be continued by "
                f"{self.ranks.world}; start {state['world']}, or a new run with --new"
            )
        if state["key"] != key:
            raise ResumeError(
                f"stage '{name}' was begun by other code, versions, threads or hardware than now, so it cannot be "
                "continued bit for bit; start a new run with --new"
            )
        engine.restore(tensors, state)
        self.control.display.note(f"stage '{name}' resumed at step {engine.step}")

    def _drop_checkpoints(self, name: str) -> None:
        if self.folder is not None and self.ranks.first and self.folder.has_checkpoints(name):
            self.folder.drop_checkpoints(name)

    # --- results ------------------------------------------------------------------------------

    def _publish(
        self,
        key: str,
        weights: Mapping[str, Mapping[str, torch.Tensor]],
        metrics: Mapping[str, float],
        rows: Sequence[Mapping[str, Any]],
        facts: Mapping[str, Any],
    ) -> Path:
        def write(folder: Path) -> None:
            for network, tensors in weights.items():
                write_tensors(folder / f"{network}.safetensors", tensors, {"network": network})
            plain = [{k: v for k, v in row.items() if k != "stage"} for row in rows]
            write_json(folder / "result.json", {"metrics": metrics, "rows": plain, "facts": facts})

        return self.store.publish("stage", key, write)

    def _finish(
        self,
        name: str,
        key: str,
        model: ModelSpec,
        peers: tuple[ModelSpec, ...],
        folder: Path | None,
        stage: Stage | None = None,
    ) -> StageResult:
        if folder is None:
            raise OutputError(
                f"stage '{name}': its result is not in the store ({self.store.root}); is it on a shared disk?"
            )
        stored = json.loads((folder / "result.json").read_text())
        weights = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
        result = StageResult(name, key, model, weights, stored["metrics"], peers, folder)
        rows = [{"stage": name, **row} for row in stored["rows"]]
        self.trained.append(Trained(result, rows, stored["facts"], stage))
        self.warnings += [text for text in stored["facts"].get("warnings", []) if text not in self.warnings]
        if stored["facts"].get("pairing"):
            self.pairings[name] = stored["facts"]["pairing"]
        self.log.end_stage(rows)
        return result


def validation_of(engine: Engine) -> dict[str, float]:
    """Return the validation metrics of the weights that a stage delivers; none where nothing was validated."""
    rows = [row for row in engine.log.rows if row["split"] == "validation"]
    if engine.selection.weights:
        rows = [row for row in rows if row["epoch"] == engine.selection.epoch]
    if not rows:
        return {}
    return {key: value for key, value in rows[-1].items() if key not in ("stage", "epoch", "step", "split")}
