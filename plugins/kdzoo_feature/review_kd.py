"""Knowledge review: each level of the teacher teaches the student's level and all deeper ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Level, Needs, Paper, Shapes, StepContext

#: Sizes that maps are pooled to for the hierarchical context loss.
POOLED = (4, 2, 1)


def review_kd_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Return the hierarchical context loss: squared differences at full size and pooled to 4, 2 and 1 pixels a side.

    Full size weighs 1, each coarser size that is less than the height half of the one before, over their sum. Mean over
    samples and elements, sum over levels. Only ``student_features`` receive a gradient.

    Shapes: for each level two of the same, (N, C, H, W) -> scalar in squared activation units.
    """
    pairs = zip(student_features, teacher_features, strict=True)
    return torch.stack([_context_loss(student, teacher.detach()) for student, teacher in pairs]).sum()


def _context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    sizes = [size for size in POOLED if size < student.shape[2]]
    terms = [F.mse_loss(student, teacher)]
    terms += [F.mse_loss(F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)) for size in sizes]
    weights = [0.5**i for i in range(len(terms))]
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum() / sum(weights)


class Fusion(nn.Module):
    """Attention-based fusion: one level of the student with the output of the deeper levels.

    Shapes: (N, C_student, H, W) and the deeper (N, width, H', W') -> to compare (N, C_teacher, H_teacher, W_teacher),
    to hand on (N, width, H_teacher, W_teacher).
    """

    def __init__(self, student: Level, teacher: Level, width: int, deepest: bool) -> None:
        super().__init__()
        self.size = teacher.height, teacher.width
        # These modules are never evaluated, so nothing would read running statistics.
        enter = nn.Conv2d(student.channels, width, kernel_size=1, bias=False)
        leave = nn.Conv2d(width, teacher.channels, kernel_size=3, padding=1, bias=False)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(width, track_running_stats=False))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(teacher.channels, track_running_stats=False))
        self.attention = None if deepest else nn.Conv2d(2 * width, 2, kernel_size=1)
        for conv in (enter, leave):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, features: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        fused = self.enter(features)
        if self.attention is not None:
            assert deeper is not None, "only the deepest level has nothing below it"
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            own, other = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid().split(1, dim=1)
            fused = own * fused + other * deeper
        if fused.shape[2:] != self.size:
            fused = F.interpolate(fused, self.size, mode="nearest")
        return self.leave(fused), fused


class ReviewKD(Algorithm):
    """Makes the student's maps, each fused with all deeper ones, match the teacher's maps at several sizes.

    A level of the teacher should teach not only the student's level of the same depth but the deeper ones too. From the
    deepest level to the shallowest, a fusion module (ABF) mixes each of the student's maps with the output of the
    deeper levels, by an attention over the two, and projects the mixture to the teacher's shape. The hierarchical
    context loss (HCL) compares the two at full size and after pooling to 4, 2 and 1 pixels a side. The embedding takes
    part as the deepest level, a map of one pixel.

    Reads: features of student and teacher at all paired levels, each (N, C, H, W); pre_logits of both, each (N, D).
    Loss terms: ``review``: squared activation units, at least 0, 0 when every fused map equals the teacher's; mean over
        elements, sum over levels. In epoch e, counted from 0, it is multiplied by min((e + 1) / ``warmup_epochs``, 1).
    Trains: one fusion module per level. State: none.
    Raises: NeedsError if no levels can be paired (by the core).
    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021,
        https://arxiv.org/abs/2104.09044, section 3, and the authors' code (ReviewKD).
    Differs from the paper: 1. the teacher's maps are those after each level's last activation, the authors' code takes
        them before it. 2. the warm-up is at 1 / ``warmup_epochs`` in the first epoch; the authors' begins with 0. 3.
        maps need not be square.
    Defaults from: the authors' CIFAR-100 code (task 1, review 1, 20 of 240 epochs of warm-up, at most 512 channels);
        its weight differs from pair to pair, from 0.6 to 8.
    """

    name = "review_kd"
    paper = Paper(
        title="Distilling Knowledge via Knowledge Review",
        authors="Chen, Liu, Zhao, Jia",
        year=2021,
        url="https://arxiv.org/abs/2104.09044",
        equation="section 3",
    )
    # The embedding is a one-pixel map to batch norm.
    needs = Needs(features=True, pre_logits=True, min_batch=2, data="any")
    loss_functions = (review_kd_loss,)
    default_weights: ClassVar = {"task": 1.0, "review": 1.0}
    also_known_as = ("reviewkd", "knowledge_review", "review")
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "The fusion modules between the maps start from random weights.",
    }

    class Options(AlgorithmOptions):
        warmup_epochs: int = Field(
            20,
            ge=0,
            le=100_000,
            description="The term grows linearly to full weight over this many epochs, 0 for none. Chosen for 240 "
            "epochs: lower it with shorter trainings, which otherwise end before full weight.",
        )
        max_width: int = Field(
            512,
            ge=1,
            le=65536,
            description="Most channels of the fused maps; they have as many as the student's embedding otherwise.",
        )

    def __init__(self, options: ReviewKD.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        student, teacher = (
            [*own.levels, Level("pre_logits", own.pre_logits, 1, 1, stride=0)]
            for own in (shapes.student, shapes.teacher)
        )
        width = min(options.max_width, shapes.student.pre_logits)
        self.fusions = nn.ModuleList(
            Fusion(*pair, width, deepest=depth == len(student) - 1)
            for depth, pair in enumerate(zip(student, teacher, strict=True))
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        reviewed = self.review([*ctx.student.features, _as_map(ctx.student.pre_logits)])
        warmup = min((ctx.clock.epoch + 1) / max(1, self.options.warmup_epochs), 1.0)
        teacher = [*ctx.teacher.features, _as_map(ctx.teacher.pre_logits)]
        return {"review": warmup * review_kd_loss(reviewed, teacher)}

    def review(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the student's maps from the deepest up; returns them shallow to deep, in the teacher's shapes."""
        reviewed: list[Tensor] = []
        deeper: Tensor | None = None
        for own, fusion in zip(reversed(features), reversed(self.fusions), strict=True):
            compared, deeper = fusion(own, deeper)
            reviewed.insert(0, compared)
        return reviewed


def _as_map(pre_logits: Tensor) -> Tensor:
    return pre_logits[:, :, None, None]
