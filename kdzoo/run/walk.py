"""The way through a run's stages: which come when, whoever trains them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kdzoo.contract.stage import ModelSpec, Stage, StagePlan, StageResult
from kdzoo.errors import ContractError, ModelError
from kdzoo.report.verdict import CAUSES
from kdzoo.run.stage_plan import Planning
from kdzoo.run.stage_runner import StageRunner
from kdzoo.storage.run_folder import RunFolder

T = TypeVar("T")

#: What a walk asks for: a list of stages that come next and do not depend on each other, to which there is no answer;
#: then each stage by itself, and the answer is its result.
Way = Generator[Stage | list[Stage], Any, T]


@dataclass(frozen=True)
class Walked:
    """The results at the end of the way; ``stages`` are those that the algorithm asked for."""

    teachers: tuple[StageResult, ...]
    control: StageResult | None
    student: StageResult
    stages: tuple[StageResult, ...]


class Walk:
    """Asks for the stages of one run in their order. What comes next may depend on the results so far."""

    def __init__(self, stages: StageRunner, folder: RunFolder | None, warn: Callable[[str], None]) -> None:
        self.stages, self.build, self.warn = stages, stages.build, warn
        self.plan, self.recipe = stages.build.plan, stages.build.recipe
        self._folder = folder

    def whole(self) -> Way[Walked]:
        """All stages of the run. A control that does not start from the teacher is trained along with it."""
        control = Stage("control", self.plan.student) if self.recipe.control else None
        apart = control is not None and self.plan.student.weights != "teacher"
        teachers = yield from self.teachers([control] if control is not None and apart else [])
        self.stages.first_teacher = teachers[0] if teachers else None
        alone = (yield control) if control is not None else None
        self.compare_with_control(teachers, alone)
        before = len(self.stages.trained)
        student = yield from self.student(teachers)
        asked = tuple(trained.result for trained in self.stages.trained[before:])
        return Walked(teachers, alone, student, asked)

    def student(self, teachers: tuple[StageResult, ...]) -> Way[StageResult]:
        """The stages that the algorithm asks for; the last is the student's, unless it says otherwise."""
        name = self.plan.algorithm.cls.name
        generator = self.plan.algorithm.cls.stages(self.stage_plan(teachers))
        answer: StageResult | list[StageResult] | None = None
        last: StageResult | None = None
        while True:
            try:
                wanted = generator.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                result = end.value or last
                if not isinstance(result, StageResult):
                    raise ContractError(f"algorithm '{name}': stages() ended without a result") from None
                return result
            if isinstance(wanted, Stage):
                answer = last = yield wanted
                continue
            yield list(wanted)
            results: list[StageResult] = []
            for stage in wanted:
                results.append((yield stage))
            answer, last = results, results[-1] if results else last

    def stage_plan(self, teachers: tuple[StageResult, ...]) -> StagePlan:
        """What the algorithm's ``stages`` may read and ask."""
        return Planning(self.build, self._folder).stage_plan(teachers)

    # --- teachers -----------------------------------------------------------------------------

    def teachers(self, along: Sequence[Stage] = ()) -> Way[tuple[StageResult, ...]]:
        """The teachers' stages; those with ready weights have none. ``along`` may be trained at the same time."""
        own = [self._teacher_stage(i, spec) for i, spec in enumerate(self.plan.teachers)]
        yield [*(stage for stage in own if stage is not None), *along]
        results: list[StageResult] = []
        for i, spec in enumerate(self.plan.teachers):
            results.append((yield from self._teacher(i, spec)))
        return tuple(results)

    def _teacher_name(self, index: int) -> str:
        return "teacher" if len(self.plan.teachers) == 1 else f"teacher_{index}"

    def _teacher_stage(self, index: int, spec: ModelSpec) -> Stage | None:
        """The stage that trains a teacher; None for one whose weights come ready."""
        if spec.weights != "train" and not spec.finetune:
            return None
        return Stage(self._teacher_name(index), spec, teaches=True)

    def _teacher(self, index: int, spec: ModelSpec) -> Way[StageResult]:
        name, stage = self._teacher_name(index), self._teacher_stage(index, spec)
        result: StageResult = (yield stage) if stage is not None else self.stages.take_ready(name, spec)
        if stage is None and (problem := self.stages.falls_short(result)):
            self.warn(f"{problem}. {CAUSES}")
        least = self.recipe.min_teacher_top1_percent
        top1 = result.metrics.get("top1_percent")
        if least is not None and top1 is not None and top1 < least:
            raise ModelError(
                f"{name} '{spec.name}': {top1:.2f} % on the validation split, below min_teacher_top1_percent: "
                f"{least:g}; check its weights and its input normalisation (mean, std, size)"
            )
        return result

    def compare_with_control(self, teachers: Sequence[StageResult], control: StageResult | None) -> None:
        """Warn of each teacher that is worse on the validation split than the student trained alone."""
        reached = None if control is None else control.metrics.get("top1_percent")
        if reached is None or self.plan.algorithm.cls.upper_bound:
            return
        for teacher in teachers:
            top1 = teacher.metrics.get("top1_percent")
            if top1 is not None and top1 < reached:
                self.warn(
                    f"{teacher.name} '{teacher.model.name}': {top1:.2f} % on the validation split, below the control's "
                    f"{reached:.2f} %; it knows less than the student learns alone, so check its weights and its input "
                    "normalisation (mean, std, size)"
                )
