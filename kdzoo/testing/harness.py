"""What the conformance checks work with: one algorithm on tiny real models and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.stage import Stage, StageResult
from kdzoo.contract.step import Batch, Clock, StepContext
from kdzoo.run.runner import Runner
from kdzoo.testing.card import rung
from kdzoo.testing.tiny import tiny_runner
from kdzoo.training.engine import Engine
from kdzoo.training.job import Job
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


class Harness:
    """One algorithm on tiny real models and data."""

    def __init__(self, cls: type[Algorithm], zoo: Zoo, root: Path) -> None:
        self.cls, self.zoo, self.root = cls, zoo, root

    def runner(self, **changes: Any) -> Runner:
        return tiny_runner(self.cls, self.zoo, self.root, changes)

    @property
    def trains(self) -> bool:
        """Whether the class itself has a step; one that only plans stages is checked through whole runs."""
        return rung(self.cls) != "stages"

    def job(self, runner: Runner) -> Job:
        """The job of the stage that the algorithm's own step is checked by."""
        if not self.trains:
            raise Vacuous("it only plans stages, each trained by an algorithm with checks of its own")
        teachers = tuple(runner.train(Stage(f"teacher_{i}", spec)) for i, spec in enumerate(runner.plan.teachers))
        stage = own_stage(self.cls, runner, teachers)
        chosen = runner.plan.algorithm
        job, _ = runner.build.job(stage, chosen, runner.build.train_section(stage))
        return job

    def engine(self, **changes: Any) -> Engine:
        return Engine(self.job(self.runner(**changes)))

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
