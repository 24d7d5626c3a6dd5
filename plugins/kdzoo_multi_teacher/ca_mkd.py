"""Confidence-aware multi-teacher distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Needs, NeedsError, Paper, Shapes, StepContext, Temperature
from kdzoo_multi_teacher.comparison import SeveralTeachers, SeveralTeachersOptions, note_weights


def ca_mkd_weights(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Return the weight of each of M answers on each sample, by its cross-entropy on the label; columns sum to 1.

    Shapes: for each answer (N, K); (N,) -> (M, N), from 0 to 1 / (M - 1), 1 / M where all are equally sure.
    """
    wrong = torch.stack([F.cross_entropy(own, targets, reduction="none") for own in logits])
    return (1 - wrong.softmax(dim=0)) / (len(logits) - 1)


def ca_mkd_logits_loss(
    student_logits: Tensor, teacher_logits: Sequence[Tensor], targets: Tensor, temperature: float
) -> Tensor:
    """Return temperature^2 times the weighted divergence from each teacher, averaged over samples and teachers.

    In nats; a teacher's weight on a sample grows with its certainty of the label. Only ``student_logits`` receive a
    gradient.

    Shapes: (N, K), for each teacher (N, K); (N,) -> scalar.
    """
    teachers = torch.stack([logits.detach() for logits in teacher_logits])
    student = F.log_softmax(student_logits / temperature, dim=1).expand_as(teachers)
    target = F.log_softmax(teachers / temperature, dim=2)
    divergences = F.kl_div(student, target, reduction="none", log_target=True).sum(dim=2)
    return (ca_mkd_weights(teachers.unbind(), targets) * divergences).mean() * temperature**2


def ca_mkd_feature_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    head_logits: Sequence[Tensor],
    targets: Tensor,
) -> Tensor:
    """Return the weighted squared differences from each teacher's features, averaged over elements, samples, teachers.

    ``student_features`` are projected, one for each teacher; ``head_logits`` are the answers of the teacher's
    classifier to them: the surer of the label, the larger the weight. Both receive a gradient, the teachers' features
    none.

    Shapes: for each teacher (N, ...), (N, ...), (N, K); (N,) -> scalar.
    """
    pairs = zip(student_features, teacher_features, strict=True)
    distances = [(student - teacher.detach()).square().flatten(1).mean(dim=1) for student, teacher in pairs]
    return (ca_mkd_weights(head_logits, targets) * torch.stack(distances)).mean()


class CAMKD(SeveralTeachers):
    """Makes the student match several teachers, weighed on each sample by their certainty of its label.

    Averaging trusts a teacher that is wrong as much as one that is right. Here teacher k of M has the weight w_k = (1 -
    exp(L_k) / sum_j exp(L_j)) / (M - 1) on a sample, where L_k is the cross-entropy of its answer with the label. The
    features are weighed in the same way, but by the answer of teacher k's classifier to the student's projected
    embedding: v_k grows as the student's features become useful to that teacher. L = mean_k w_k T^2 KL(p_k(T) ||
    p_S(T)) + beta mean_k v_k |r_k(F_S) - F_k|^2, with T ``temperature``.

    Reads: logits of student and of every teacher, each (N, K), and the labels; pre_logits of student and of every
        teacher, each (N, D); the teachers' classifiers.
    Loss terms: ``kd``: nats times T^2, at least 0, 0 when the student answers as all teachers do; mean over samples and
        teachers. ``feature``: squared activation units, at least 0, 0 when every projected embedding equals its
        teacher's; mean over elements, samples and teachers.
    Trains: one projector per teacher, from the student's embedding to the teacher's. State: none.
    Raises: NeedsError if a teacher's classifier is not one linear layer over its embedding; NeedsError (by the core)
        for fewer than two teachers.
    Source: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022,
        https://arxiv.org/abs/2201.00007, section 2, and the authors' code (CA-MKD).
    Differs from the paper: 1. both terms are divided by the number of teachers, although the weights sum to 1, as in
        the authors' code. 2. features are the embeddings before the classifier; the authors take the last maps. Every
        network has embeddings, and the classifier reads them directly. 3. the authors' code leaves the feature term out
        in the first epoch.
    Defaults from: the authors' CIFAR-100 script (temperature 4, task 1, kd 1, feature 50).
    """

    name = "ca_mkd"
    paper = Paper(
        title="Confidence-Aware Multi-Teacher Knowledge Distillation",
        authors="Zhang, Chen, Wang",
        year=2022,
        url="https://arxiv.org/abs/2201.00007",
        equation="section 2",
    )
    needs = Needs(teachers=(2, None), pre_logits=True, min_batch=2)  # batch norm has nothing to average over one sample
    loss_functions = (ca_mkd_logits_loss, ca_mkd_feature_loss)
    default_weights: ClassVar = {"task": 1.0, "kd": 1.0, "feature": 50.0}
    also_known_as = ("camkd", "confidence_aware_kd")
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "The projectors between the embeddings start from random weights.",
    }

    class Options(SeveralTeachersOptions):
        temperature: Temperature = 4.0
        use_relu: bool = Field(
            True,
            description="End the projectors in a ReLU; false for embeddings that go below zero (ViT, ConvNeXt).",
        )

    def __init__(self, options: CAMKD.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.projectors = nn.ModuleList(
            nn.Sequential(
                nn.Linear(shapes.student.pre_logits, teacher.pre_logits),
                # The projector is never evaluated, so nothing would read running statistics.
                nn.BatchNorm1d(teacher.pre_logits, track_running_stats=False),
                nn.ReLU() if options.use_relu else nn.Identity(),
            )
            for teacher in shapes.teachers
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        logits = [teacher.logits for teacher in ctx.teachers]
        embeddings = [teacher.pre_logits for teacher in ctx.teachers]
        projected = [projector(ctx.student.pre_logits) for projector in self.projectors]
        heads = [self.classifier(ctx, index)(own) for index, own in enumerate(projected)]
        targets = ctx.batch.targets
        note_weights(ctx, ca_mkd_weights(logits, targets).mean(dim=1))
        note_weights(ctx, ca_mkd_weights(heads, targets).mean(dim=1), of="feature_weight")
        return {
            "kd": ca_mkd_logits_loss(ctx.student.logits, logits, targets, self.options.temperature),
            "feature": ca_mkd_feature_loss(projected, embeddings, heads, targets),
        }

    def classifier(self, ctx: StepContext, index: int) -> nn.Linear:
        """The linear layer that turns a teacher's embedding into logits; frozen, like the whole teacher."""
        model: Any = ctx.modules[f"teacher_{index}"]
        classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
        width = self.shapes.teachers[index].pre_logits
        if not isinstance(classifier, nn.Linear) or classifier.in_features != width:
            raise NeedsError(
                f"algorithm 'ca_mkd': teacher {index} ({type(model).__name__}) must classify by one linear layer over "
                f"its embedding of {width}, got {classifier}"
            )
        return classifier
