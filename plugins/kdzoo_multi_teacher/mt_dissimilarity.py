"""Several teachers that vote on which samples are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Needs, Paper, StepContext, Temperature, sample_distances
from kdzoo_multi_teacher.comparison import SeveralTeachers, SeveralTeachersOptions, note_weights
from kdzoo_multi_teacher.mt_average import mt_average_outputs_loss


def mt_dissimilarity_loss(student_features: Tensor, teacher_features: Sequence[Tensor], margin: float) -> Tensor:
    """Return the amount by which the student's distances break the teachers' order, averaged over triplets.

    For samples i, j, k most teachers put j or k closer to i; the student's distance to that one should be smaller by at
    least ``margin``. Distances are in units of their mean over the batch; a tied vote asks for nothing. Only
    ``student_features`` receive a gradient. Fewer than three samples make no triplet: 0.

    Shapes: (N, ...), for each teacher (N, ...), of any sizes -> scalar.
    """
    votes = torch.stack([_orders(features.detach()).sign() for features in teacher_features]).sum(dim=0).sign()
    broken = F.relu(margin * votes.abs() - votes * _orders(student_features))
    samples = len(student_features)
    return broken.sum() / max(1, samples * (samples - 1) * (samples - 2))


def _orders(features: Tensor) -> Tensor:
    """How much farther k is from i than j is: (N, ...) -> (N, N, N), 0 where two of the three are one sample."""
    samples, distances = len(features), sample_distances(features)
    distances = distances / (distances.sum() / max(1, samples * (samples - 1))).clamp_min(1e-6)
    apart = 1 - torch.eye(samples, dtype=distances.dtype, device=distances.device)
    return (distances[:, None, :] - distances[:, :, None]) * apart[:, None, :] * apart[:, :, None]


class MTDissimilarity(SeveralTeachers):
    """Makes the student match the teachers' mean answer, and order distances between samples as most teachers do.

    At the output the teachers' softened probabilities are averaged. Features of intermediate layers cannot be averaged:
    they differ in size and meaning. But all of them say which of two samples is more like a third. Each teacher votes,
    for every triplet (i, j, k) of the batch, on whether j or k is closer to i; if the student's distances d_S break the
    order of the majority, it pays max(0, margin + d_S(i, near) - d_S(i, far)).

    Reads: logits of student and of every teacher, each (N, K); features of all at all paired levels, each (N, C, H, W).
    Loss terms: ``kd``: nats times T^2, T ``temperature``, at least 0, 0 when the student gives the mean answer; mean
        over samples. ``dissimilarity``: in units of the mean distance, at least 0; with ``margin`` 0, 0 when no
        majority is contradicted; mean over triplets and levels.
    Trains: nothing of its own.   State: none.
    Raises: NeedsError if no levels can be paired (by the core); NeedsError (by the core) for fewer than two teachers or
        batches of fewer than three samples.
    Source: You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", KDD 2017,
        https://doi.org/10.1145/3097983.3098135. The authors published no code: averaged outputs, triplets and the vote
        are the paper's, the rest is ours.
    Differs from the paper: 1. every triplet of the batch counts; the vote is a plain majority. 2. distances are between
        whole maps, in units of the mean distance of the batch, so one margin suits all levels and networks. 3. all
        paired levels take part, with equal weight. 4. the divergence, not the cross-entropy with the mean answer; the
        gradient is the same. There may be more: we had no numbers of the authors to compare with.
    Defaults from: the code of AE-KD (temperature 4, task 1, kd 0.9); our own choice (margin 0); the best of 1, 10 and
        100 on the validation split of digits (dissimilarity 100).
    """

    name = "mt_dissimilarity"
    paper = Paper(
        title="Learning from Multiple Teacher Networks",
        authors="You, Xu, Xu, Tao",
        year=2017,
        url="https://doi.org/10.1145/3097983.3098135",
    )
    needs = Needs(teachers=(2, None), features=True, min_batch=3, data="any")
    loss_functions = (mt_average_outputs_loss, mt_dissimilarity_loss)
    default_weights: ClassVar = {"task": 1.0, "kd": 0.9, "dissimilarity": 100.0}
    also_known_as = ("relative_dissimilarity", "multiple_teacher_networks")

    class Options(SeveralTeachersOptions):
        temperature: Temperature = 4.0
        margin: float = Field(
            0.0,
            ge=0,
            le=10,
            description="By how much the farther sample must be farther, in units of the mean distance; 0 asks for the "
            "order only.",
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        note_weights(ctx, [1 / len(ctx.teachers)] * len(ctx.teachers))
        levels = zip(ctx.student.features, *(teacher.features for teacher in ctx.teachers), strict=True)
        terms = [mt_dissimilarity_loss(own, taught, self.options.margin) for own, *taught in levels]
        logits = [teacher.logits for teacher in ctx.teachers]
        return {
            "kd": mt_average_outputs_loss(ctx.student.logits, logits, self.options.temperature),
            "dissimilarity": torch.stack(terms).mean(),
        }
