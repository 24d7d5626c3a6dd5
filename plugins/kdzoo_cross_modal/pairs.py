"""The two stages of this family's algorithms: pairs without labels, then the few labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from kdzoo.api import Algorithm, AlgorithmOptions, NeedsError, Stage, StagePlan, Stages, StepContext, Update


class PairsOptions(AlgorithmOptions):
    """Options of every algorithm of this family."""

    share: float = Field(
        0.5, gt=0, lt=1, description="Share of the recipe's epochs for the unlabelled pairs; the rest is for labels."
    )


class Pairs(Algorithm):
    """Base of this family: a stage over all pairs without labels, then one over the labelled samples.

    Both share the recipe's epochs, so together they take as many steps as the control.
    """

    tiny_recipe: ClassVar = {"train": {"epochs": 2}}  # a stage takes at least one epoch

    Options = PairsOptions

    def step(self, ctx: StepContext) -> Iterator[Update]:
        yield Update("student", self.losses(ctx))  # there are no labels for a task

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        epochs = int(plan.train["epochs"])
        if epochs < 2:
            raise NeedsError(
                f"algorithm '{cls.name}': train.epochs is {epochs}; at least 2 would be right, one over the pairs and "
                "one over the labels"
            )
        pairs = min(max(1, round(plan.options.share * epochs)), epochs - 1)
        transfer = yield Stage("transfer", plan.student, plan.own, plan.teachers, train={"epochs": pairs})
        return (yield Stage("student", plan.student, start=transfer, train={"epochs": epochs - pairs}))
