"""Distillation from a stronger teacher."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, Paper, StepContext, Temperature


def dist_inter_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 times (1 - correlation) of each sample's class probabilities, averaged over samples.

    Only ``student_logits`` receive a gradient; correlations are Pearson's.

    Shapes: (N, K), (N, K) -> scalar in [0, 2 * temperature^2].
    """
    student = F.softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * (1 - _correlations(student, teacher).mean())


def dist_intra_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 times (1 - correlation) of each class's probabilities over the batch, averaged over classes.

    Only ``student_logits`` receive a gradient; correlations are Pearson's.

    Shapes: (N, K), (N, K) -> scalar in [0, 2 * temperature^2].
    """
    student = F.softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * (1 - _correlations(student.T, teacher.T).mean())


def _correlations(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of each row of two matrices: (N, K), (N, K) -> (N,); 0 where a row is constant."""
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    # The guard is the authors': rows that hardly vary count as uncorrelated.
    return (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1) + 1e-8)


class DIST(Algorithm):
    """Makes the student's probabilities correlate with the teacher's, over the classes and over the batch.

    A small student cannot copy the answers of a much stronger teacher, but it can keep their relations: which classes
    are likelier for a sample (inter-class), and which samples are likelier for a class (intra-class). With d = 1 -
    Pearson's correlation, which no shift or positive scale changes, and softmax at temperature tau (``temperature``), L
    = beta * tau^2 * mean_i d(y_S[i, :], y_T[i, :]) + gamma * tau^2 * mean_j d(y_S[:, j], y_T[:, j]); beta and gamma are
    ``loss_weights.inter`` and ``loss_weights.intra``.

    Reads: logits of student and teacher, each (N, K).
    Loss terms: ``inter``, ``intra``: dimensionless times tau^2, from 0 to 2 tau^2, 0 when student equals teacher,
        except for rows that hardly vary; mean over samples and over classes.
    Trains: nothing of its own.   State: none.
    Raises: NeedsError (by the core) with two classes or batches of fewer than three samples, where every correlation
        is 1, -1 or none.
    Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
        https://arxiv.org/abs/2205.10536, section 4, and the authors' code (DIST_KD, image_classification_sota).
    Differs from the paper: nothing known; the guard of 1e-8 in the correlation is that of the authors' code.
    Defaults from: the authors' code for image classification (temperature 1, task 1, inter 1, intra 1).
    """

    name = "dist"
    paper = Paper(
        title="Knowledge Distillation from A Stronger Teacher",
        authors="Huang, You, Wang, Qian, Xu",
        year=2022,
        url="https://arxiv.org/abs/2205.10536",
        equation="section 4",
    )
    needs = Needs(min_classes=3, min_batch=3, of_teacher="logits", data="any")
    loss_functions = (dist_inter_loss, dist_intra_loss)
    default_weights: ClassVar = {"task": 1.0, "inter": 1.0, "intra": 1.0}
    also_known_as = ("dist_kd", "stronger_teacher")

    class Options(AlgorithmOptions):
        temperature: Temperature = 1.0

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        logits = ctx.student.logits, ctx.teacher.logits, self.options.temperature
        return {"inter": dist_inter_loss(*logits), "intra": dist_intra_loss(*logits)}
