"""Densely guided distillation over teacher assistants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdzoo.api import Needs, Outputs, Paper, StageResult, StepContext, Temperature, soft_target_loss
from kdzoo_assistant.comparison import Assisted, AssistedOptions


class DGKD(Assisted):
    """Makes each assistant and the student match the teacher and all larger assistants at once.

    In a chain each assistant learns only from the one before, and inherits its mistakes. Here assistant i learns from
    the teacher and the assistants 0 to i - 1, and the student from all of them: L = sum over guides g of T^2 KL(p_g(T)
    || p(T)), with T ``temperature``. As a regulariser each step leaves out ``drop`` of the guides at random (stochastic
    teaching). The recipe lists the assistants from the largest to the smallest.

    Reads: logits of the network that is trained and of all its guides, each (N, K).
    Loss terms: ``kd``: nats times T^2, at least 0, 0 when the network answers as all guides of the step do; sum over
        classes and guides, mean over samples.
    Trains: nothing of its own; one stage for each assistant and each student. State: none.
    Raises: NeedsError for ``assistants: each`` without a validation split.
    Source: Son, Na, Choi, Hwang, "Densely Guided Knowledge Distillation using Multiple Teacher Assistants", ICCV 2021,
        https://arxiv.org/abs/2009.08825, section 3, and the authors' code (DGKD).
    Differs from the paper: 1. one guide always stays, so the first assistant learns from the teacher in every step; the
        authors' code can drop all. 2. the divergence is averaged over samples; the authors' code averages over samples
        and classes: their lambda is ``loss_weights: {task: 1 - lambda, kd: lambda / K}`` here, for K classes. 3.
        temperature, weights and ``drop`` are the same for all stages. 4. an assistant is selected on validation data,
        as the recipe says; the authors' code keeps the epoch that does best on test data.
    Defaults from: the authors' code (temperature 5, drop 1); ``kd`` (task 0.1, kd 0.9).
    """

    name = "dgkd"
    paper = Paper(
        title="Densely Guided Knowledge Distillation using Multiple Teacher Assistants",
        authors="Son, Na, Choi, Hwang",
        year=2021,
        url="https://arxiv.org/abs/2009.08825",
        equation="section 3",
    )
    needs = Needs(teachers=1, assistants=(1, None), data="any")
    loss_functions = (soft_target_loss,)
    default_weights: ClassVar = {"task": 0.1, "kd": 0.9}
    also_known_as = ("densely_guided_kd", "dense_guidance")

    class Options(AssistedOptions):
        temperature: Temperature = 5.0
        drop: int = Field(
            1,
            ge=0,
            le=100,
            description="How many guides each step leaves out at random; at least one always stays. 0 for none.",
        )

    @classmethod
    def guides(cls, teacher: StageResult, assistants: Sequence[StageResult]) -> tuple[StageResult, ...]:
        return (teacher, *assistants)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        logits = [guide.logits for guide in self.guides_of_step(ctx)]
        return {"kd": soft_target_loss(ctx.student.logits, *logits, temperature=self.options.temperature)}

    def guides_of_step(self, ctx: StepContext) -> list[Outputs]:
        """The guides of this step: all but ``drop`` of them."""
        order = torch.randperm(len(ctx.teachers), generator=ctx.random("guides")).tolist()
        kept = max(1, len(order) - self.options.drop)
        return [ctx.teachers[i] for i in sorted(order[:kept])]
