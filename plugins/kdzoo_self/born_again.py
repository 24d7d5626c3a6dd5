"""Born-again networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from kdzoo.api import (
    Algorithm,
    AlgorithmName,
    AlgorithmOptions,
    FinishedRun,
    Needs,
    Paper,
    ReportItem,
    Stage,
    StagePlan,
    Stages,
    Table,
    top1_percent,
)


class BornAgain(Algorithm):
    """Makes a fresh network match a trained one of the same architecture, generation after generation.

    Generation 0 is the recipe's teacher. It may be another network, as in the paper's tests with a DenseNet that
    teaches a ResNet. Without a teacher it is the student's own architecture, trained on the task alone. Generation k
    starts from fresh weights of its own and is taught by generation k - 1 through the algorithm that ``via`` names. The
    last of ``generations`` is the student. Options and loss weights other than ``generations`` and ``via`` are those of
    that algorithm.

    Reads: what the algorithm that ``via`` names reads.
    Loss terms: those of the algorithm that ``via`` names.
    Trains: nothing of its own; one stage per generation. State: none.
    Raises: nothing.
    Source: Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born-Again Neural Networks", ICML 2018,
        https://arxiv.org/abs/1805.04770, the sequence of teaching selves.
    Differs from the paper: 1. the ensemble of all generations is measured, and one network delivered. 2. the variants
        that weigh samples by the teacher's confidence or permute its predictions are left out.
    Defaults from: the paper (one rebirth, by distillation of the outputs; through ``kd`` no temperature, and labels and
        teacher weigh the same); the algorithm of ``via`` (everything else).
    """

    name = "born_again"
    paper = Paper(
        title="Born-Again Neural Networks",
        authors="Furlanello, Lipton, Tschannen, Itti, Anandkumar",
        year=2018,
        url="https://arxiv.org/abs/1805.04770",
    )
    needs = Needs(teachers=(0, 1))
    delegate = "via"
    delegate_defaults: ClassVar = {"kd": {"options": {"temperature": 1.0}, "loss_weights": {"task": 1.0, "kd": 1.0}}}
    also_known_as = ("ban", "born_again_networks")

    class Options(AlgorithmOptions):
        generations: int = Field(
            1,
            ge=1,
            le=100,
            description="How often the network is reborn: the number of stages with a teacher.",
        )
        via: AlgorithmName = Field(
            "kd",
            description="Algorithm by which each generation teaches the next; it must need exactly one teacher.",
        )

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        generations = plan.options.generations
        # Without a salt this stage equals the control run of the recipe, so it is trained once for both.
        teacher = plan.teachers[0] if plan.teachers else (yield Stage("generation_0", plan.student))
        for generation in range(1, generations):
            name = f"generation_{generation}"
            teacher = yield Stage(name, plan.student, plan.delegate, (teacher,), salt=name)
        return (yield Stage("student", plan.student, plan.delegate, (teacher,), salt=f"generation_{generations}"))

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        generations = (*run.teachers, *run.stages)
        networks = [run.network(result) for result in generations]
        ensemble = run.ensemble(networks)
        run.measure({"ensemble": ensemble})
        rows = []
        for name, module in [*((f"generation {i}", own) for i, own in enumerate(networks)), ("ensemble", ensemble)]:
            rows.append((name, round(top1_percent(*run.predict(module)), 2)))
        yield Table(
            "Generations",
            ("network", "top-1 in %"),
            tuple(rows),
            "Each is taught by the one before; the last is the student. The ensemble averages their probabilities.",
        )
