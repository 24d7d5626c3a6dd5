"""A sequence of tasks: splitting classes into tasks, a stage for each task, and their report items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdzoo.api import (
    Algorithm,
    AlgorithmChoice,
    AlgorithmOptions,
    FinishedRun,
    HeatMap,
    Needs,
    NeedsError,
    ReportItem,
    Shapes,
    Stage,
    StagePlan,
    StageResult,
    Stages,
    Table,
)
from kdzoo_lifelong.transfer import (
    Accuracies,
    average_accuracy,
    average_forgetting,
    backward_transfer,
    mean,
    task_accuracies,
)

Tasks = tuple[tuple[int, ...], ...]

FINE_TUNING = "fine-tuning"
JOINT = "joint training"


def split_classes(num_classes: int, tasks: int, seed: int | None) -> Tasks:
    """Split the classes into tasks of nearly equal size: sizes differ by at most one, larger ones first.

    The order of the classes is drawn from ``seed``; if that is None, it is the data set's.
    """
    generator = torch.Generator().manual_seed(seed or 0)
    order = list(range(num_classes)) if seed is None else torch.randperm(num_classes, generator=generator).tolist()
    bounds = [number * (num_classes // tasks) + min(number, num_classes % tasks) for number in range(tasks + 1)]
    return tuple(tuple(order[first:last]) for first, last in pairwise(bounds))


def tasks_of(plan: StagePlan) -> Tasks:
    """The tasks of a run."""
    options = plan.options
    return split_classes(plan.num_classes, options.tasks, plan.seed if options.order == "seeded" else None)


class LifelongOptions(AlgorithmOptions):
    """Options of every algorithm of this family."""

    tasks: int = Field(5, ge=2, le=1000, description="Number of tasks that the classes are split into.")
    order: Literal["seeded", "given"] = Field(
        "seeded",
        description="Order in which the classes come: drawn from the recipe's seed, or as the data set lists them.",
    )
    lower_bound: bool = Field(
        True, description="Also learn the tasks by plain fine-tuning, to compare with; costs as much again."
    )


class Lifelong(Algorithm):
    """Base of this family: learns one task after another, and reports the accuracy on all of them.

    Each task is a stage. It starts from the network of the task before, which is also its teacher. One head has an
    output for every class of the data; a stage sees the classes of its tasks so far and touches no other output.
    """

    Options = LifelongOptions
    needs = Needs(teachers=0)
    upper_bound = "on all tasks at once"
    tiny_recipe: ClassVar = {"algorithm": {"options": {"tasks": 2}}}
    #: Ways to answer that are measured like models, after the last task.
    variants: ClassVar[tuple[str, ...]] = ()
    old: Tensor  # outputs of the classes of earlier tasks, (K_old,)
    new: Tensor  # those of this task, (K_new,)

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        if self.options.tasks > shapes.num_classes:
            raise NeedsError(
                f"algorithm '{self.name}': options.tasks: {self.options.tasks} tasks need as many classes, the data "
                f"set has {shapes.num_classes}"
            )
        new = [k for k in shapes.classes or range(shapes.num_classes) if k not in shapes.earlier]
        self.register_buffer("old", torch.tensor(shapes.earlier, dtype=torch.long), persistent=False)
        self.register_buffer("new", torch.tensor(new, dtype=torch.long), persistent=False)

    # --- stages -------------------------------------------------------------------------------

    @classmethod
    def opening(cls, plan: StagePlan) -> AlgorithmChoice | None:
        """The algorithm of the first task, which has no earlier task to keep; None trains on the labels alone."""
        return None

    @classmethod
    def kept(cls, plan: StagePlan, tasks: Tasks, results: Sequence[StageResult]) -> tuple[int, ...]:
        """Rows of the training split that the next task, after ``results``, trains on again."""
        return ()

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        tasks, opening = tasks_of(plan), cls.opening(plan)
        results: list[StageResult] = []
        bound: StageResult | None = None
        for number, task in enumerate(tasks):
            rows = tuple(row for row, target in enumerate(plan.targets) if target in task)
            if not rows:
                raise NeedsError(
                    f"algorithm '{cls.name}': no training sample of task {number + 1}, the classes {list(task)}"
                )
            seen, earlier = (tuple(k for part in tasks[:end] for k in part) for end in (number + 1, number))
            before = tuple(results[-1:])
            wanted = [
                Stage(
                    name=f"task_{number + 1}",
                    model=plan.student,
                    algorithm=plan.own if before else opening,
                    teachers=before,
                    start=before[0] if before else None,
                    samples=tuple(sorted({*rows, *cls.kept(plan, tasks, results)})),
                    classes=seen,
                    earlier=earlier,
                )
            ]
            if plan.options.lower_bound and (before or opening is not None):
                name = f"fine_tuning_{number + 1}"
                wanted.append(Stage(name, plan.student, start=bound, samples=rows, classes=seen, earlier=earlier))
            done = yield wanted
            results.append(done[0])
            bound = done[-1]  # the first stage, trained on labels alone, belongs to both sequences
        return results[-1]

    # --- report_items -----------------------------------------------------------------------------

    @classmethod
    def ways(cls, run: FinishedRun, tasks: Tasks) -> Mapping[str, Sequence[nn.Module]]:
        """The compared ways to answer, each with its module after every task."""
        return {cls.name: [run.network(result) for result in stages_named(run, "task", tasks)]}

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterator[ReportItem]:
        tasks = tasks_of(run.plan)
        ways = dict(cls.ways(run, tasks))
        if cls.variants:
            run.measure({way: ways[way][-1] for way in cls.variants})
        if run.options.lower_bound:
            bound = stages_named(run, "fine_tuning", tasks)
            ways[FINE_TUNING] = [run.network(result) for result in bound]
        found = {way: accuracies(run, modules, tasks) for way, modules in ways.items()}
        listed = "; ".join(
            f"{number}: {', '.join(run.classes[k] for k in task)}" for number, task in enumerate(tasks, 1)
        )
        for way, numbers in found.items():
            yield HeatMap(
                f"Accuracy: {way}",
                tuple(f"after task {number}" for number in range(1, len(tasks) + 1)),
                tuple(f"task {number}" for number in range(1, len(tasks) + 1)),
                tuple(tuple(row) for row in numbers),
                unit="%",
                note=f"{ACCURACY_NOTE} Tasks: {listed}.",
            )
        joint = {} if run.control is None else {JOINT: joint_accuracies(run, run.network(run.control), tasks)}
        yield by_task("Average accuracy after each task", average_accuracy, found | joint, AVERAGE_NOTE, True)
        yield by_task("Average forgetting after each task", average_forgetting, found, FORGETTING_NOTE)
        yield by_task("Backward transfer after each task", backward_transfer, found, TRANSFER_NOTE)


ACCURACY_NOTE = (
    "Test accuracy on the samples of a task, where the answer is one of all classes seen so far and nothing tells "
    "which task a sample is of."
)
AVERAGE_NOTE = (
    "Percent, the mean over the tasks learnt so far. Fine-tuning learns the same tasks without anything against "
    "forgetting, a lower bound. Joint training is the control, the same network trained on all tasks at once, an upper "
    "bound; it answers among the classes seen so far, as the others do. Each task is trained for the recipe's epochs "
    "on its own samples, the control for as many epochs on all of them: the passes over the data are the same, but for "
    "the last, incomplete batch of each epoch, which no stage trains on."
)
FORGETTING_NOTE = (
    "Points, the mean over earlier tasks of the best accuracy that any earlier stage had on them, minus the accuracy "
    "now; smaller is better (Chaudhry et al. 2018)."
)
TRANSFER_NOTE = (
    "Points, the mean over earlier tasks of the accuracy now, minus the accuracy just after the task was learnt; "
    "negative is forgetting (Lopez-Paz and Ranzato 2017)."
)


def stages_named(run: FinishedRun, stem: str, tasks: Tasks) -> list[StageResult]:
    """The stages of one sequence in order; the first of fine-tuning may be the first of the algorithm itself."""
    known = {result.name: result for result in run.stages}
    return [known.get(f"{stem}_{number}") or known[f"task_{number}"] for number in range(1, len(tasks) + 1)]


def accuracies(run: FinishedRun, modules: Sequence[nn.Module], tasks: Tasks) -> Accuracies:
    return [task_accuracies(*run.predict(module), tasks, after) for after, module in enumerate(modules)]


def joint_accuracies(run: FinishedRun, control: nn.Module, tasks: Tasks) -> Accuracies:
    logits, targets = run.predict(control)
    return [task_accuracies(logits, targets, tasks, after) for after in range(len(tasks))]


def by_task(
    title: str,
    number_of: Callable[[Accuracies, int], float | None],
    found: Mapping[str, Accuracies],
    note: str,
    averaged: bool = False,
) -> Table:
    """One number after each task, one column per way; ``averaged`` adds their mean over the tasks."""
    columns = {way: [number_of(numbers, after) for after in range(len(numbers))] for way, numbers in found.items()}
    rows: list[tuple[str | float | None, ...]] = [
        (str(number), *numbers) for number, numbers in enumerate(zip(*columns.values(), strict=True), 1)
    ]
    if averaged:
        rows.append(("mean", *(mean(column) for column in columns.values())))
    return Table(title, ("after task", *columns), tuple(rows), note)
