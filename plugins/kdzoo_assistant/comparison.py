"""What both algorithms of this family report: students without a teacher, with it, and over assistants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field

from kdzoo.api import (
    Algorithm,
    AlgorithmChoice,
    AlgorithmOptions,
    FinishedRun,
    NeedsError,
    Point,
    ReportItem,
    Scatter,
    Stage,
    StagePlan,
    StageResult,
    Stages,
    Table,
)

#: The stage in which the teacher itself teaches the student, and its name in the report.
BASELINE, BASELINE_LABEL = "baseline", "student of the teacher itself"


class AssistedOptions(AlgorithmOptions):
    """Options of every algorithm of this family."""

    compare_direct: bool = Field(
        True,
        description="Also train the student from the teacher without any assistant, under the same budget; costs one "
        "more training of the student.",
    )
    assistants: Literal["chain", "each"] = Field(
        "chain",
        description="How the recipe's assistants are used: all in one chain, or each by itself between teacher and "
        "student, to compare their sizes. Then the student that is best on the validation split is delivered.",
    )


class Assisted(Algorithm):
    """Base of this family: runs one chain, or one per assistant, and compares it with plain distillation."""

    Options = AssistedOptions

    @classmethod
    def guides(cls, teacher: StageResult, assistants: Sequence[StageResult]) -> tuple[StageResult, ...]:
        """The teachers of the network that follows these trained assistants."""
        raise TypeError(f"{cls.__name__} does not say who teaches after an assistant")

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        teacher, choice = plan.teachers[0], plan.delegate or plan.own
        direct = [Stage(BASELINE, plan.student, choice, (teacher,))] if plan.options.compare_direct else []
        if plan.options.assistants == "each":
            return (yield from cls._each(plan, teacher, choice, direct))
        before: tuple[StageResult, ...] = ()
        for i, assistant in enumerate(plan.assistants):
            stage = Stage(f"assistant_{i}", assistant, choice, cls.guides(teacher, before))
            before = (*before, (yield stage))
        student = Stage("student", plan.student, choice, cls.guides(teacher, before))
        if not direct:
            return (yield student)
        return (yield [student, *direct])[0]

    @classmethod
    def _each(cls, plan: StagePlan, teacher: StageResult, choice: AlgorithmChoice, direct: list[Stage]) -> Stages:
        if "top1_percent" not in teacher.metrics:
            raise NeedsError(
                f"algorithm '{cls.name}': assistants: each chooses the student that is best on the validation split, "
                "and data.validation leaves none"
            )
        assistants = yield [
            Stage(f"assistant_{i}", spec, choice, cls.guides(teacher, ())) for i, spec in enumerate(plan.assistants)
        ]
        students = [
            Stage(f"student_{i}", plan.student, choice, cls.guides(teacher, (assistant,)))
            for i, assistant in enumerate(assistants)
        ]
        results = yield [*students, *direct]
        return max(results[: len(students)], key=lambda result: result.metrics.get("top1_percent", 0.0))

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterator[ReportItem]:
        found = {result.name: result for result in run.stages}
        assistants = [result for name, result in found.items() if name.startswith("assistant_")]
        sizes = {result.name: _parameters(run, result) for result in assistants}
        students = _students(found, assistants)
        direct: float | None = None  # accuracy of the student with the teacher itself
        rows: list[tuple[str | float | None, ...]] = []
        if run.control is not None:
            rows.append(("none (NOKD)", None, run.entries["control"]["top1_percent"], _validation(run.control)))
        if BASELINE in found:
            (entry,) = run.measure({BASELINE_LABEL: run.network(found[BASELINE])})
            direct = entry["top1_percent"]
            rows.append(("the teacher (BLKD)", None, direct, _validation(found[BASELINE])))
        points = []
        for over, result in students:
            top1 = _top1(run, over, result)
            named = ", ".join(f"{helper.model.name} ({sizes[helper.name]:,})" for helper in over)
            rows.append((f"the teacher over {named} ({cls.name.upper()})", len(over), top1, _validation(result)))
            points.append(Point(sizes[over[-1].name] / 1e3, top1, over[-1].model.name, "over an assistant"))
        yield Table(
            f"{run.student.model.name} without a teacher, from the teacher, and over assistants",
            ("taught by", "assistants", "test accuracy, %", "validation, %"),
            tuple(rows),
            "Under one budget. In brackets: parameters. NOKD is without distillation, BLKD from the teacher alone.",
        )
        yield Table(
            "The assistants themselves",
            ("assistant", "parameters", "validation, %"),
            tuple((result.model.name, sizes[result.name], _validation(result)) for result in assistants),
        )
        if len(students) > 1:
            if direct is not None:
                size = _parameters(run, run.teachers[0]) / 1e3
                points.append(Point(size, direct, run.teachers[0].model.name, "the teacher itself"))
            yield Scatter(
                "The size of the assistant",
                "parameters of who teaches the student, thousands",
                "test accuracy of the student, %",
                tuple(sorted(points, key=lambda point: point.x)),
                front="over an assistant",
            )


def _students(
    found: Mapping[str, StageResult], assistants: list[StageResult]
) -> list[tuple[list[StageResult], StageResult]]:
    """Each student of the run, with the assistants between it and the teacher."""
    if "student" in found:
        return [(assistants, found["student"])]
    return [([assistant], found[f"student_{i}"]) for i, assistant in enumerate(assistants)]


def _top1(run: FinishedRun, over: list[StageResult], result: StageResult) -> float:
    """A student's accuracy on the test split; that of the delivered one is measured already."""
    if result.key == run.student.key:
        return run.entries["student"]["top1_percent"]
    (entry,) = run.measure({f"{result.name}, over {over[-1].model.name}": run.network(result)})
    return entry["top1_percent"]


def _parameters(run: FinishedRun, result: StageResult) -> int:
    return sum(parameter.numel() for parameter in run.network(result).parameters())


def _validation(result: StageResult) -> float | None:
    return result.metrics.get("top1_percent")
