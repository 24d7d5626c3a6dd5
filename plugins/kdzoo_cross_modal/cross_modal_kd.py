"""Soft labels from another modality."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Algorithm, Needs, Paper, StagePlan, Stages, StepContext, Update
from kdzoo_cross_modal.pairs import TINY_RECIPE, PairsOptions, transfer_then_finetune


def soft_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Average the divergence KL(teacher || student) of softened class probabilities, times temperature squared.

    Shapes: (N, K), (N, K) -> scalar, in nats.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class CrossModalKD(Algorithm):
    """Makes the student answer to one modality what the teacher answers to another, over unlabelled pairs.

    Both see the same scene, each through its own sensor. The teacher's softened class probabilities are the student's
    only targets for scenes without a label; then the student is fine-tuned on the few samples that have one. Both
    stages share the recipe's epochs, so that the control, which trains on those labels alone, takes as many steps.

    Reads: logits of student and teacher, each (N, K). No label.
    Loss terms: ``soft_labels``: nats times temperature squared, 0 when both agree; mean over the batch.
    Trains: nothing of its own.   State: none.
    Raises: NeedsError for fewer than two epochs.
    Source: Gupta, Hoffman, Malik, "Cross Modal Distillation for Supervision Transfer", CVPR 2016,
        https://arxiv.org/abs/1507.00448, for learning from pairs; the soft targets are those of Hinton, Vinyals, Dean,
        "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531.
    Differs from the paper: 1. it transfers answers where Gupta et al. transfer features. 2. Small data sets.
    Defaults from: the temperature is common in later work on soft targets.
    """

    name = "cross_modal_kd"
    paper = Paper(
        title="Cross Modal Distillation for Supervision Transfer",
        authors="Gupta, Hoffman, Malik",
        year=2016,
        url="https://arxiv.org/abs/1507.00448",
    )
    needs = Needs(teachers=1, data="unlabelled")
    default_weights: ClassVar = {"soft_labels": 1.0}

    tiny_recipe: ClassVar = TINY_RECIPE

    class Options(PairsOptions):
        temperature: float = Field(4.0, gt=0, le=1000, description="Softens both distributions; dimensionless.")

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"soft_labels": soft_label_loss(ctx.student.logits, ctx.teacher.logits, self.options.temperature)}

    def step(self, ctx: StepContext) -> Iterator[Update]:
        yield Update("student", self.losses(ctx))  # there are no labels for a task

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        return (yield from transfer_then_finetune(plan))
