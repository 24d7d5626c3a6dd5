"""What both algorithms of the family do: first learn from pairs without labels, then from the few labels."""

from __future__ import annotations

from pydantic import Field

from kdzoo.api import AlgorithmOptions, NeedsError, Stage, StagePlan, Stages


class PairsOptions(AlgorithmOptions):
    """Options of an algorithm that learns from unlabelled pairs."""

    share: float = Field(
        0.5, gt=0, lt=1, description="Share of the recipe's epochs for the unlabelled pairs; the rest is for labels."
    )


def transfer_then_finetune(plan: StagePlan) -> Stages:
    """Plan a stage over all pairs, labels withheld, and one over the labelled samples that starts from it.

    Both share the recipe's epochs, so that together they take as many steps as the control. Raises NeedsError for
    fewer than two epochs.
    """
    epochs = int(plan.train["epochs"])
    if epochs < 2:
        raise NeedsError(
            f"algorithm '{plan.own.name}': train.epochs is {epochs}; at least 2 would be right, one over the pairs and "
            "one over the labels"
        )
    pairs = min(max(1, round(plan.options.share * epochs)), epochs - 1)
    transfer = yield Stage("transfer", plan.student, plan.own, plan.teachers, train={"epochs": pairs})
    return (yield Stage("student", plan.student, start=transfer, train={"epochs": epochs - pairs}))


#: A stage is an epoch at least.
TINY_RECIPE = {"train": {"epochs": 2}}
