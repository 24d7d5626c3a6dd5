"""Snapshot distillation: the last epochs of one cycle teach the next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    FinishedRun,
    Needs,
    NeedsError,
    Paper,
    ReportItem,
    Stage,
    StagePlan,
    StageResult,
    Stages,
    StepContext,
    Table,
    Temperature,
    soft_target_loss,
    top1_percent,
)


class Snapshot(Algorithm):
    """Makes a network match its own snapshot from the end of the previous learning-rate cycle.

    The recipe's epochs are divided into ``cycles`` mini-generations. Each starts from the last weights of the one
    before and lowers the learning rate once from its peak to its end, so the network first moves away. The first learns
    from the labels alone; after that, the snapshot at the end of the previous cycle is the teacher: L = (1 + 1/T) L_CE
    + KL(p_teacher^T || p_student), where only the teacher's answers are softened. All cycles together take the epochs
    of one ordinary training, plus the teacher's forward passes.

    Reads: logits of student and snapshot, each (N, K), and the labels.
    Loss terms: ``snapshot``: nats, at least 0; mean over the batch. Equal networks score 0 at ``temperature`` 1 only.
    Trains: nothing of its own.   State: none; each mini-generation is a stage.
    Stages: one per mini-generation, which starts from the one before and has it as its teacher.
    Raises: NeedsError if there are more cycles than epochs.
    Source: Yang, Xie, Su, Yuille, "Snapshot Distillation: Teacher-Student Optimization in One Generation", CVPR 2019,
        https://arxiv.org/abs/1812.00123.
    Differs from the paper: 1. the optimizer's momentum starts at zero in each cycle. 2. a recipe's warm-up is part of
        the first cycle only. 3. each cycle sees the samples in the order and augmentation of the first one's epochs. 4.
        the weight of the labels does not follow the temperature T by itself: set it to 1 + 1/T with another T.
    Defaults from: a public implementation (the labels' weight, 1 + 1/T); our own choice of 4 cycles and temperature 2:
        we did not have the paper's text.
    """

    name = "snapshot"
    paper = Paper(
        title="Snapshot Distillation: Teacher-Student Optimization in One Generation",
        authors="Yang, Xie, Su, Yuille",
        year=2019,
        url="https://arxiv.org/abs/1812.00123",
    )
    needs = Needs(teachers=0)
    loss_functions = (soft_target_loss,)
    default_weights: ClassVar = {"task": 1.5, "snapshot": 1.0}
    also_known_as = ("snapshot_distillation",)
    tiny_recipe: ClassVar = {"train": {"epochs": 4}}  # a cycle takes at least one epoch

    class Options(AlgorithmOptions):
        cycles: int = Field(4, ge=2, le=1000, description="Mini-generations that the recipe's epochs are divided into.")
        temperature: Temperature = Field(
            2.0, description="Softens the teacher's answers but not the student's; dimensionless."
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        # Only the teacher is softened, so this is not the temperature of the loss.
        return {"snapshot": soft_target_loss(ctx.student.logits, ctx.teacher.logits / self.options.temperature)}

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        cycles, epochs = plan.options.cycles, plan.train["epochs"]
        if cycles > epochs:
            raise NeedsError(f"algorithm 'snapshot': {cycles} cycles do not fit into train.epochs: {epochs}")
        before: StageResult | None = None
        for cycle in range(cycles):
            # Left-over epochs go to the later cycles, which produce the student.
            length = epochs * (cycle + 1) // cycles - epochs * cycle // cycles
            train = {"epochs": length, "schedule": _one_cycle(plan.train["schedule"], first=before is None)}
            name = "student" if cycle == cycles - 1 else f"cycle_{cycle + 1}"
            if before is None:
                stage = Stage(name, plan.student, train=train)
            else:
                stage = Stage(name, plan.student, plan.own, (before,), start=before, train=train)
            before = yield stage
        assert before is not None, "there are two cycles at least"
        return before

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        networks = [run.network(result) for result in run.stages]
        rows = []
        for result, network in zip(run.stages, networks, strict=True):
            epochs = len({row["epoch"] for row in run.log(result)})
            rows.append((result.name, epochs, round(top1_percent(*run.predict(network)), 2)))
        (ensemble,) = run.measure({"all snapshots": run.ensemble(networks)})
        rows.append(("ensemble of all", sum(row[1] for row in rows), round(ensemble["top1_percent"], 2)))
        yield Table(
            "Mini-generations",
            ("snapshot", "epochs", "top-1 in %"),
            tuple(rows),
            "Each is taught by the one before; the last is the student. The ensemble averages their probabilities.",
        )


def _one_cycle(schedule: dict[str, object], first: bool) -> dict[str, object]:
    """The learning rate of one mini-generation: annealed by a cosine from the peak to the recipe's end."""
    warmup = schedule["warmup_epochs"] if first else 0
    return {"name": "cosine", "milestones": [], "warmup_epochs": warmup, "min_lr": schedule["min_lr"]}
