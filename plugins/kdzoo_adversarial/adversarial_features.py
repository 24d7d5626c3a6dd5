"""A discriminator that distinguishes the student's features from the teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, OwnNetwork, Paper, Shapes, StepContext, Update
from kdzoo_adversarial.discriminators import adversary, collapse, midpoint, watch


def adversarial_features_discriminator_loss(student_score: Tensor, teacher_score: Tensor, flipped: float) -> Tensor:
    """Average the cross-entropies of "teacher" on the teacher's and "student" on the student's scores, in nats.

    With weight ``flipped`` the student's scores also count as the teacher's, so the discriminator cannot be sure.

    Shapes: any shape, the same or not for both; log-odds -> scalar. Undecided scores of 0 cost (2 + flipped) ln 2.
    """
    loss = F.softplus(-teacher_score).mean() + F.softplus(student_score).mean()
    return loss + flipped * F.softplus(-student_score).mean()


def adversarial_features_student_loss(student_score: Tensor) -> Tensor:
    """Average the cross-entropy of "teacher" on the student's scores, in nats.

    Shapes: any shape; log-odds -> scalar, ln 2 where the discriminator is undecided.
    """
    return F.softplus(-student_score).mean()


class AdversarialFeatures(Algorithm):
    """Makes the student's embedding indistinguishable from the teacher's for a discriminator that learns the
    difference.

    It reads no label. The squared difference pulls the student's logits to the teacher's; the student's embedding, the
    input of its classifier, should have the distribution of the teacher's. Each step first trains the discriminator D
    on both embeddings (detached), L_D = -log D(f_T) - log(1 - D(f_S)) - mu log D(f_S), then the student against it, L =
    |z_S - z_T|^2 - log D(f_S). The last term of L_D, with mu ``flipped``, keeps it from winning outright.

    Reads: pre_logits of student and teacher, each (N, D); their logits, each (N, K).
    Loss terms: ``logits``: squared logit units, 0 when student equals teacher, mean over samples and classes.
        ``adversarial``: nats, above 0, ln 2 where the discriminator is undecided, mean over samples.
        ``discriminator``: nats, above 0, (2 + mu) ln 2 when undecided, mean over samples.
    Trains: a discriminator with its own Adam optimizer; if the embeddings differ in width, a linear projector of the
        student's embedding, with the student. State: none.
    Raises: nothing.
    Source: Belagiannis, Farshad, Galasso, "Adversarial Network Compression", ECCV workshops 2018,
        https://arxiv.org/abs/1803.10750.
    Differs from the paper: 1. the student minimises -log D(f_S), not log(1 - D(f_S)): the goal is the same, with a
        gradient where the discriminator is sure. 2. a projector maps embeddings of different width to one width. 3.
        width, depth and optimizer of the discriminator, and all weights, are ours. 4. no dropout is added to the
        student. There may be more: we had neither the full text nor code of the authors.
    Defaults from: the validation split of digits (adversarial, discriminator_lr); our own choice (all else).
    """

    name = "adversarial_features"
    paper = Paper(
        title="Adversarial Network Compression",
        authors="Belagiannis, Farshad, Galasso",
        year=2018,
        url="https://arxiv.org/abs/1803.10750",
    )
    needs = Needs(teachers=1, pre_logits=True, data="unlabelled")
    loss_functions = (adversarial_features_student_loss, adversarial_features_discriminator_loss)
    default_weights: ClassVar = {"logits": 1.0, "adversarial": 1.0, "discriminator": 1.0}
    also_known_as = ("adversarial_network_compression", "anc", "adv_features")
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "At equal embeddings only logits is 0; adversarial is the discriminator's "
        "doubt.",
    }

    class Options(AlgorithmOptions):
        width: int = Field(128, ge=1, le=65536, description="Hidden units of the discriminator's layers.")
        layers: int = Field(2, ge=1, le=64, description="Hidden layers of the discriminator.")
        discriminator_lr: float = Field(
            1e-4, gt=0, le=10, description="Adam learning rate of the discriminator, before the schedule."
        )
        flipped: float = Field(
            0.5,
            ge=0,
            le=100,
            description="Weight of the student's samples that the discriminator sees as the teacher's; 0 for none.",
        )

    options: Options

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        own, taught, width = shapes.student.pre_logits, shapes.teacher.pre_logits, self.options.width
        self.projector = nn.Linear(own, taught) if own != taught else nn.Identity()
        hidden: list[nn.Module] = []
        for before in (taught, *[width] * (self.options.layers - 1)):
            hidden += [nn.Linear(before, width), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*hidden, nn.Linear(width, 1))

    def networks(self) -> Mapping[str, OwnNetwork]:
        return {"discriminator": adversary(self.discriminator, self.options.discriminator_lr)}

    def step(self, ctx: StepContext) -> Iterator[Update]:
        student, teacher = self.projector(ctx.student.pre_logits), ctx.teacher.pre_logits
        scores = self.discriminator(student.detach()), self.discriminator(teacher)
        # The flipped samples raise the student's scores, so undecided scores are not at 0.
        watch(ctx, scores[1], scores[0], midpoint(scores[1], scores[0]))
        loss = adversarial_features_discriminator_loss(*scores, self.options.flipped)
        yield Update("discriminator", {"discriminator": loss})
        yield Update(
            "student",
            {
                "logits": F.mse_loss(ctx.student.logits, ctx.teacher.logits),
                "adversarial": adversarial_features_student_loss(self.discriminator(student)),
            },
        )

    def warnings(self, means: Mapping[str, float]) -> Iterable[str]:
        return collapse(means, "the teacher", "the student")
