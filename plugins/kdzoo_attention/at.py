"""Attention transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, NeedsError, Paper, Shapes, StepContext


def at_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], p: int) -> Tensor:
    """Return the squared difference of attention maps: mean over samples and positions, sum over levels.

    A map is the mean over channels of the activations to the even power ``p``, scaled to length 1 over its positions.
    Where sizes differ, the larger features are averaged to the smaller size first. Only ``student_features`` receive a
    gradient.

    Shapes: for each level (N, C_student, H, W), (N, C_teacher, H', W') -> scalar.
    """
    pairs = list(zip(student_features, teacher_features, strict=True))
    sizes = [(min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])) for s, t in pairs]
    terms = [
        F.mse_loss(_attention(student, size, p), _attention(teacher.detach(), size, p))
        for (student, teacher), size in zip(pairs, sizes, strict=True)
    ]
    return torch.stack(terms).sum()


def _attention(features: Tensor, size: tuple[int, int], p: int) -> Tensor:
    """The attention map of each sample: (N, C, H, W) -> (N, h * w), of length 1, or 0 where all activations are 0."""
    if features.shape[2:] != size:
        features = F.adaptive_avg_pool2d(features, size)
    # The map does not depend on the features' scale; this one keeps their powers within float32.
    largest = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    features = features / largest.clamp_min(torch.finfo(features.dtype).tiny)
    return F.normalize(features.pow(p).mean(dim=1).flatten(1), dim=1)


class AT(Algorithm):
    """Makes the student's attention maps (the places with large activations) match the teacher's.

    The map of a level is Q = sum over channels of A_c^p (``p``), scaled to length 1; over all paired levels j, L = sum
    over j of the mean of (Q_S^j - Q_T^j)^2. The sum removes the channels, so the two networks may have different widths
    and need no projector.

    Reads: features of student and teacher at all paired levels, each (N, C, H, W).
    Loss terms: ``at``: dimensionless, at least 0, 0 when the maps agree, which they do when student equals teacher;
        at most 4 / (H * W) a level; mean over samples and positions, sum over levels.
    Trains: nothing of its own.   State: none.
    Raises: NeedsError if no levels can be paired (by the core), or every pair is a single pixel, whose map is always 1.
    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
        Networks via Attention Transfer", ICLR 2017, https://arxiv.org/abs/1612.03928, section 3.1, and the
        authors' code.
    Differs from the paper: 1. the mean of squares, as in the authors' code; the paper has the length of the difference.
        2. ``p`` is even, so no absolute value is needed. 3. maps of different size are averaged to the smaller one. 4.
        the activations are those after each level's last block, whatever the backbone.
    Defaults from: mdistiller and RepDistiller (p 2, task 1, at 1000); the authors' code has the same 1000 as beta.
    """

    name = "at"
    paper = Paper(
        title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer",
        authors="Zagoruyko, Komodakis",
        year=2017,
        url="https://arxiv.org/abs/1612.03928",
        equation="section 3.1",
    )
    needs = Needs(features=True, data="any")
    loss_functions = (at_loss,)
    default_weights: ClassVar = {"task": 1.0, "at": 1000.0}
    also_known_as = ("attention_transfer", "attention")

    class Options(AlgorithmOptions):
        p: int = Field(
            2, ge=2, le=16, multiple_of=2, description="Power of the activations: larger looks at the peaks only; even."
        )

    def __init__(self, options: AT.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        pairs = zip(shapes.student.levels, shapes.teacher.levels, strict=True)
        if all(min(s.height, t.height) * min(s.width, t.width) == 1 for s, t in pairs):
            raise NeedsError(
                "algorithm 'at': every paired level is a single pixel, whose attention map is always 1; "
                "use larger images or a network with shallower levels"
            )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"at": at_loss(ctx.student.features, ctx.teacher.features, self.options.p)}
