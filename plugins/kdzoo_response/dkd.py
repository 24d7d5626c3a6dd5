"""Decoupled knowledge distillation."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, Paper, StepContext, Temperature, soft_target_loss


def dkd_target_loss(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 times the KL between the softened probabilities of the label and of all others, in nats.

    Only ``student_logits`` receive a gradient; mean over samples.

    Shapes: (N, K), (N, K), (N,) -> scalar.
    """
    student = _label_against_rest(student_logits / temperature, targets)
    teacher = _label_against_rest(teacher_logits.detach() / temperature, targets)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def dkd_non_target_loss(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 times the KL between the softened predictions among the classes other than the label.

    In nats; only ``student_logits`` receive a gradient; mean over samples. With two classes it is always 0.

    Shapes: (N, K), (N, K), (N,) -> scalar.
    """
    return soft_target_loss(_others(student_logits, targets), _others(teacher_logits, targets), temperature=temperature)


def _others(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits without the label's: (N, K) -> (N, K - 1)."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, columns + (columns >= targets[:, None]))  # step over the label


def _label_against_rest(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probabilities of the label and of everything else: (N, K) -> (N, 2)."""
    # One logit decides between the two, and logsigmoid keeps both logarithms finite for any logit.
    own = logits.gather(1, targets[:, None])
    margin = own - _others(logits, targets).logsumexp(dim=1, keepdim=True)
    return F.logsigmoid(torch.cat([margin, -margin], dim=1))


class DKD(Algorithm):
    """Makes the student match the teacher twice: how sure it is of the label, and how it ranks all other classes.

    The loss of ``kd`` splits into a target part (TCKD) and a non-target part (NCKD). It weighs the latter by the
    teacher's probability of the other classes, which is almost zero when the teacher is sure. Here each part has its
    own weight, L = alpha * TCKD + beta * NCKD, both at temperature T (``temperature``) and times T^2; alpha and beta
    are ``loss_weights.target`` and ``loss_weights.non_target``.

    Reads: logits of student and teacher, each (N, K); the labels.
    Loss terms: ``target``, ``non_target``: nats times T^2, at least 0, 0 when student equals teacher; mean over
        samples. In epoch e, counted from 0, both are multiplied by min((e + 1) / ``warmup_epochs``, 1).
    Trains: nothing of its own.   State: none.
    Raises: NeedsError (by the core) with two classes, where the non-target term is always zero.
    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022,
        https://arxiv.org/abs/2203.08679, section 3, and the authors' code (mdistiller).
    Differs from the paper: nothing known; the warm-up and the factor T^2 are those of the authors' code.
    Defaults from: the authors' code (temperature 4, task 1, target 1, non_target 8, 20 of 240 epochs of warm-up). Its
        non_target weight differs from pair to pair.
    """

    name = "dkd"
    paper = Paper(
        title="Decoupled Knowledge Distillation",
        authors="Zhao, Cui, Song, Qiu, Liang",
        year=2022,
        url="https://arxiv.org/abs/2203.08679",
        equation="section 3",
    )
    needs = Needs(min_classes=3, of_teacher="logits")
    loss_functions = (dkd_target_loss, dkd_non_target_loss)
    default_weights: ClassVar = {"task": 1.0, "target": 1.0, "non_target": 8.0}
    also_known_as = ("decoupled_kd",)

    class Options(AlgorithmOptions):
        temperature: Temperature = 4.0
        warmup_epochs: int = Field(
            20,
            ge=0,
            le=100_000,
            description="Both terms grow linearly to full weight over this many epochs, 0 for none. Chosen for 240 "
            "epochs: lower it with shorter trainings, which otherwise end before full weight.",
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        logits = ctx.student.logits, ctx.teacher.logits, ctx.batch.targets, self.options.temperature
        warmup = min((ctx.clock.epoch + 1) / max(1, self.options.warmup_epochs), 1.0)
        return {"target": warmup * dkd_target_loss(*logits), "non_target": warmup * dkd_non_target_loss(*logits)}
