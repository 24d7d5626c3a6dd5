"""Self attention distillation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, NeedsError, Paper, Shapes, StepContext


def sad_loss(features: Sequence[Tensor], train_target: bool = False) -> Tensor:
    """Return the squared difference of each level's attention map to the next deeper one's: mean over samples and
    positions, sum over pairs.

    A map is the sum of squares over channels, brought to the shallower level's size, softmaxed over all positions. The
    deeper map receives a gradient only with ``train_target``.

    Shapes: each of ``features``, shallow to deep, (N, C, H, W) -> scalar.
    """
    terms = []
    for shallow, deep in itertools.pairwise(features):
        size = (shallow.shape[2], shallow.shape[3])
        target = sad_attention(deep if train_target else deep.detach(), size)
        terms.append(F.mse_loss(sad_attention(shallow, size), target))
    return torch.stack(terms).sum()


def sad_attention(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the attention map of each sample, positive and of sum 1: (N, C, H, W) -> (N, h * w)."""
    attention = features.square().sum(dim=1, keepdim=True)
    if attention.shape[2:] != size:
        attention = F.interpolate(attention, size, mode="bilinear")
    return F.softmax(attention.flatten(1), dim=1)


class SAD(Algorithm):
    """Makes each level of a network look where its next deeper level looks.

    The map of a level is the sum of squared activations over channels, enlarged to the size of the level before it and
    softmaxed over positions. L = sum over levels m of the mean squared difference of map m and map m + 1, where the
    deeper map is fixed. It needs nothing but the network itself.

    Reads: features of the student at all its levels, each (N, C, H, W).
    Loss terms: ``sad``: dimensionless, at least 0, 0 when all maps agree; at most 2 / (H * W) a pair; mean over samples
        and positions, sum over pairs of levels.
    Trains: nothing of its own.   State: none.
    Raises: NeedsError if the student has fewer than two levels, or all but the deepest are a single pixel, whose map is
        always 1.
    Source: Hou, Ma, Liu, Loy, "Learning Lightweight Lane Detection CNNs by Self Attention Distillation", ICCV 2019,
        https://arxiv.org/abs/1908.00821, section 3.1.
    Differs from the paper: 1. it was made to segment lanes; here it is used on classifiers. 2. the paper adds the term
        late in training, when attention means something; here it counts from the start unless ``begin`` says otherwise.
    Defaults from: the paper (0.1); public code has the same.
    """

    name = "sad"
    paper = Paper(
        title="Learning Lightweight Lane Detection CNNs by Self Attention Distillation",
        authors="Hou, Ma, Liu, Loy",
        year=2019,
        url="https://arxiv.org/abs/1908.00821",
        equation="section 3.1",
    )
    needs = Needs(teachers=0, features=True)
    loss_functions = (sad_loss,)
    default_weights: ClassVar = {"task": 1.0, "sad": 0.1}
    also_known_as = ("self_attention_distillation",)

    class Options(AlgorithmOptions):
        begin: float = Field(
            0.0, ge=0, lt=1, description="Share of training before the term counts; until then it is only logged."
        )
        train_target: bool = Field(
            False, description="Let the gradient into the deeper map too, as some public code does."
        )

    def __init__(self, options: SAD.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        levels = shapes.student.levels
        if len(levels) < 2:
            raise NeedsError(
                f"algorithm 'sad': the student has {len(levels)} level of features, and none that could teach it; "
                "choose a model with more levels"
            )
        if all(level.height * level.width == 1 for level in levels[:-1]):
            raise NeedsError(
                "algorithm 'sad': every level is a single pixel, whose attention map is always 1; use larger images or "
                "a network with shallower levels"
            )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        loss = sad_loss(ctx.student.features, self.options.train_target)
        return {"sad": loss if ctx.clock.progress >= self.options.begin else loss.detach()}
