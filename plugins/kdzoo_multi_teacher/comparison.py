"""What all algorithms of this family report: the teachers' weights, and the best teacher alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field
from torch import Tensor

from kdzoo.api import (
    Algorithm,
    AlgorithmChoice,
    AlgorithmOptions,
    FinishedRun,
    ReportItem,
    Stage,
    StagePlan,
    StageResult,
    Stages,
    StepContext,
    Table,
)

#: The stage with the best teacher alone, and its name in the report.
SINGLE, SINGLE_LABEL = "best_single", "best single teacher"


class SeveralTeachersOptions(AlgorithmOptions):
    """Options of every algorithm of this family."""

    compare_best_single: bool = Field(
        True,
        description="Also train the student by kd from that teacher alone that is best on the validation split, under "
        "the same budget; costs one more training of the student.",
    )


class SeveralTeachers(Algorithm):
    """Base of this family: notes each teacher's weight, and compares the student with the best teacher's alone."""

    Options = SeveralTeachersOptions

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        student = Stage("student", plan.student, plan.own, plan.teachers, plan.peers)
        best = best_teacher(plan.teachers)
        if not plan.options.compare_best_single or best is None:
            return (yield student)
        kd = AlgorithmChoice("kd", {"temperature": plan.options.temperature})
        several, _ = yield [student, Stage(SINGLE, plan.student, kd, (best,))]
        return several

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterator[ReportItem]:
        yield from shown_weights(run)
        yield comparison(run, cls.name)


def best_teacher(teachers: Sequence[StageResult]) -> StageResult | None:
    """The best teacher on the validation split, the first of equals; None without such a split."""
    if not all("top1_percent" in teacher.metrics for teacher in teachers):
        return None
    return max(teachers, key=lambda teacher: teacher.metrics["top1_percent"])


def note_weights(ctx: StepContext, weights: Sequence[float] | Tensor, of: str = "weight") -> None:
    """Note the weight of each teacher in a step, as ``<of>_teacher_<i>``; ``weights`` (M,) sum to 1."""
    for index, weight in enumerate(weights):
        ctx.note(f"{of}_teacher_{index}", weight)


def shown_weights(run: FinishedRun) -> Iterator[Table]:
    """A table of the noted weights, in the first and in the last epoch; none if nothing was noted."""
    rows = [row for row in run.log(run.student) if row["split"] == "train"]
    kinds = [name.removesuffix("_teacher_0") for name in rows[-1] if name.endswith("_teacher_0")] if rows else []
    if not kinds:
        return
    columns = [f"{kind.replace('_', ' ')}, {when} epoch" for kind in kinds for when in ("first", "last")]
    yield Table(
        "Weights of the teachers",
        ("teacher", "model", *columns),
        tuple(
            (
                f"teacher {i}",
                teacher.model.name,
                *(round(row[f"{kind}_teacher_{i}"], 4) for kind in kinds for row in (rows[0], rows[-1])),
            )
            for i, teacher in enumerate(run.teachers)
        ),
        "Means over an epoch; those of all teachers sum to 1.",
    )


def comparison(run: FinishedRun, name: str) -> Table:
    """The student of all teachers, that of the best one, the control, and the teachers themselves."""
    rows: list[tuple[str | float | None, ...]] = []
    measured = dict(run.entries)

    def add(what: str, taught_by: str | None, label: str, result: StageResult | None) -> None:
        if result is not None and label in measured:
            validation = result.metrics.get("top1_percent")
            rows.append((what, taught_by, measured[label]["top1_percent"], validation))

    single = next((result for result in run.stages if result.name == SINGLE), None)
    best = best_teacher(run.teachers)
    if single is not None:
        (measured[SINGLE],) = run.measure({SINGLE_LABEL: run.network(single)})
    add("control", None, "control", run.control)
    if best is not None:
        add("student", f"the best single teacher, {_called(run, best)}, by kd", SINGLE, single)
    add("student", f"all teachers, by {name}", "student", run.student)
    for i, teacher in enumerate(run.teachers):
        add(f"teacher {i} ({teacher.model.name})", None, f"teacher {i}", teacher)
    if best is None:
        note = "Without a validation split there is no best teacher to compare with."
    elif single is None:
        note = "The comparison with the best single teacher is off: compare_best_single."
    else:
        note = "The best teacher is the one that is best on the validation split."
    return Table(
        "All teachers, or the best one",
        ("network", "taught by", "test accuracy, %", "validation, %"),
        tuple(rows),
        note,
    )


def _called(run: FinishedRun, teacher: StageResult) -> str:
    index = [other.key for other in run.teachers].index(teacher.key)
    return f"teacher {index} ({teacher.model.name})"
