"""Relational knowledge distillation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Algorithm, Needs, Paper, StepContext, sample_distances


def rkd_distance_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Return the smooth L1 difference of pairwise distances, each in units of its mean; averaged over N * N pairs.

    Only ``student_embedding`` receives a gradient. Fewer than three samples have nothing to compare: 0.

    Shapes: (N, D_student), (N, D_teacher) -> scalar.
    """
    return F.smooth_l1_loss(_distances(student_embedding), _distances(teacher_embedding.detach()))


def rkd_angle_loss(student_embedding: Tensor, teacher_embedding: Tensor, shortest: float = 1e-12) -> Tensor:
    """Return the smooth L1 difference of the cosines at every corner of every triangle; averaged over N^3 triples.

    Only ``student_embedding`` receives a gradient, which grows as samples come close, up to the distance ``shortest``.
    Fewer than three samples make no triangle: 0.

    Shapes: (N, D_student), (N, D_teacher) -> scalar.
    """
    return F.smooth_l1_loss(_cosines(student_embedding, shortest), _cosines(teacher_embedding.detach(), shortest))


def _distances(embedding: Tensor) -> Tensor:
    """All pairwise distances over their mean: (N, D) -> (N, N), 0 on the diagonal."""
    samples = len(embedding)
    distances = sample_distances(embedding).clamp_min(1e-6)
    distances = distances * (1 - torch.eye(samples, dtype=distances.dtype, device=distances.device))
    mean = distances.sum() / max(1, samples * (samples - 1))
    return distances / mean.clamp_min(1e-6)


def _cosines(embedding: Tensor, shortest: float) -> Tensor:
    """The cosine at corner i between samples j and k: (N, D) -> (N, N, N), 0 where a side has no length."""
    sides = F.normalize(embedding[None, :, :] - embedding[:, None, :], dim=2, eps=shortest)
    return sides @ sides.transpose(1, 2)


class RKD(Algorithm):
    """Makes the distances and angles between the student's embeddings of a batch match the teacher's.

    Not where a sample lies, but how samples lie to each other: a distance-wise term compares the distances of all
    pairs, in units of their mean, an angle-wise term the cosines at the corners of all triangles, both by the Huber
    (smooth L1) loss. The two networks may be of different widths, and nothing has to be projected.

    Reads: pre_logits of student and teacher, (N, D_student) and (N, D_teacher).
    Loss terms: ``distance``: dimensionless, 0 when the distances agree up to scale; mean over N * N pairs.
        ``angle``: dimensionless, at most 1.5, 0 when the angles agree; mean over N^3 triples.
        Both are 0 when student equals teacher, or is it turned, shifted or scaled.
    Trains: nothing of its own.   State: none.
    Raises: NeedsError (by the core) for batches of fewer than three samples: a pair alone is always at its own mean
        distance and makes no angle, so that both terms would always be 0.
    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068,
        section 3.2, and the authors' code.
    Differs from the paper: 1. the means count the degenerate pairs and triples too (i = j and so on), which add 0, as
        in the authors' code. 2. the gradient of the angles stops growing where two embeddings are closer than 1e-4; the
        authors' code lets it grow to 1e12, and one pair of coinciding embeddings would wreck the student.
    Defaults from: the CIFAR-100 settings of RepDistiller and mdistiller (task 1, distance 25, angle 50).
    """

    name = "rkd"
    paper = Paper(
        title="Relational Knowledge Distillation",
        authors="Park, Kim, Lu, Cho",
        year=2019,
        url="https://arxiv.org/abs/1904.05068",
        equation="section 3.2",
    )
    needs = Needs(pre_logits=True, min_batch=3, data="any")
    loss_functions = (rkd_distance_loss, rkd_angle_loss)
    default_weights: ClassVar = {"task": 1.0, "distance": 25.0, "angle": 50.0}
    also_known_as = ("relational_kd", "rkd_da")

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        embeddings = ctx.student.pre_logits, ctx.teacher.pre_logits
        return {"distance": rkd_distance_loss(*embeddings), "angle": rkd_angle_loss(*embeddings, shortest=1e-4)}
