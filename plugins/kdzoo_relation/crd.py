"""Contrastive representation distillation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, NeedsError, Paper, Shapes, StepContext


def crd_loss(scores: Tensor, log_normaliser: Tensor, num_samples: int) -> Tensor:
    """Return the noise-contrastive loss of picking the first of each row's candidates, in nats, averaged over rows.

    ``scores`` are unnormalised log-probabilities, ``log_normaliser`` the log of their Z; the noise is uniform over
    ``num_samples``. Column 0 holds the sample itself.

    Shapes: (N, 1 + M), () -> scalar.
    """
    candidates = scores.shape[1] - 1
    noise = candidates / num_samples
    floor = math.log(noise + 1e-7)  # the guard is the authors'
    # log(P / (P + noise)) and log(noise / (P + noise)), without leaving the logarithm.
    margin = scores - log_normaliser - floor
    found = F.logsigmoid(margin[:, 0])
    rejected = F.logsigmoid(-margin[:, 1:]) + (math.log(noise) - floor)
    return -(found.sum() + rejected.sum()) / len(scores)


class Embedding(nn.Module):
    """A linear map to the unit sphere: (N, D_in) -> (N, D)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)

    def forward(self, pre_logits: Tensor) -> Tensor:
        return F.normalize(self.linear(pre_logits), dim=1)


class CRD(Algorithm):
    """Makes the student's embedding of a sample pick the teacher's embedding of it among those of other samples.

    Two linear layers map both networks' embeddings to one sphere. The student's embedding gets a score with each of the
    teacher's embeddings in a memory bank, for the same sample and for many (``negatives``) of other classes, and the
    other way round. The score is exp(s . t / tau) / Z (``temperature``). Each direction minimises the noise-contrastive
    loss of picking the sample itself, which bounds the mutual information of the two from below. Z is fixed at the
    first step, so that scores average to 1 / (number of training samples).

    Reads: pre_logits of student and teacher, (N, D_student) and (N, D_teacher); the samples' indices and labels.
    Loss terms: ``crd``: nats, above 0 even when student equals teacher; sum over candidates and both directions, mean
        over samples.
    Trains: the two linear layers.   State: the banks (a running mean of each sample's embeddings), Z, the labels seen.
    Raises: NeedsError for fewer than two training samples.
    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
        https://arxiv.org/abs/1910.10699, section 3, and the authors' code (RepDistiller).
    Differs from the paper: 1. negatives are drawn with replacement, never more than there are other samples; the
        authors' code replaces only when it must. 2. a sample's label is known from its first batch on; until then its
        row of the banks is noise, and may be drawn as a negative for any class. 3. banks and Z are written after the
        optimizer step, with the updated linear layers; the authors' code writes them before it.
    Defaults from: RepDistiller (dim 128, temperature 0.07, momentum 0.5, 16384 negatives, task 1, crd 0.8).
    """

    name = "crd"
    paper = Paper(
        title="Contrastive Representation Distillation",
        authors="Tian, Krishnan, Isola",
        year=2020,
        url="https://arxiv.org/abs/1910.10699",
        equation="section 3",
    )
    needs = Needs(pre_logits=True, sample_index=True)
    loss_functions = (crd_loss,)
    default_weights: ClassVar = {"task": 1.0, "crd": 0.8}
    also_known_as = ("contrastive_kd", "contrastive_representation_distillation")
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "A contrastive loss is above zero at its optimum; its layers start at random.",
    }

    class Options(AlgorithmOptions):
        dim: int = Field(128, ge=1, le=65536, description="Width of the shared embedding.")
        negatives: int = Field(
            16384, ge=1, le=1_000_000, description="Samples of other classes to compare each one with."
        )
        temperature: float = Field(
            0.07, ge=1e-4, le=1000, description="Sharpness of the scores: low is sharp; dimensionless."
        )
        momentum: float = Field(
            0.5, ge=0, lt=1, description="Share of the old row that a memory bank keeps when its sample comes by."
        )

    student_bank: Tensor  # (num_samples, dim)
    teacher_bank: Tensor  # (num_samples, dim)
    labels: Tensor  # (num_samples,), -1 where not seen yet
    log_normalisers: Tensor  # (2,), log Z of the student's and the teacher's scores
    normalised: Tensor  # (), whether they are set

    def __init__(self, options: CRD.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        samples, dim = shapes.num_samples, options.dim
        if samples < 2:
            raise NeedsError(f"algorithm 'crd': needs at least 2 training samples to contrast, got {samples}")
        self.negatives = min(options.negatives, samples - 1)
        self.student_embedding = Embedding(shapes.student.pre_logits, dim)
        self.teacher_embedding = Embedding(shapes.teacher.pre_logits, dim)
        bound = math.sqrt(3 / dim)  # rows of length 1 on average
        self.register_buffer("student_bank", torch.empty(samples, dim).uniform_(-bound, bound))
        self.register_buffer("teacher_bank", torch.empty(samples, dim).uniform_(-bound, bound))
        self.register_buffer("labels", torch.full((samples,), -1))
        self.register_buffer("log_normalisers", torch.zeros(2))
        self.register_buffer("normalised", torch.tensor(False))

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"crd": self.contrast(ctx.student.pre_logits, ctx.teacher.pre_logits, self.candidates(ctx))}

    @torch.no_grad()
    def update(self, ctx: StepContext) -> None:
        self.normalise(ctx.student.pre_logits, ctx.teacher.pre_logits, self.candidates(ctx))
        self.remember(ctx.student.pre_logits, ctx.teacher.pre_logits, ctx.batch.index)
        self.labels[ctx.batch.index] = ctx.batch.targets

    def candidates(self, ctx: StepContext) -> Tensor:
        """Indices of each sample itself, first, and of negatives drawn from all other classes: (N, 1 + M)."""
        index, targets = ctx.batch.index, ctx.batch.targets
        labels = self.labels.index_copy(0, index, targets)
        by_class = labels.argsort(stable=True)
        ordered = labels[by_class]
        first = torch.searchsorted(ordered, targets)
        count = torch.searchsorted(ordered, targets, right=True) - first
        others = (len(labels) - count).clamp_min(1)
        draw = torch.randint(2**62, (len(index), self.negatives), generator=ctx.random("negatives")).to(index.device)
        place = draw % others[:, None]
        place = place + count[:, None] * (place >= first[:, None])  # step over the sample's own class
        return torch.cat([index[:, None], by_class[place.clamp_max(len(labels) - 1)]], dim=1)

    def contrast(self, student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
        """The loss of both directions, with the stored constants, or before the first step the ones to be stored."""
        scores = self._scores(student, teacher, candidates)
        fresh = self._log_normalisers(scores)
        known = torch.where(self.normalised, self.log_normalisers, fresh)
        terms = [crd_loss(side, log_z, self.shapes.num_samples) for side, log_z in zip(scores, known, strict=True)]
        return terms[0] + terms[1]

    @torch.no_grad()
    def normalise(self, student: Tensor, teacher: Tensor, candidates: Tensor) -> None:
        """Fix the two constants Z, once."""
        fresh = self._log_normalisers(self._scores(student, teacher, candidates))
        self.log_normalisers.copy_(torch.where(self.normalised, self.log_normalisers, fresh))
        self.normalised.fill_(True)

    @torch.no_grad()
    def remember(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        """Move the samples' rows of both banks towards their embeddings."""
        for bank, new in (
            (self.student_bank, self.student_embedding(student)),
            (self.teacher_bank, self.teacher_embedding(teacher.detach())),
        ):
            bank[index] = F.normalize(torch.lerp(new, bank[index], self.options.momentum), dim=1)

    def _scores(self, student: Tensor, teacher: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scores of student against teacher bank and of teacher against student bank: (N, 1 + M) each."""
        # All products first: cheaper than gathering a row of the bank for each candidate.
        sides = (
            self.student_embedding(student) @ self.teacher_bank.T,
            self.teacher_embedding(teacher.detach()) @ self.student_bank.T,
        )
        of_student, of_teacher = (side.gather(1, candidates) / self.options.temperature for side in sides)
        return of_student, of_teacher

    def _log_normalisers(self, scores: tuple[Tensor, Tensor]) -> Tensor:
        """log Z of both sides, such that scores average to 1 / num_samples: (2,)."""
        return torch.stack(
            [s.detach().logsumexp(dim=(0, 1)) - math.log(s.numel() / self.shapes.num_samples) for s in scores]
        )
