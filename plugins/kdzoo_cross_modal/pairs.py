"""What both algorithms of the family do: first learn from pairs without labels, then from the few labels."""

from __future__ import annotations

from pydantic import Field

from kdzoo.api import AlgorithmOptions, Stage, StagePlan, Stages


class PairsOptions(AlgorithmOptions):
    """Options of an algorithm that learns from unlabelled pairs."""

    transfer_epochs: int | None = Field(
        None, ge=1, description="Epochs over the unlabelled pairs; null: as many as the recipe trains on labels."
    )


def transfer_then_finetune(plan: StagePlan) -> Stages:
    """Plan a stage over all pairs, labels withheld, and one over the labelled samples that starts from it.

    The second has the whole budget of the recipe, as the control has; the first comes on top of it.
    """
    epochs = {} if plan.options.transfer_epochs is None else {"epochs": plan.options.transfer_epochs}
    transfer = yield Stage("transfer", plan.student, plan.own, plan.teachers, train=epochs)
    return (yield Stage("student", plan.student, start=transfer))
