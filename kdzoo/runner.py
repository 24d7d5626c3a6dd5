"""Drives a plan: stages through the engine and the store, then evaluation, export and the run folder."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import kdzoo
from kdzoo.algorithm import Algorithm
from kdzoo.data import DataSet, open_data
from kdzoo.device import Precision, choose_precision, environment, pick_device, set_threads
from kdzoo.engine import Engine, Job, Plain, Progress
from kdzoo.errors import ContractError, DivergedError, Interrupted, ModelError, NeedsError, OutputError, ResumeError
from kdzoo.evaluation import measure_latency, predict, result_entry
from kdzoo.export.verify import export_and_verify
from kdzoo.models import (
    Network,
    Pairing,
    build_network,
    load_weights,
    pair_levels,
    save_ready,
    shapes_of,
)
from kdzoo.parallel import Ranks
from kdzoo.recipe import Recipe, TrainRecipe, recipe_hash
from kdzoo.resolve import Plan, ResolvedAlgorithm, resolve_choice
from kdzoo.run_folder import RunFolder
from kdzoo.store import Store, read_tensors, sha256_file, write_json, write_tensors
from kdzoo.teacher import CachedTeacher, Teacher
from kdzoo.types import ModelSpec, Stage, StagePlan, StageResult, derive_seed, stable_hash
from kdzoo.zoo import Zoo

#: Raise when stored stages of older versions must not be reused.
STAGE_FORMAT = 1

#: Modules whose source decides a stage's bits; part of every stage's key.
DECISIVE = ("algorithm", "augment", "data", "device", "engine", "levels", "models", "parallel", "teacher", "types")

#: Steps of an epoch for an algorithm that is handed no data, unless train.steps_per_epoch says otherwise.
DATA_FREE_STEPS = 100


class Display(Protocol):
    """What the command line shows while a run goes on."""

    def note(self, text: str) -> None: ...
    def stage(self, name: str, state: str) -> None: ...
    def progress(self, progress: Progress) -> None: ...


class Quiet:
    """A display that shows nothing."""

    def note(self, text: str) -> None: ...
    def stage(self, name: str, state: str) -> None: ...
    def progress(self, progress: Progress) -> None: ...


@dataclass
class Trained:
    """One finished stage beside what the report tells about it."""

    result: StageResult
    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


class Runner:
    """Runs one plan in one run folder. ``stop`` is polled at step boundaries and returns a signal number or 0."""

    def __init__(
        self,
        plan: Plan,
        zoo: Zoo,
        folder: RunFolder | None,
        store: Store,
        ranks: Ranks | None = None,
        display: Display | None = None,
        stop: Callable[[], int] = lambda: 0,
    ) -> None:
        self.plan, self.zoo, self.folder, self.store = plan, zoo, folder, store
        self.recipe: Recipe = plan.recipe
        self.ranks = ranks or Ranks()
        self.display: Display = display or Quiet()
        self.stop = stop
        self.device = pick_device(self.recipe.device)
        set_threads(self.recipe.threads)
        self.environment = environment(self.device)
        self.data: DataSet = open_data(plan.source, self.recipe.data, self.recipe.seed)
        if self.recipe.data.batch_size % self.ranks.world:
            raise NeedsError(
                f"data.batch_size: {self.recipe.data.batch_size} samples cannot be shared evenly by {self.ranks.world} processes"
            )
        self.loader = self.data.loader(
            self.device,
            self.recipe.data.batch_size,
            self.recipe.data.augment,
            self.recipe.seed,
            self.recipe.data.workers,
            self.recipe.data.timeout_s,
        )
        self.stages: list[Trained] = []
        self.warnings: list[str] = list(self.data.notes)
        self.pairings: dict[str, list[str]] = {}
        self._trackers = [tracker() for tracker in plan.trackers] if folder is not None and self.ranks.first else []

    # --- the whole run ------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train, evaluate, export and write; return what results.json holds."""
        begin = time.monotonic()
        self.ranks.agree("the recipe", recipe_hash(self.recipe))
        self._open_folder()
        try:
            teachers = tuple(self._teacher(i, spec) for i, spec in enumerate(self.plan.teachers))
            control = self.train(Stage("control", self.plan.student)) if self.recipe.control else None
            student = self._drive(teachers)
            results = self._evaluate(teachers, control, student)
        finally:
            for tracker in self._trackers:
                tracker.close()
        results["seconds"] = time.monotonic() - begin
        if self.folder is not None and self.ranks.first:
            self.folder.write_json("results.json", results)
        self.ranks.barrier()
        return results

    def _open_folder(self) -> None:
        if self.folder is None or not self.ranks.first:
            return
        self.folder.truncate_metrics(0)  # replayed stages log their rows again
        shutil.rmtree(self.folder.path("tensorboard"), ignore_errors=True)
        self.folder.write_json("provenance.json", self.provenance())
        for tracker in self._trackers:
            tracker.start(self.folder.path(""))

    def provenance(self) -> dict[str, Any]:
        """What a reader needs to repeat the run: versions, hardware, plugins, data, seed, commit."""
        return {
            "environment": self.environment,
            "plugins": self.plan.provenance,
            "recipe_hash": recipe_hash(self.recipe),
            "seed": self.recipe.seed,
            "commit": commit_of_source(),
            "processes": self.ranks.world,
            "data": {
                "name": self.recipe.data.name,
                "fingerprint": self.data.fingerprint,
                "splits": self.data.split_sizes,
                "classes": list(self.data.classes),
                "source": self.data.source,
                "licence": self.data.licence,
            },
        }

    def _drive(self, teachers: tuple[StageResult, ...]) -> StageResult:
        """Replay the algorithm's stages; finished ones come from the store."""
        generator = self.plan.algorithm.cls.stages(self.stage_plan(teachers))
        answer: StageResult | list[StageResult] | None = None
        last: StageResult | None = None
        while True:
            try:
                wanted = generator.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                result = end.value or last
                if not isinstance(result, StageResult):
                    raise ContractError(f"algorithm '{self.plan.algorithm.cls.name}': stages() ended without a result") from None
                return result
            if isinstance(wanted, Stage):
                answer = last = self.train(wanted)
            else:
                answer = [self.train(stage) for stage in wanted]
                last = answer[-1] if answer else last

    def stage_plan(self, teachers: tuple[StageResult, ...]) -> StagePlan:
        plan = self.plan
        return StagePlan(
            student=plan.student,
            teachers=teachers,
            assistants=plan.assistants,
            peers=plan.peers,
            own=plan.algorithm.choice,
            delegate=plan.delegate.choice if plan.delegate else None,
            options=plan.algorithm.options,
        )

    # --- one stage ----------------------------------------------------------------------------

    def _teacher(self, index: int, spec: ModelSpec) -> StageResult:
        name = "teacher" if len(self.plan.teachers) == 1 else f"teacher_{index}"
        result = self.train(Stage(name, spec)) if spec.weights == "train" else self._import(name, spec)
        least = self.recipe.min_teacher_top1_percent
        top1 = result.metrics.get("top1_percent")
        if least is not None and top1 is not None and top1 < least:
            raise ModelError(
                f"{name} '{spec.name}': {top1:.2f} % on the validation split, below min_teacher_top1_percent: {least:g}; "
                "check its weights and its input normalisation (mean, std, size)"
            )
        return result

    def _import(self, name: str, spec: ModelSpec) -> StageResult:
        """A network whose weights come ready; stored like a trained one, so that later stages treat it alike."""
        network = self.network(spec)
        content = hashlib.sha256()
        for key, value in sorted(save_ready(network.model.state_dict()).items()):
            content.update(key.encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes())
        validate = self._validator(self.precision(network))
        identity = {"format": STAGE_FORMAT, "weights": content.hexdigest(), "model": asdict(spec), "data": self._data_identity()}
        key = stable_hash(identity)
        folder = self.store.find("stage", key)
        if folder is None:
            metrics = validate(network) if validate else {}
            folder = self._publish(key, name, {"student": network.model.state_dict()}, metrics, [], {"imported": spec.weights})
        self.display.stage(name, "weights loaded")
        return self._finish(name, key, spec, (), folder)

    def train(self, stage: Stage) -> StageResult:
        """Run one stage, or take its result from the store."""
        chosen = resolve_choice(stage.algorithm, self.zoo) if stage.algorithm is not None else None
        train = self.train_section(stage)
        key = self.stage_key(stage, chosen, train)
        folder = self.store.find("stage", key)
        if folder is not None:
            self.display.stage(stage.name, "taken from the store")
            return self._finish(stage.name, key, stage.model, stage.peers, folder)
        self.display.stage(stage.name, "training")
        job, pairing = self.job(stage, chosen, train)
        engine = Engine(job, self._on_progress)
        begin = time.monotonic()
        self._restore(engine, stage.name, key)
        self._engine_rows = engine.rows
        finished = self._run_engine(engine, stage.name, key)
        if not finished:
            number = self.stop() or 15
            raise Interrupted(f"stopped in stage '{stage.name}' at step {engine.step}; state saved", 128 + number)
        for teacher in job.teachers:
            teacher.check_untouched(stage.name)
        metrics = self._metrics(engine)
        facts: dict[str, Any] = {
            "warnings": engine.warnings,
            "pairing": pairing.describe() if pairing else [],
            "best_epoch": engine.best["epoch"],
            "seconds": time.monotonic() - begin,
            "precision": job.precision.name,
            "teacher_outputs": [asdict(t.hits) for t in job.teachers if isinstance(t, CachedTeacher)],
        }
        folder = None
        if self.ranks.first:
            folder = self._publish(key, stage.name, engine.result_weights(), metrics, engine.rows, facts)
            if self.folder is not None:
                shutil.rmtree(self.folder.path("checkpoints") / stage.name, ignore_errors=True)
        self.ranks.barrier()
        return self._finish(stage.name, key, stage.model, stage.peers, folder or self.store.find("stage", key))

    def _run_engine(self, engine: Engine, name: str, key: str) -> bool:
        checkpoints = self.folder.checkpoints(name) if self.folder is not None and self.ranks.first else None

        def save(engine: Engine) -> None:
            if checkpoints is not None:
                tensors, state = engine.state()
                checkpoints.save(save_ready(tensors), {"key": key, "world": self.ranks.world, **state})

        try:
            return engine.run(save, lambda: bool(self.stop()))
        except DivergedError as error:
            if self.folder is not None and self.ranks.first:
                self.folder.write_json("nan_dump.json", getattr(error, "dump", {}))
            raise

    def _restore(self, engine: Engine, name: str, key: str) -> None:
        if self.folder is None or not self.folder.has_checkpoints(name):
            return
        loaded = self.folder.checkpoints(name).load()
        if loaded is None:
            return
        tensors, state = loaded
        if state["key"] != key:
            raise ResumeError(
                f"stage '{name}' was begun by other code, versions, threads or hardware than now, so it cannot be continued "
                "bit for bit; start a new run with --new"
            )
        if state["world"] != self.ranks.world:
            raise ResumeError(
                f"stage '{name}' was begun by {state['world']} processes and cannot be continued by {self.ranks.world}; "
                f"start {state['world']}, or a new run with --new"
            )
        engine.restore(tensors, state)
        self.display.note(f"stage '{name}' resumed at step {engine.step}")

    def _publish(
        self,
        key: str,
        name: str,
        weights: Mapping[str, Mapping[str, torch.Tensor]],
        metrics: Mapping[str, float],
        rows: Sequence[Mapping[str, Any]],
        facts: Mapping[str, Any],
    ) -> Path:
        def write(folder: Path) -> None:
            for network, tensors in weights.items():
                write_tensors(folder / f"{network}.safetensors", save_ready(tensors), {"network": network})
            plain = [{k: v for k, v in row.items() if k != "stage"} for row in rows]
            write_json(folder / "result.json", {"metrics": metrics, "rows": plain, "facts": facts})

        return self.store.publish("stage", key, write)

    def _finish(self, name: str, key: str, model: ModelSpec, peers: tuple[ModelSpec, ...], folder: Path | None) -> StageResult:
        if folder is None:
            raise OutputError(f"stage '{name}': its result is not in the store ({self.store.root}); is it on a shared disk?")
        stored = json.loads((folder / "result.json").read_text())
        weights = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
        result = StageResult(name, key, model, weights, stored["metrics"], peers, folder)
        rows = [{"stage": name, **row} for row in stored["rows"]]
        self.stages.append(Trained(result, rows, stored["facts"]))
        self.warnings += [text for text in stored["facts"].get("warnings", []) if text not in self.warnings]
        if stored["facts"].get("pairing"):
            self.pairings[name] = stored["facts"]["pairing"]
        self._log(rows)
        return result

    def _log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.folder is None or not self.ranks.first:
            return
        for row in rows:
            self.folder.log_metrics(dict(row))
            numbers = {k: float(v) for k, v in row.items() if k not in ("stage", "split", "step", "epoch")}
            if row["split"] == "validation":
                numbers = {f"validation/{k}": v for k, v in numbers.items()}
            for tracker in self._trackers:
                tracker.log(row["stage"], row["step"], numbers)

    def _on_progress(self, progress: Progress) -> None:
        self.display.progress(progress)

    def _metrics(self, engine: Engine) -> dict[str, float]:
        """Validation metrics of the weights that the stage delivers."""
        rows = [row for row in engine.rows if row["split"] == "validation"]
        if engine.best_weights:
            rows = [row for row in rows if row["epoch"] == engine.best["epoch"]]
        if not rows:
            return {}
        return {k: v for k, v in rows[-1].items() if k not in ("stage", "epoch", "step", "split")}

    # --- building -----------------------------------------------------------------------------

    def train_section(self, stage: Stage) -> TrainRecipe:
        """The recipe's train section with the model's and the stage's overrides."""
        return self.recipe.train.merged(stage.model.train).merged(stage.train)

    def network(self, spec: ModelSpec, salt: str = "") -> Network:
        return build_network(
            spec,
            num_classes=len(self.data.classes),
            channels=self.data.channels,
            size=(spec.size, spec.size) if spec.size else self.data.size,
            mean=spec.mean,
            std=spec.std,
            data_mean=self.data.mean,
            data_std=self.data.std,
            seed=derive_seed(self.recipe.seed, "init", salt),
        )

    def precision(self, network: Network) -> Precision:
        return choose_precision(self.recipe.precision, self.recipe.train.channels_last, network, self.device)

    def trained_network(self, result: StageResult, which: str = "student", spec: ModelSpec | None = None) -> Network:
        """The stored network of a stage, its weights checked against the store's manifest."""
        network = self.network(_fresh(spec or result.model))
        network.model.load_state_dict(read_tensors(result.weights[which], sha256_file(result.weights[which])), strict=True)
        return network

    def job(self, stage: Stage, chosen: ResolvedAlgorithm | None, train: TrainRecipe) -> tuple[Job, Pairing | None]:
        """Everything one stage trains with, built and checked against what its algorithm declares."""
        cls: type[Algorithm] = chosen.cls if chosen else Plain
        needs = cls.needs
        if self.recipe.data.batch_size // self.ranks.world < needs.min_batch and needs.data != "none":
            raise NeedsError(f"algorithm '{cls.name}': needs batches of at least {needs.min_batch} samples in each process")
        if len(self.data.classes) < needs.min_classes:
            raise NeedsError(
                f"algorithm '{cls.name}': needs at least {needs.min_classes} classes, the data set has {len(self.data.classes)}"
            )
        student = self.network(stage.model, stage.salt)
        if stage.start is not None:
            start = stage.start.weights["student"]
            student.model.load_state_dict(read_tensors(start, sha256_file(start)), strict=True)
        peers = [self.network(spec, f"{stage.salt}peer_{i}") for i, spec in enumerate(stage.peers)]
        taught = [self.trained_network(teacher) for teacher in stage.teachers]
        pairing = pair_levels(student, [*taught, *peers]) if needs.features else None
        levels = pairing.indices if pairing else [()] * (1 + len(taught) + len(peers))
        handed = needs.data != "none"
        image = (self.data.channels, *self.data.size)
        shapes = shapes_of(student, taught, peers, pairing, self.data.num_train if handed else 0, image)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.recipe.seed, "algorithm", stage.salt))
            algorithm = cls(chosen.options if chosen else cls.Options(), shapes)
        precision = self.precision(student)
        teachers = [
            self._teacher_object(network, levels[1 + i], needs.pre_logits, handed) for i, network in enumerate(taught)
        ]
        steps = self.loader.steps_per_epoch if handed else (train.steps_per_epoch or DATA_FREE_STEPS)
        if train.steps_per_epoch is not None and handed:
            steps = min(steps, train.steps_per_epoch)
        job = Job(
            name=stage.name,
            algorithm=algorithm,
            loss_weights=chosen.loss_weights if chosen else Plain.default_weights,
            student=student,
            precision=precision,
            train=train,
            seed=derive_seed(self.recipe.seed, "stage", stage.salt),
            batch_size=self.recipe.data.batch_size // self.ranks.world,
            steps_per_epoch=steps,
            loader=self.loader if handed else None,
            teachers=teachers,
            peers=peers,
            student_levels=tuple(levels[0]),
            peer_levels=[tuple(level) for level in levels[1 + len(taught) :]],
            views=self.recipe.cache.views if self.recipe.cache else None,
            validate=self._validator(precision),
            ranks=self.ranks,
        )
        return job, pairing

    def _teacher_object(self, network: Network, levels: Sequence[int], pre_logits: bool, handed: bool) -> Teacher:
        precision = self.precision(network)
        cache = self.recipe.cache
        if cache is None or not handed:
            return Teacher(network, levels, pre_logits, precision)
        identity = {"data": self._data_identity(), "seed": self.recipe.seed, "environment": self.environment}
        teacher = CachedTeacher(
            network,
            levels,
            pre_logits,
            precision,
            store=self.store,
            loader=self.loader,
            identity=identity,
            verify_fraction=cache.verify_fraction,
            seed=self.recipe.seed,
        )
        size = teacher.gib_of_a_view(self.data.num_train) * cache.views
        if size > cache.max_gib:
            raise NeedsError(
                f"cache: {cache.views} views of the teacher's outputs take {size:.1f} GiB, above cache.max_gib: {cache.max_gib:g}; "
                "lower cache.views, raise cache.max_gib, or leave out the cache"
            )
        return teacher

    def _validator(self, precision: Precision) -> Callable[[Network], dict[str, float]] | None:
        if not self.data.split_sizes.get("validation"):
            return None

        def validate(network: Network) -> dict[str, float]:
            precision.place(network)
            batches = self.loader.eval_batches("validation", self.recipe.data.eval_batch_size)
            logits, targets = predict(network, batches, precision.autocast)
            return {"top1_percent": float((logits.argmax(1) == targets).mean() * 100)}

        return validate

    # --- identity -----------------------------------------------------------------------------

    def _data_identity(self) -> dict[str, Any]:
        data = self.recipe.data
        return {
            "fingerprint": self.data.fingerprint,
            "batch_size": data.batch_size,
            "augment": data.augment,
            "validation": data.validation,
            "train_limit": data.train_limit,
        }

    def stage_key(self, stage: Stage, chosen: ResolvedAlgorithm | None, train: TrainRecipe) -> str:
        """Hash everything that determines a stage's bits; its name is not among them."""
        algorithm: dict[str, Any] | None = None
        if chosen is not None:
            algorithm = {
                "name": chosen.cls.name,
                "options": chosen.options.model_dump(mode="json"),
                "loss_weights": dict(chosen.loss_weights),
                "source": _source_hash(chosen.cls),
            }
        ignored = {"checkpoint_seconds"}
        return stable_hash(
            {
                "format": STAGE_FORMAT,
                "model": asdict(stage.model),
                "algorithm": algorithm,
                "teachers": [teacher.key for teacher in stage.teachers],
                "peers": [asdict(peer) for peer in stage.peers],
                "start": stage.start.key if stage.start else None,
                "salt": stage.salt,
                "train": {k: v for k, v in train.model_dump(mode="json").items() if k not in ignored},
                "data": self._data_identity(),
                "views": self.recipe.cache.views if self.recipe.cache else None,
                "seed": self.recipe.seed,
                "precision": self.recipe.precision,
                "environment": self.environment,
                "processes": self.ranks.world,
                "code": _core_hash(),
            }
        )

    # --- the end ------------------------------------------------------------------------------

    def _evaluate(
        self, teachers: tuple[StageResult, ...], control: StageResult | None, student: StageResult
    ) -> dict[str, Any]:
        """Open the test split, once, and measure everything that the run delivers on it."""
        self.data.test_gate.open()
        plain = Precision(self.device, None, False)
        named: dict[str, tuple[StageResult, str, ModelSpec]] = {}
        for i, teacher in enumerate(teachers):
            named["teacher" if len(teachers) == 1 else f"teacher {i}"] = (teacher, "student", teacher.model)
        if control is not None:
            named["control"] = (control, "student", control.model)
        named["student"] = (student, "student", student.model)
        for i, peer in enumerate(student.peers):
            named[f"peer {i}"] = (student, f"peer_{i}", peer)
        networks = {label: self.trained_network(result, which, spec) for label, (result, which, spec) in named.items()}
        logits: dict[str, np.ndarray] = {}
        targets = np.zeros(0)
        for label, network in networks.items():
            plain.place(network)
            batches = self.loader.eval_batches("test", self.recipe.data.eval_batch_size)
            logits[label], targets = predict(network, batches)
        reference = np.mean([logits[label] for label in logits if label.startswith("teacher")], axis=0) if teachers else None
        entries = {
            label: result_entry(
                label=label,
                model=networks[label].spec.name,
                logits=logits[label],
                targets=targets,
                teacher_logits=reference,
                network=networks[label],
                size_bytes=named[label][0].weights[named[label][1]].stat().st_size,
            )
            for label in networks
        }
        exports = self._export(networks["student"], logits["student"], targets, reference)
        self._latency(networks, entries, exports)
        if self.ranks.first and self.folder is not None:
            self._deliver(student)
        several = [entry for label, entry in entries.items() if label.startswith("teacher")]
        return {
            "teacher": several[0] if several else None,
            "teachers": several if len(several) > 1 else [],
            "control": entries.get("control"),
            "student": entries["student"],
            "peers": [entry for label, entry in entries.items() if label.startswith("peer")],
            "exports": [entry for entry, _ in exports],
            "paired": _paired(logits["student"], logits.get("control"), targets),
            "per_class": _per_class(logits, targets, self.data.classes),
            "data": {"name": self.recipe.data.name, "test_samples": len(targets), **self.data.split_sizes},
            "algorithm": self.plan.algorithm.cls.name,
            "pairing": self.pairings,
            "stages": [{"name": t.result.name, "key": t.result.key[:12], **t.facts} for t in self.stages],
            "warnings": self.warnings,
            "test_evaluations": self.data.test_gate.reads,
        }

    def _export(
        self, network: Network, logits: np.ndarray, targets: np.ndarray, reference: np.ndarray | None
    ) -> list[tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]]:
        """Every exported file, verified on the whole test split by its own runtime in a fresh process."""
        if self.folder is None or not self.ranks.first or not self.plan.exporters:
            return []
        network = network.to("cpu")
        inputs = np.concatenate([
            network.prepare(batch.inputs.cpu()).numpy()
            for batch in self.loader.eval_batches("test", self.recipe.data.eval_batch_size)
        ])
        batches = self.loader.train_batches(0, 0, 0, 0, 1, False)
        calibration = [network.prepare(batch.inputs.cpu()) for batch, _ in zip(batches, range(8), strict=False)]
        done = []
        for exporter in self.plan.exporters:
            self.display.stage(f"export {exporter.name} {exporter.label}".strip(), "verifying on the whole test split")
            entry = export_and_verify(
                exporter,
                network,
                inputs=inputs,
                targets=targets,
                student_logits=logits,
                teacher_logits=reference,
                calibration=calibration,
                folder=self.folder.path("export"),
                stem="student",
                classes=self.data.classes,
            )
            run = exporter.load(self.folder.path("export") / entry["file"], torch.get_num_threads())
            done.append((entry, run))
        return done

    def _latency(
        self,
        networks: Mapping[str, Network],
        entries: Mapping[str, dict[str, Any]],
        exports: Sequence[tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]],
    ) -> None:
        """Time everything at batch 1, interleaved, so that a noisy machine is equally unfair to all."""
        sample = next(iter(self.loader.eval_batches("test", 1))).inputs
        candidates: dict[str, Callable[[], Any]] = {}
        for label, network in networks.items():
            network.to(self.device).eval()
            candidates[label] = _timed_forward(network.model, network.prepare(sample))
        prepared = networks["student"].prepare(sample).cpu().numpy()
        for entry, run in exports:
            candidates[entry["label"]] = lambda run=run: run(prepared)
        times = measure_latency(candidates)
        for entry in [*entries.values(), *(entry for entry, _ in exports)]:
            entry["latency_ms"] = times[entry["label"]]

    def _deliver(self, student: StageResult) -> None:
        """Put the plain student beside the results, loadable by timm alone."""
        assert self.folder is not None
        network = self.trained_network(student)
        tensors = save_ready(network.model.state_dict())
        write_tensors(self.folder.path("student.safetensors"), tensors, {"model": student.model.name})
        self.folder.write_json(
            "student.json",
            {
                "model": student.model.name,
                "args": network.create_args,
                "classes": list(self.data.classes),
                "mean": list(network.mean),
                "std": list(network.std),
                "size": list(network.size),
                "channels": self.data.channels,
                "sha256": sha256_file(self.folder.path("student.safetensors")),
            },
        )


def _timed_forward(model: torch.nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    def forward() -> None:
        with torch.inference_mode():
            model(inputs)
        if inputs.device.type == "cuda":
            torch.cuda.synchronize()

    return forward


def _fresh(spec: ModelSpec) -> ModelSpec:
    """The same network without its initial weights, which are about to be replaced."""
    return ModelSpec(spec.name, "train", spec.args, spec.train, spec.mean, spec.std, spec.size)


def _paired(student: np.ndarray, control: np.ndarray | None, targets: np.ndarray) -> dict[str, int] | None:
    """How often student and control are right on the same test samples."""
    if control is None:
        return None
    s, c = student.argmax(1) == targets, control.argmax(1) == targets
    counts = {"both": s & c, "student_only": s & ~c, "control_only": ~s & c, "neither": ~s & ~c}
    return {name: int(mask.sum()) for name, mask in counts.items()}


def _per_class(logits: Mapping[str, np.ndarray], targets: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    shown = {label: value for label, value in logits.items() if label in ("teacher", "control", "student")}
    accuracy = {
        label: [float((value.argmax(1)[targets == k] == k).mean() * 100) if (targets == k).any() else None for k in range(len(classes))]
        for label, value in shown.items()
    }
    return {"classes": list(classes), "top1_percent": accuracy}


def _source_hash(cls: type) -> str:
    """Hash of the modules that an algorithm's class and its bases are written in, up to the contract."""
    files = {inspect.getsourcefile(c) for c in cls.__mro__ if c.__module__.split(".")[0] not in ("torch", "builtins", "kdzoo")}
    return hashlib.sha256(b"".join(Path(f).read_bytes() for f in sorted(f for f in files if f))).hexdigest()


def _core_hash() -> str:
    root = Path(kdzoo.__file__).parent
    files = [root / f"{name}.py" for name in DECISIVE]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.exists())).hexdigest()


def commit_of_source() -> str | None:
    """The commit of the checkout this package runs from, marked when it has changes; None when installed."""
    root = Path(kdzoo.__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit or None
