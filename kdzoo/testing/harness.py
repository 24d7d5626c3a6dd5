"""What the conformance checks work with: one algorithm on tiny real models and data.

The checks of an algorithm need the same few jobs again and again. Each is built once, and every engine gets a copy of
its networks; the algorithm itself is constructed anew each time.
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.stage import Stage, StageResult
from kdzoo.contract.step import Batch, Clock, StepContext
from kdzoo.models.network import empty_tables
from kdzoo.plan.resolve import ResolvedAlgorithm
from kdzoo.run.runner import Runner
from kdzoo.testing.card import rung
from kdzoo.testing.tiny import tiny_folder, tiny_runner
from kdzoo.training.engine import Engine
from kdzoo.training.job import Job
from kdzoo.types import stable_hash
from kdzoo.zoo.cards import plans_stages
from kdzoo.zoo.offered import Zoo

TASK = "task"


class CheckFailed(AssertionError):
    """A sentence of the contract that does not hold, with what was seen."""


@dataclass(frozen=True)
class Outcome:
    """One check of one algorithm: passed, failed, skipped (by the algorithm) or vacuous (nothing to check)."""

    name: str
    status: str
    text: str = ""


class Vacuous(Exception):
    """Raised by a check that says nothing about this kind of algorithm, with the reason."""


def ensure(condition: bool, text: str) -> None:
    if not condition:
        raise CheckFailed(text)


def assert_finite(loss: Mapping[str, Tensor]) -> None:
    for name, term in loss.items():
        ensure(term.dim() == 0, f"term '{name}' has shape {tuple(term.shape)}, not ()")
        ensure(term.dtype == torch.float32, f"term '{name}' is {term.dtype}, not float32")
        ensure(bool(torch.isfinite(term)), f"term '{name}' is {term.item()}")


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor], what: str) -> None:
    for key, value in first.items():
        ensure(torch.equal(value, second[key]), f"{what} differ in '{key}'")


@dataclass(frozen=True)
class Prepared:
    """The job of the stage that an algorithm's own step is checked by; nobody trains it, only copies of it."""

    runner: Runner
    stage: Stage
    chosen: ResolvedAlgorithm
    job: Job

    def copied(self) -> Job:
        """The job with networks of its own and the algorithm constructed anew; data and functions are shared."""
        job = self.job
        algorithm = self.runner.build.algorithm(type(job.algorithm), self.chosen, job.algorithm.shapes, self.stage.salt)
        memo: dict[int, Any] = {id(job.algorithm): algorithm}
        for part in (self.runner.store, self.runner.loader, job.loader, job.train, job.ranks):
            memo[id(part)] = part
        taught = [teacher.network for teacher in job.teachers if teacher.network is not None]
        memo |= empty_tables(job.student, *job.peers, *taught)
        return copy.deepcopy(job, memo)


@dataclass(frozen=True)
class WholeRun:
    """A run of a tiny recipe from its start to what it leaves."""

    runner: Runner
    results: dict[str, Any]
    folder: Path


class Harness:
    """One algorithm on tiny real models and data; ``root`` keeps trained teachers and the run."""

    def __init__(self, cls: type[Algorithm], zoo: Zoo, root: Path) -> None:
        self.cls, self.zoo, self.root = cls, zoo, root
        self._prepared: dict[str, Prepared] = {}

    def runner(self, **changes: Any) -> Runner:
        return tiny_runner(self.cls, self.zoo, self.root, changes)

    @property
    def trains(self) -> bool:
        """Whether the class itself has a step; one that only plans stages is checked through whole runs."""
        return rung(self.cls) != "stages"

    def prepare(self, **changes: Any) -> Prepared:
        """Build the job of the algorithm's own stage; Vacuous where it has none, NeedsError where it is refused."""
        if not self.trains:
            raise Vacuous("it only plans stages, each trained by an algorithm with checks of its own")
        runner = self.runner(**changes)
        teachers = tuple(runner.train(Stage(f"teacher_{i}", spec)) for i, spec in enumerate(runner.plan.teachers))
        stage, chosen = own_stage(self.cls, runner, teachers), runner.plan.algorithm
        job, _ = runner.build.job(stage, chosen, runner.build.train_section(stage))
        return Prepared(runner, stage, chosen, job)

    def engine(self, **changes: Any) -> Engine:
        key = stable_hash(changes)
        if key not in self._prepared:
            self._prepared[key] = self.prepare(**changes)
        return Engine(self._prepared[key].copied())

    @cached_property
    def whole_run(self) -> WholeRun:
        """One run with exactly the declared models, made when it is first asked for."""
        with tiny_folder(Path(tempfile.mkdtemp(dir=self.root))) as folder:
            runner = tiny_runner(self.cls, self.zoo, self.root, {}, folder=folder)
            return WholeRun(runner, runner.run(), folder.root)

    def context(self, engine: Engine, size: int | None = None, clock: Clock | None = None) -> StepContext:
        """The context of the first step, or of what ``clock`` says, of ``size`` samples or a whole batch."""
        job = engine.job
        batch = None
        if job.loader is not None:
            batch = next(iter(job.loader.train_batches(0, 0)))
            if size is not None:
                batch = cut(batch, size)
        return engine.context(batch, clock or Clock(0, job.train.epochs, 0, job.steps_per_epoch))

    @cached_property
    def terms(self) -> tuple[str, ...]:
        return tuple(name for name in self.cls.default_weights if name != TASK)


#: That of the last algorithm, as the checks of one follow each other.
_latest: list[Harness] = []


def harness_of(cls: type[Algorithm], zoo: Zoo, root: Path | None) -> Harness:
    """The harness of an algorithm, kept until another one is asked for. ``root`` None: a folder that goes with it."""
    for kept in _latest:
        if kept.cls is cls and kept.zoo is zoo and root in (None, kept.root):
            return kept
    harness = Harness(cls, zoo, root or Path(tempfile.mkdtemp(prefix="kdzoo-checks-")))
    if root is None:
        weakref.finalize(harness, shutil.rmtree, harness.root, ignore_errors=True)
    _latest[:] = [harness]
    return harness


def cut(batch: Batch, size: int) -> Batch:
    return replace(batch, inputs=batch.inputs[:size], targets=batch.targets[:size], index=batch.index[:size])


def own_stage(cls: type[Algorithm], runner: Runner, teachers: tuple[StageResult, ...]) -> Stage:
    """The first stage of a plan that runs the algorithm itself and has a teacher or peer, else the first that runs it.

    Earlier ones are really trained.
    """
    generator = cls.stages(runner.stage_plan(teachers))
    wanted = next(generator)
    own: Stage | None = None
    while True:
        for stage in wanted if isinstance(wanted, list) else [wanted]:
            if stage.algorithm is not None and stage.algorithm.name == cls.name:
                if stage.teachers or stage.peers:
                    return stage
                own = own or stage
        if own is not None and not plans_stages(cls):
            return own  # its only stage
        done = [runner.train(stage) for stage in wanted] if isinstance(wanted, list) else runner.train(wanted)
        try:
            wanted = generator.send(done)
        except StopIteration:
            if own is not None:
                return own
            raise CheckFailed("stages() never runs the algorithm's own step") from None


def run_steps(engine: Engine, count: int) -> dict[str, Tensor]:
    """Run optimizer steps and return the student's weights."""
    limit = engine.step + count
    engine.run(lambda engine: None, lambda: engine.step >= limit)
    return {key: value.clone() for key, value in engine.job.student.model.state_dict().items()}


def updates_of(engine: Engine, ctx: StepContext) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The updates of one step, without taking any optimizer step."""
    engine.job.algorithm.train(True)
    for update in engine.job.algorithm.step(ctx):
        yield update.network, update.loss


def calls_of(action: Callable[[], Any]) -> set[CodeType]:
    """The code of every function of Python that an action calls."""
    called: set[CodeType] = set()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: called.add(frame.f_code) if event == "call" else None)
    try:
        action()
    finally:
        sys.setprofile(before)
    return called


def reached_by_distillation(engine: Engine, ctx: StepContext) -> bool:
    """Whether the weighted terms of a step, the task's left out, give any weight of the student a gradient."""
    parameters = [p for p in engine.job.student.model.parameters() if p.requires_grad]
    for network, loss in updates_of(engine, ctx):
        terms = [
            engine.job.loss_weights[name] * term for name, term in loss.items() if name != TASK and term.requires_grad
        ]
        if network == "student" and terms:
            gradients = torch.autograd.grad(torch.stack(terms).sum(), parameters, retain_graph=True, allow_unused=True)
            if any(gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients):
                return True
    return False
