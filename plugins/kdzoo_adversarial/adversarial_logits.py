"""A discriminator that distinguishes the student's logits from the teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, OwnNetwork, Paper, Shapes, StepContext, Update
from kdzoo_adversarial.discriminators import adversary, collapse, midpoint, watch

Objective = Literal["hinge", "wgan"]


def adversarial_logits_discriminator_loss(
    student_score: Tensor, teacher_score: Tensor, objective: Objective = "hinge"
) -> Tensor:
    """Reward scores above 1 on the teacher and below -1 on the student (hinge), or their distance (wgan).

    Shapes: any shape, the same or not for both; scores without unit -> scalar. Undecided scores of 0 cost 2 (hinge).
    """
    if objective == "wgan":
        return student_score.mean() - teacher_score.mean()
    return F.relu(1 - teacher_score).mean() + F.relu(1 + student_score).mean()


def adversarial_logits_student_loss(student_score: Tensor) -> Tensor:
    """Reward a student that the discriminator takes for the teacher: minus its mean score.

    Shapes: any shape; scores without unit -> scalar, unbounded on both sides.
    """
    return -student_score.mean()


def adversarial_logits_penalty_loss(discriminator: Discriminator, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Penalise slopes of the score other than 1 between pairs of teacher and student logits.

    Shapes: ``real`` and ``fake`` (N, K), ``share`` of the real one (N, 1) in [0, 1] -> scalar, mean of (slope - 1)^2.
    """
    between = (share * real + (1 - share) * fake).requires_grad_()
    score, _ = discriminator(between)
    (slope,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


class Discriminator(nn.Module):
    """A residual perceptron on logits with two heads: a score (teacher or student?) and the class.

    Shapes: logits (N, K) -> score (N,), class logits (N, K).
    """

    def __init__(self, num_classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(num_classes, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.score = nn.Linear(width, 1)
        self.label = nn.Linear(width, num_classes)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.stem(logits)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        hidden = F.leaky_relu(hidden, 0.2)
        return self.score(hidden).squeeze(1), self.label(hidden)


class AdversarialLogits(Algorithm):
    """Makes the student's logits indistinguishable from the teacher's for a discriminator that learns the difference.

    A fixed divergence asks for exactly the teacher's logits, which a small student cannot produce; a learned loss asks
    for logits that look like a teacher's. Each step first trains the discriminator on both logits (detached), then the
    student against it. The discriminator also names the class, so both sides gain by logits that show the class, and
    the adversary is conditional. An L1 distance keeps student and teacher aligned sample by sample.

    Reads: student and teacher logits, (N, K), and the labels.
    Loss terms: ``l1``: logit units, 0 when student equals teacher, mean over samples and classes.
        ``adversarial``: minus the mean score of the student; unbounded, not 0 when student equals teacher.
        ``label``: nats, cross-entropy of the discriminator's classes on student logits, mean over samples.
        ``discriminator``: hinge loss of the scores, 2 when undecided; with ``wgan`` minus the distance plus a penalty.
        ``discriminator_label``: nats, mean cross-entropy of its classes on teacher's and student's logits.
    Trains: a discriminator (residual perceptron on logits) with its own Adam optimizer. State: none.
    Raises: nothing.
    Source: Xu, Hsu, Huang, "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with
        Conditional Adversarial Networks", ICLR 2018 workshop, https://arxiv.org/abs/1709.00513. The hinge and
        Wasserstein forms: public code of Liu et al., "Structured Knowledge Distillation", CVPR 2019.
    Differs from the paper: 1. scores are trained by a hinge (or Wasserstein) loss, the paper's by a log loss. 2. width,
        depth and optimizer of the discriminator are ours, and it has no normalisation, so a batch of one works. 3. the
        discriminator is updated once a step. 4. no dropout is added to the student as a source of noise.
    Defaults from: our own choice; tuned on nothing.
    """

    name = "adversarial_logits"
    paper = Paper(
        title="Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional "
        "Adversarial Networks",
        authors="Xu, Hsu, Huang",
        year=2018,
        url="https://arxiv.org/abs/1709.00513",
    )
    needs = Needs(teachers=1, of_teacher="logits")
    loss_functions = (
        adversarial_logits_student_loss,
        adversarial_logits_discriminator_loss,
        adversarial_logits_penalty_loss,
    )
    default_weights: ClassVar = {
        "task": 1.0,
        "l1": 1.0,
        "adversarial": 0.1,
        "label": 0.1,
        "discriminator": 1.0,
        "discriminator_label": 1.0,
    }
    also_known_as = ("adv_logits", "cgan_kd")
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "At equal logits only l1 is 0: adversarial is minus the discriminator's score, "
        "and the label terms are cross-entropies.",
    }

    class Options(AlgorithmOptions):
        objective: Objective = Field(
            "hinge", description="How scores are trained: hinge, or wgan (a distance, with a gradient penalty)."
        )
        width: int = Field(128, ge=1, le=65536, description="Hidden units of the discriminator.")
        blocks: int = Field(2, ge=0, le=64, description="Residual blocks of two layers in the discriminator.")
        discriminator_lr: float = Field(
            1e-3, gt=0, le=10, description="Adam learning rate of the discriminator, before the schedule."
        )
        gradient_penalty: float = Field(
            10.0,
            ge=0,
            le=1e6,
            description="Weight of the gradient penalty within the term of wgan; else unused.",
        )

    options: Options

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.discriminator = Discriminator(shapes.num_classes, self.options.width, self.options.blocks)

    def networks(self) -> Mapping[str, OwnNetwork]:
        return {"discriminator": adversary(self.discriminator, self.options.discriminator_lr)}

    def step(self, ctx: StepContext) -> Iterator[Update]:
        student, teacher, targets = ctx.student.logits, ctx.teacher.logits, ctx.batch.targets

        teacher_score, teacher_label = self.discriminator(teacher)
        student_score, student_label = self.discriminator(student.detach())
        loss = adversarial_logits_discriminator_loss(student_score, teacher_score, self.options.objective)
        threshold = midpoint(teacher_score, student_score) if self.options.objective == "wgan" else 0.0
        watch(ctx, teacher_score, student_score, threshold)
        if self.options.objective == "wgan":
            share = torch.rand(len(teacher), 1, generator=ctx.random("gradient_penalty")).to(teacher)
            penalty = adversarial_logits_penalty_loss(self.discriminator, teacher, student.detach(), share)
            loss = loss + self.options.gradient_penalty * penalty
        labels = (F.cross_entropy(teacher_label, targets) + F.cross_entropy(student_label, targets)) / 2
        yield Update("discriminator", {"discriminator": loss, "discriminator_label": labels})

        score, label = self.discriminator(student)  # the discriminator is already updated here
        yield Update(
            "student",
            {
                "task": ctx.task_loss(student),
                "l1": F.l1_loss(student, teacher),
                "adversarial": adversarial_logits_student_loss(score),
                "label": F.cross_entropy(label, targets),
            },
        )

    def warnings(self, means: Mapping[str, float]) -> Iterable[str]:
        return collapse(means, "the teacher", "the student")
