"""Incremental classifier and representation learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import (
    AlgorithmChoice,
    AlgorithmOptions,
    FinishedRun,
    Needs,
    NeedsError,
    Paper,
    Shapes,
    StagePlan,
    StageResult,
    StepContext,
    Update,
)
from kdzoo_lifelong.class_incremental import Lifelong, LifelongOptions, Tasks, stages_named
from kdzoo_lifelong.exemplars import choose_exemplars, nearest_mean

NEAREST_MEAN = "nearest mean of exemplars"
OWN_HEAD = "own head"


def icarl_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of one sigmoid per class against targets in [0, 1], in nats: class sum, sample mean.

    Shapes: (N, K), (N, K) -> scalar.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


class ICaRL(Lifelong):
    """Makes the network answer as before on earlier classes, for new samples and a few kept exemplars.

    The classes come in ``tasks`` tasks; each output is a separate sigmoid g. Task i starts from the network of task i -
    1 and is trained on its samples and all exemplars D. With q the sigmoid outputs of the network before, L = - sum
    over (x, y) in D of [sum over new k of 1(k = y) log g_k + 1(k != y) log(1 - g_k) + sum over earlier k of q_k log g_k
    + (1 - q_k) log(1 - g_k)]. After a task, all classes seen share ``memory`` exemplars equally, chosen by herding in
    the embedding; a sample then gets the class with the nearest mean of exemplars.

    Reads: logits of the student and of the network before, each (N, K); the embedding, (N, D).
    Loss terms: ``task``: nats, 0 at best; binary cross-entropy on the classes of the task. ``icarl``: nats; the same on
        the earlier classes against the outputs of the network before; for a student equal to its teacher their entropy.
        Both: sum over classes, mean over samples.
    Trains: nothing of its own; one stage per task, and one more per task for the lower bound. State: none.
    Raises: NeedsError if there are more tasks than classes or more classes than exemplars, a task has no training
        sample, or a network has no embedding.
    Source: Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017,
        https://arxiv.org/abs/1611.07725, algorithms 1 to 5, and the authors' code.
    Differs from the paper: 1. one head has an output for every class of the data; the losses touch those of classes
        seen so far (the authors' code trains those of later classes towards 0). 2. the loss is averaged over samples;
        the paper sums, and the authors' code averages over samples and classes. 3. means of exemplars are those of the
        samples themselves; the authors' code also averages over their mirror images. 4. the delivered student is the
        plain network, which answers by its own head; the nearest mean of exemplars is measured too. 5. the lower bound
        is trained with a softmax, as the control is.
    Defaults from: the paper (``memory``: 2000 for 100 classes of 50,000 samples; scale it to the data); the paper's
        loss, which weighs both terms by 1.
    """

    name = "icarl"
    paper = Paper(
        title="iCaRL: Incremental Classifier and Representation Learning",
        authors="Rebuffi, Kolesnikov, Sperl, Lampert",
        year=2017,
        url="https://arxiv.org/abs/1611.07725",
        equation="algorithm 3",
    )
    needs = Needs(teachers=0, pre_logits=True)
    loss_functions = (icarl_loss,)
    default_weights: ClassVar = {"task": 1.0, "icarl": 1.0}
    variants: ClassVar = (NEAREST_MEAN,)
    also_known_as = ("incremental_classifier_and_representation_learning",)

    class Options(LifelongOptions):
        memory: int = Field(2000, ge=1, description="Number of exemplars to keep, of all classes together; samples.")

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        if self.options.memory < shapes.num_classes:
            raise NeedsError(
                f"algorithm 'icarl': options.memory: {self.options.memory} exemplars are not one for each of the "
                f"{shapes.num_classes} classes"
            )

    def step(self, ctx: StepContext) -> Iterator[Update]:
        logits = ctx.student.logits
        labels = (ctx.batch.targets[:, None] == self.new).to(logits.dtype)
        terms = {"task": icarl_loss(logits[:, self.new], labels), "icarl": logits.new_zeros(())}
        if ctx.teachers:  # all tasks but the first
            terms["icarl"] = icarl_loss(logits[:, self.old], ctx.teacher.logits[:, self.old].sigmoid())
        yield Update("student", terms)

    @classmethod
    def opening(cls, plan: StagePlan) -> AlgorithmChoice | None:
        return replace(plan.own, loss_weights={**plan.own.loss_weights, "icarl": 0.0})

    @classmethod
    def kept(cls, plan: StagePlan, tasks: Tasks, results: Sequence[StageResult]) -> tuple[int, ...]:
        exemplars = choose_exemplars(plan, tasks, results, plan.options.memory)
        return tuple(row for rows in exemplars.values() for row in rows)

    @classmethod
    def ways(cls, run: FinishedRun, tasks: Tasks) -> Mapping[str, Sequence[nn.Module]]:
        heads = super().ways(run, tasks)[cls.name]
        results = stages_named(run, "task", tasks)
        means = []
        for number, (network, result) in enumerate(zip(heads, results, strict=True)):
            exemplars = choose_exemplars(run.plan, tasks, results[: number + 1], run.options.memory)
            means.append(nearest_mean(run.plan, network, result, exemplars))
        return {NEAREST_MEAN: means, OWN_HEAD: heads}
