"""Soft labels from another modality."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdzoo.api import Needs, Paper, StepContext, Temperature, soft_target_loss
from kdzoo_cross_modal.pairs import Pairs, PairsOptions


class CrossModalKD(Pairs):
    """Makes the student's answers to one modality match the teacher's answers to another, over unlabelled pairs.

    Both see the same scene through different sensors. For scenes without a label, the teacher's softened class
    probabilities are the student's only targets; then the student is fine-tuned on the few samples with a label. Both
    stages share the recipe's epochs, so the control, which trains on those labels alone, takes as many steps.

    Reads: logits of student and teacher, each (N, K). No label.
    Loss terms: ``soft_labels``: nats times temperature squared, 0 when both agree; mean over the batch.
    Trains: nothing of its own.   State: none.
    Raises: NeedsError for fewer than two epochs.
    Source: Gupta, Hoffman, Malik, "Cross Modal Distillation for Supervision Transfer", CVPR 2016,
        https://arxiv.org/abs/1507.00448, for learning from pairs; the soft targets are those of Hinton, Vinyals, Dean,
        "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531.
    Differs from the paper: 1. it transfers answers; Gupta et al. transfer features. 2. the data sets are small.
    Defaults from: the temperature is common in later work on soft targets.
    """

    name = "cross_modal_kd"
    paper = Paper(
        title="Cross Modal Distillation for Supervision Transfer",
        authors="Gupta, Hoffman, Malik",
        year=2016,
        url="https://arxiv.org/abs/1507.00448",
    )
    needs = Needs(teachers=1, data="unlabelled", of_teacher="top_k")
    loss_functions = (soft_target_loss,)
    default_weights: ClassVar = {"soft_labels": 1.0}

    class Options(PairsOptions):
        temperature: Temperature = 4.0

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {
            "soft_labels": soft_target_loss(
                ctx.student.logits, ctx.teacher.logits, temperature=self.options.temperature
            )
        }
