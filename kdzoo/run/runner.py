"""Drives a plan: stages through the engine and the store, then evaluation, export and the run folder."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.declared import bounds
from kdzoo.contract.stage import ModelSpec, Stage, StagePlan, StageResult
from kdzoo.contract.step import Outputs
from kdzoo.errors import ContractError, DivergedError, Interrupted, ModelError, NeedsError, OutputError, ResumeError
from kdzoo.evaluation.measuring import predict
from kdzoo.models.levels import Pairing
from kdzoo.models.network import Network
from kdzoo.models.weights import count_parameters, weights_sha256
from kdzoo.plan.resolve import Plan, ResolvedAlgorithm, resolve, resolve_choice
from kdzoo.recipe.problems import Positions
from kdzoo.recipe.reading import LoadedRecipe, recipe_hash
from kdzoo.recipe.sections import Recipe
from kdzoo.run.builder import Builder
from kdzoo.run.delivered import STUDENT, Measured, delivered_spec
from kdzoo.run.delivery import Delivery
from kdzoo.run.exporting import Exporting
from kdzoo.run.finished_run import DeliveredRun
from kdzoo.run.keys import STAGE_FORMAT
from kdzoo.run.provenance import commit_of_source
from kdzoo.run.rehearsal import NotTrained, Untold, in_floats, not_trained
from kdzoo.run.report_item_json import as_json
from kdzoo.run.workers import Workers
from kdzoo.storage.atomic import write_json, write_tensors
from kdzoo.storage.owner import Owner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.sealed import read_tensors
from kdzoo.storage.store import Store
from kdzoo.training.engine import Engine, Progress
from kdzoo.training.job import Job, has_report_items
from kdzoo.training.parallel import Ranks
from kdzoo.training.teacher import CachedTeacher
from kdzoo.types import stable_hash
from kdzoo.zoo.loading import Zoo, load_zoo

#: What every interrupted run ends with.
GO_ON = "state saved, the same command goes on from there"


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
    stage: Stage | None = None  # None where ready weights were loaded


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
        logs: bool = True,
    ) -> None:
        """``logs`` False is for a worker, which trains stages for another runner and leaves the log to that."""
        self.plan, self.zoo, self.folder, self.store = plan, zoo, folder, store
        self.recipe = plan.recipe
        self.ranks = ranks or Ranks()
        self.display: Display = display or Quiet()
        self.stop = stop
        self.build = Builder(plan, store, self.ranks)
        self.data, self.loader = self.build.data, self.build.loader
        self.stages: list[Trained] = []
        self.warnings: list[str] = []
        self.pairings: dict[str, list[str]] = {}
        self._first_teacher: StageResult | None = None
        self._logged = 0  # rows of the stage in progress that are in the log already
        self._logs = logs and folder is not None and self.ranks.first
        self._trackers = [tracker() for tracker in plan.trackers] if self._logs else []
        self._workers: Workers | None = None
        if self.recipe.jobs > 1 and self.ranks.world > 1:
            raise NeedsError(
                f"jobs: {self.recipe.jobs} workers cannot be combined with the {self.ranks.world} processes of a "
                "distributed run; set jobs: 1"
            )

    # --- the whole run ------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train, evaluate, export and write; return what results.json holds."""
        begin = time.monotonic()
        self.ranks.agree("the recipe", recipe_hash(self.recipe))
        self.data.check_form()  # what cannot be read, or tested on, is found now and not after all training
        if self.plan.algorithm.cls.quantizer is not None:
            self.rehearse()  # a library that is not installed, or does not know the student, is told before training
        self._open_folder()
        try:
            self._train_side_by_side(
                [s for i, spec in enumerate(self.plan.teachers) if (s := self._teacher_stage(i, spec))]
            )
            teachers = tuple(self._teacher(i, spec) for i, spec in enumerate(self.plan.teachers))
            self._first_teacher = teachers[0] if teachers else None
            control = self.train(Stage("control", self.plan.student)) if self.recipe.control else None
            before = len(self.stages)
            student = self.drive(teachers)
            own = tuple(trained.result for trained in self.stages[before:])
            self._check_stop("before the evaluation")
            delivery = Delivery(self.build, self.folder, self._say)
            results = delivery.measure(teachers, control, student)
            results |= self._report_items(delivery, teachers, control, student, own)
        finally:
            for tracker in self._trackers:
                tracker.close()
            if self._workers is not None:
                self._workers.close()
        results |= {
            "pairing": self.pairings,
            "stages": [{"name": t.result.name, "key": t.result.key[:12], **t.facts} for t in self.stages],
            "warnings": [
                *results.get("warnings", []),
                *self.warnings,
                *self.data.notes,
                *(self.folder.warnings if self.folder else []),
            ],
            "seconds": time.monotonic() - begin,
        }
        if self.folder is not None and self.ranks.first:
            self.folder.write_json("results.json", results)
        self.ranks.barrier()
        return results

    def _report_items(
        self,
        delivery: Delivery,
        teachers: tuple[StageResult, ...],
        control: StageResult | None,
        student: StageResult,
        stages: tuple[StageResult, ...],
    ) -> dict[str, Any]:
        """What the algorithm shows beside the measurements of what is delivered."""
        cls = self.plan.algorithm.cls
        if not self.ranks.first or not has_report_items(cls):
            return {"report_items": [], "variants": []}
        self._say("report_items", "what else the algorithm shows")
        run = DeliveredRun(
            self.build,
            plan=self.stage_plan(teachers),
            teachers=teachers,
            control=control,
            student=student,
            stages=stages,
            entries=delivery.entries,
            reference=delivery.reference,
            rows={trained.result.key: trained.rows for trained in self.stages},
            rebuild=self._rebuild,
        )
        shown = [as_json(item, f"algorithm '{cls.name}'") for item in cls.report_items(run)]
        return {"report_items": shown, "variants": run.variants}

    def _rebuild(self, key: str) -> Job:
        stage = next(trained.stage for trained in self.stages if trained.result.key == key)
        assert stage is not None, "ready weights have no job"
        return self.build.job(stage, self._chosen(stage), self.build.train_section(stage))[0]

    def _open_folder(self) -> None:
        if self.folder is None or not self.ranks.first:
            return
        self.folder.log.truncate(0)  # replayed stages log their rows again
        shutil.rmtree(self.folder.path("tensorboard"), ignore_errors=True)
        self.folder.write_json("provenance.json", self.provenance())
        for tracker in self._trackers:
            tracker.start(self.folder.path(""))

    def provenance(self) -> dict[str, Any]:
        """What a reader needs to repeat the run: versions, hardware, plugins, data, seed, commit."""
        return {
            "environment": self.build.environment,
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
                "preprocessing": None if self.data.preprocessing is None else self.data.preprocessing.record(),
            },
        }

    def drive(self, teachers: tuple[StageResult, ...]) -> StageResult:
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
                    raise ContractError(
                        f"algorithm '{self.plan.algorithm.cls.name}': stages() ended without a result"
                    ) from None
                return result
            if isinstance(wanted, Stage):
                answer = last = self.train(wanted)
            else:
                self._train_side_by_side(wanted)
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
            num_classes=len(self.data.classes),
            seed=self.recipe.seed,
            targets=self._targets(),
            outputs=self._outputs,
            costs=self.build.costs,
            latency=self.build.latency,
            folder=self._planning_folder(),
            train=self.build.train_section(Stage("student", plan.student)).model_dump(mode="json"),
        )

    def _targets(self) -> tuple[int, ...]:
        needed = self.plan.algorithm.cls.needs.data
        targets = self.data.part("train").targets.tolist()
        if self.data.labelled is not None:
            kept = set(self.data.labelled)
            targets = [target if row in kept else -1 for row, target in enumerate(targets)]
        return tuple(targets) if needed == "labelled" else (-1,) * len(targets) if needed == "unlabelled" else ()

    def _outputs(self, result: StageResult, samples: Sequence[int]) -> Outputs:
        if self.plan.algorithm.cls.needs.data == "none":
            raise ContractError(
                f"algorithm '{self.plan.algorithm.cls.name}': asked for outputs of training samples, but declared to "
                "read no data"
            )
        return self.build.outputs(result, samples)

    def _planning_folder(self) -> Path | None:
        """A folder of the run for what stages() has to remember over kills; the first process alone writes it."""
        if self.folder is None or not self.ranks.first:
            return None
        return self.folder.folder_of("planning")

    # --- one stage ----------------------------------------------------------------------------

    def _train_side_by_side(self, stages: Sequence[Stage]) -> None:
        """Train independent stages side by side where the recipe asks for it; their results are then in the store."""
        if self.recipe.jobs == 1:
            return
        keys = {self._key(stage): stage for stage in map(self._started, stages)}
        missing = {key: stage for key, stage in keys.items() if self.store.find("stage", key) is None}
        if len(missing) < 2:
            return
        names = [stage.name for stage in missing.values()]
        if len(set(names)) < len(names):
            raise ContractError(f"independent stages need different names, got {', '.join(names)}")
        self._check_stop(f"before stages {', '.join(names)}")
        if self._workers is None:
            place = (self.folder.root, Owner.me()) if self.folder is not None else None
            given = (self.recipe, self.plan.path, self.store.root, place, torch.get_num_threads())
            self._workers = Workers(self.recipe.jobs, begin_work, given)
        for name in names:
            self.display.stage(name, f"training, {min(self.recipe.jobs, len(names))} side by side")
        done = self._workers.run(list(missing.values()), self.stop)
        if done is None:
            raise self._interrupted(f"in stages {', '.join(names)}")
        if done != list(missing):
            raise ContractError(
                f"stages {', '.join(names)}: a worker process sees other code, versions or hardware than this one"
            )

    def _started(self, stage: Stage) -> Stage:
        """A stage with the result that it starts from, where its model says that this is the teacher's."""
        from_teacher = stage.model.weights == "teacher" and stage.start is None
        return replace(stage, start=self._first_teacher) if from_teacher else stage

    def _chosen(self, stage: Stage) -> ResolvedAlgorithm | None:
        """The algorithm of a stage, resolved; None for one that trains on the task alone."""
        return None if stage.algorithm is None else resolve_choice(stage.algorithm, self.zoo)

    def _key(self, stage: Stage) -> str:
        return self.build.stage_key(stage, self._chosen(stage), self.build.train_section(stage))

    def _teacher_name(self, index: int) -> str:
        return "teacher" if len(self.plan.teachers) == 1 else f"teacher_{index}"

    def _teacher_stage(self, index: int, spec: ModelSpec) -> Stage | None:
        """The stage that trains a teacher; None for one whose weights come ready."""
        if spec.weights != "train" and not spec.finetune:
            return None
        everything = None if self.data.labelled is None else tuple(range(self.data.num_train))
        # A teacher has all labels, whatever its student has.
        return Stage(self._teacher_name(index), spec, samples=everything)

    def _teacher(self, index: int, spec: ModelSpec) -> StageResult:
        name, stage = self._teacher_name(index), self._teacher_stage(index, spec)
        result = self.train(stage) if stage is not None else self._import(name, spec)
        least = self.recipe.min_teacher_top1_percent
        top1 = result.metrics.get("top1_percent")
        if least is not None and top1 is not None and top1 < least:
            raise ModelError(
                f"{name} '{spec.name}': {top1:.2f} % on the validation split, below min_teacher_top1_percent: "
                f"{least:g}; check its weights and its input normalisation (mean, std, size)"
            )
        return result

    def _import(self, name: str, spec: ModelSpec) -> StageResult:
        """A network whose weights come ready; stored like a trained one, so that later stages treat it alike."""
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
            "seed": self.recipe.seed,
        }
        key = stable_hash(identity)
        folder = self.store.find("stage", key)
        if folder is None:
            metrics = validate(network) if validate else {}
            folder = self._publish(
                key, name, {"student": network.model.state_dict()}, metrics, [], {"imported": spec.weights}
            )
        self.display.stage(name, "weights loaded")
        return self._finish(name, key, spec, (), folder)

    def _check_stop(self, where: str) -> None:
        """Stop here if a signal asks for it; all that is done so far is in the store."""
        if self.ranks.any(bool(self.stop())):
            raise self._interrupted(where)

    def _interrupted(self, where: str) -> Interrupted:
        # Another process may have been asked to stop, and not this one.
        return Interrupted(f"stopped {where}; {GO_ON}", 128 + (self.stop() or signal.SIGTERM))

    def _say(self, name: str, state: str) -> None:
        if self.ranks.world == 1:  # only the first process exports, so that no other would take part in a vote
            self._check_stop(f"before '{name}'")
        self.display.stage(name, state)

    def train(self, stage: Stage) -> StageResult:
        """Run one stage, or take its result from the store."""
        stage = self._started(stage)
        self._check_stop(f"before stage '{stage.name}'")
        chosen, train = self._chosen(stage), self.build.train_section(stage)
        key = self.build.stage_key(stage, chosen, train)
        folder = self.store.find("stage", key)
        if folder is not None:
            self.display.stage(stage.name, "taken from the store")
            self._drop_checkpoints(stage.name)  # of a run killed after its result was stored
            return self._finish(stage.name, key, stage.model, stage.peers, folder, stage)
        self.display.stage(stage.name, "training")
        job, pairing = self.build.job(stage, chosen, train)
        engine = Engine(job, lambda progress: self._on_progress(engine, progress))
        begin = time.monotonic()
        self._restore(engine, stage.name, key)
        if not self._run_engine(engine, stage.name, key):
            raise self._interrupted(f"in stage '{stage.name}' at step {engine.step}")
        for teacher in job.teachers:
            teacher.check_untouched(stage.name)
        metrics = self._metrics(engine)
        facts: dict[str, Any] = {
            "warnings": engine.log.warnings,
            "pairing": pairing.describe() if pairing else [],
            "best_epoch": engine.selection.epoch,
            "seconds": time.monotonic() - begin,
            "steps": engine.step,
            "precision": job.precision.name,
            "logged_of": engine.log.logged_of,
            "teacher_outputs": [asdict(t.hits) for t in job.teachers if isinstance(t, CachedTeacher)],
        }
        folder = None
        if self.ranks.first:
            folder = self._publish(key, stage.name, engine.result_weights(), metrics, engine.log.rows, facts)
            self._drop_checkpoints(stage.name)
        self.ranks.barrier()
        return self._finish(stage.name, key, stage.model, stage.peers, folder or self.store.find("stage", key), stage)

    def _drop_checkpoints(self, name: str) -> None:
        if self.folder is not None and self.ranks.first and self.folder.has_checkpoints(name):
            self.folder.drop_checkpoints(name)

    def _run_engine(self, engine: Engine, name: str, key: str) -> bool:
        checkpoints = self.folder.checkpoints(name) if self.folder is not None and self.ranks.first else None

        def save(engine: Engine) -> None:
            if checkpoints is not None:
                tensors, state = engine.state()
                checkpoints.save(tensors, {"key": key, "world": self.ranks.world, **state})

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
        self.stages.append(Trained(result, rows, stored["facts"], stage))
        self.warnings += [text for text in stored["facts"].get("warnings", []) if text not in self.warnings]
        if stored["facts"].get("pairing"):
            self.pairings[name] = stored["facts"]["pairing"]
        self._log(rows)
        self._logged = 0
        return result

    def _log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the rows of the stage in progress that are not in the log yet."""
        fresh_rows, self._logged = rows[self._logged :], len(rows)
        if self.folder is None or not self._logs:
            return
        for row in fresh_rows:
            self.folder.log.append(row)
            numbers = {k: float(v) for k, v in row.items() if k not in ("stage", "split", "step", "epoch")}
            if row["split"] == "validation":
                numbers = {f"validation/{k}": v for k, v in numbers.items()}
            for tracker in self._trackers:
                tracker.log(row["stage"], row["step"], numbers)

    def _on_progress(self, engine: Engine, progress: Progress) -> None:
        if progress.end_of_epoch:
            self._log(engine.log.rows)
        self.display.progress(progress)

    def _metrics(self, engine: Engine) -> dict[str, float]:
        """Validation metrics of the weights that the stage delivers."""
        rows = [row for row in engine.log.rows if row["split"] == "validation"]
        if engine.selection.weights:
            rows = [row for row in rows if row["epoch"] == engine.selection.epoch]
        if not rows:
            return {}
        return {k: v for k, v in rows[-1].items() if k not in ("stage", "epoch", "step", "split")}

    # --- without training ---------------------------------------------------------------------

    def rehearse(self, taught: Sequence[Network] | None = None) -> tuple[Job, Pairing | None]:
        """Build the student's stage with untrained networks, so that whatever it needs is refused before training."""
        plan = self.plan
        taught = [self.build.network(spec) for spec in plan.teachers] if taught is None else list(taught)
        chosen = plan.delegate or plan.algorithm
        known = {f"teacher {i}": network for i, network in enumerate(taught)}
        first = self._first_stage(chosen.cls, known)
        if first is not None:
            of_others = [known.get(teacher.key) or self.build.network(teacher.model) for teacher in first.teachers]
            return self.build.job(first, self._chosen(first), self.build.train_section(first), of_others)
        stage = Stage("student", plan.student, chosen.choice, peers=plan.peers)
        least, most = bounds(chosen.cls.needs.teachers)
        wanted = least if least == most else max(least, len(taught))
        teachers = (taught or [self.build.network(plan.student, "teacher")])[:wanted]
        return self.build.job(stage, chosen, self.build.train_section(stage), teachers)

    def _first_stage(self, cls: type[Algorithm], known: Collection[str]) -> Stage | None:
        """The first stage that ``cls`` trains, where it follows from the recipe alone; None where it does not.

        ``known`` are keys of teachers; neither they nor the stages before are trained. A stage that goes on with the
        weights of one before is rehearsed with fresh ones.
        """
        teachers = tuple(
            StageResult(key, key, spec, Untold(), Untold()) for key, spec in zip(known, self.plan.teachers, strict=True)
        )
        plan = replace(self.stage_plan(teachers), outputs=not_trained, folder=None)
        generator = self.plan.algorithm.cls.stages(plan)
        answer: Any = None
        before: set[str] = set()
        try:
            while True:
                wanted = generator.send(answer)
                stages = wanted if isinstance(wanted, list) else [wanted]
                for stage in stages:
                    start = stage.start
                    goes_on = start is not None and start.key in before and in_floats(start) == in_floats(stage)
                    if stage.algorithm is not None and stage.algorithm.name == cls.name:
                        return replace(stage, start=None) if start is None or goes_on else None
                keys = [f"stage {len(before) + i}" for i in range(len(stages))]
                before.update(keys)
                untold = [
                    StageResult(stage.name, key, stage.model, Untold(), Untold(), stage.peers)
                    for key, stage in zip(keys, stages, strict=True)
                ]
                answer = untold if isinstance(wanted, list) else untold[0]
        except (NotTrained, StopIteration):
            return None
        finally:
            generator.close()

    def check(self) -> list[str]:
        """Build everything, run one dry forward, and say what a run would do."""
        plan = self.plan
        sizes = ", ".join(f"{name} {count}" for name, count in self.data.split_sizes.items())
        lines = [f"data      {self.recipe.data.name}: {len(self.data.classes)} classes, {sizes}"]
        checked = self.data.check_form()
        if self.data.preprocessing is not None:
            lines.append(f"files     {self.data.preprocessing.sentence()}")
        taught = [self.build.network(spec) for spec in plan.teachers]
        named = [*((f"teacher {i}", n) for i, n in enumerate(taught)), ("student", self.build.network(plan.student))]
        for i, spec in enumerate(plan.assistants):
            named.append((f"assistant {i}", self.build.network(spec)))
        for i, spec in enumerate(plan.peers):
            named.append((f"peer {i}", self.build.network(spec)))
        for label, network in named:
            precision = self.build.precision(network)
            parameters = count_parameters(network.model)
            lines.append(
                f"{label:<9} {network.spec.name}: {parameters:,} parameters, {network.macs:,} MACs, "
                f"{network.inputs.describe()}, {precision.name}{', channels last' if precision.channels_last else ''}"
            )
        job, pairing = self.rehearse(taught)
        lines += [f"paired    {line}" for line in (pairing.describe() if pairing else [])]
        lines.append(f"form      {checked}")
        lines.append(f"steps     {job.train.epochs} epochs of {job.steps_per_epoch} steps, on {self.build.device}")
        terms = Engine(job).dry_step()
        lines.append("forward   " + ", ".join(f"{name} {value:.4g}" for name, value in terms.items()))
        return lines + [f"note      {note}" for note in self.data.notes]

    def export_again(self) -> list[dict[str, Any]]:
        """Export the delivered student of a finished run folder, verified on the whole test split."""
        assert self.folder is not None
        told = self.folder.read_json("student.json")
        network = self.build.network(delivered_spec(told), load=False)
        path = self.folder.path("student.safetensors")
        network.model.load_state_dict(read_tensors(path, told["sha256"]), strict=True)
        self.data.test_gate.open()
        network.to(self.build.device)
        logits, targets = predict(network, self.loader.eval_batches("test", self.recipe.data.eval_batch_size))
        exporting = Exporting(self.build, self.folder, self.display.stage)
        return [file.entry for file in exporting.of_student(Measured(STUDENT, network, logits), targets, None)]


def begin_work(
    recipe: Recipe, path: Path, store: Path, place: tuple[Path, Owner] | None, threads: int, stop: Callable[[], int]
) -> Callable[[Stage], str]:
    """In a worker: return what trains a stage into the store and gives its key.

    ``place`` is the run folder and the process that owns it.
    """
    torch.set_num_threads(threads)
    zoo = load_zoo()
    plan = resolve(LoadedRecipe(recipe, path, Positions()), zoo)
    folder = None if place is None else RunFolder.view(place[0], owner=place[1])
    runner = Runner(plan, zoo, folder, Store(store), Ranks(recipe.device), stop=stop, logs=False)
    return lambda stage: runner.train(stage).key
