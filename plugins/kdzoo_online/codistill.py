"""Codistillation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    FinishedRun,
    Needs,
    NeedsError,
    Paper,
    ReportItem,
    Shapes,
    StagePlan,
    Stages,
    StepContext,
    Update,
    mean_prediction,
)
from kdzoo_online.comparison import peers_and_their_ensemble


def codistill_loss(logits: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Return the divergence KL(mean of the others' probabilities || this network), in nats, mean over samples.

    Only ``logits`` receive a gradient.

    Shapes: ``logits`` and each of ``others`` (N, K) -> scalar.
    """
    target = mean_prediction(others).detach()
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="batchmean", log_target=True)


class Codistill(Algorithm):
    """Makes each of several networks of one architecture match the mean prediction of the others.

    All start from different weights and learn the same task together. After a burn-in of ``burn_in_epochs`` on the
    labels alone, network i of M adds KL(mean over j != i of p_j || p_i). The paper's networks train on different
    machines and see only older predictions of each other. So with ``stale`` the others' predictions are those of their
    last visit to a sample, an epoch ago. The student is the first of the group, and the only one delivered.

    Reads: logits of the student and of every peer, each (N, K), the labels, and with ``stale`` the sample index.
    Loss terms: ``codistill``: nats, 0 when a network predicts like the mean of the others; mean over the batch. During
        the burn-in it is only logged.
    Trains: nothing of its own; the peers are networks of the recipe.
    State: with ``stale``, each network's last logits of every training sample.
    Raises: NeedsError if a peer is of another architecture than the student.
    Source: Anil, Pereyra, Passos, Ormandi, Dahl, Hinton, "Large scale distributed neural network training through
        online distillation", ICLR 2018, https://arxiv.org/abs/1804.03235, algorithm 1.
    Differs from the paper: 1. all networks see the same batches, which the paper tries too; it gains most if each group
        of machines reads data of its own. 2. stale predictions are stored ones, an epoch old; the paper computes them
        with copies of the weights that are exchanged now and then. 3. the divergence, which differs from the
        cross-entropy by a term without gradient.
    Defaults from: our own choice; the paper's burn-in is counted in steps of its tasks.
    """

    name = "codistill"
    paper = Paper(
        title="Large scale distributed neural network training through online distillation",
        authors="Anil, Pereyra, Passos, Ormandi, Dahl, Hinton",
        year=2018,
        url="https://arxiv.org/abs/1804.03235",
        equation="algorithm 1",
    )
    needs = Needs(teachers=0, peers=(1, None), sample_index=True, data="any")
    loss_functions = (codistill_loss,)
    default_weights: ClassVar = {"task": 1.0, "codistill": 1.0}
    also_known_as = ("codistillation", "online_distillation")
    tiny_recipe: ClassVar = {"algorithm": {"options": {"burn_in_epochs": 0}}}  # the suite trains for one epoch only

    class Options(AlgorithmOptions):
        burn_in_epochs: int = Field(
            1, ge=0, le=100_000, description="Epochs on the labels alone, before networks learn from each other."
        )
        stale: bool = Field(
            False,
            description="Learn from what the others answered at their last visit to a sample, in place of what they "
            "answer now; needs memory for all logits of the training split, and a burn-in of at least one epoch.",
        )

    def __init__(self, options: Codistill.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        if options.stale and not options.burn_in_epochs:
            raise NeedsError("algorithm 'codistill': stale predictions need burn_in_epochs: 1 or more, got 0")
        samples = shapes.num_samples if options.stale else 0
        networks = 1 + len(shapes.peers)
        self.remembered: Tensor
        self.seen: Tensor
        self.register_buffer("remembered", torch.zeros(networks, samples, shapes.num_classes))
        self.register_buffer("seen", torch.zeros(samples, dtype=torch.bool))

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        for i, peer in enumerate(plan.peers):
            if (peer.name, peer.args) != (plan.student.name, plan.student.args):
                raise NeedsError(
                    f"algorithm 'codistill': peer {i} is '{peer.name}' with args {dict(peer.args)}, the student "
                    f"'{plan.student.name}' with args {dict(plan.student.args)}; all are of one architecture, 'dml' "
                    "takes different ones"
                )
        return (yield from super().stages(plan))

    def step(self, ctx: StepContext) -> Iterator[Update]:
        names = ["student", *(f"peer_{i}" for i in range(len(ctx.peers)))]
        logits = [ctx.student.logits, *(peer.logits for peer in ctx.peers)]
        predicted = self.predictions(ctx, logits)
        for i, (name, own) in enumerate(zip(names, logits, strict=True)):
            loss = codistill_loss(own, predicted[:i] + predicted[i + 1 :])
            burnt_in = ctx.clock.epoch >= self.options.burn_in_epochs
            yield Update(name, {"task": ctx.task_loss(own), "codistill": loss if burnt_in else loss.detach()})

    def predictions(self, ctx: StepContext, logits: Sequence[Tensor]) -> list[Tensor]:
        """The prediction of each network: its logits now, or the stored ones of samples that it has seen."""
        now = [own.detach() for own in logits]
        if not self.options.stale:
            return now
        seen = self.seen[ctx.batch.index, None]
        return [torch.where(seen, self.remembered[i, ctx.batch.index], own) for i, own in enumerate(now)]

    def update(self, ctx: StepContext) -> None:
        if self.options.stale:
            for i, outputs in enumerate((ctx.student, *ctx.peers)):
                self.remembered[i, ctx.batch.index] = outputs.logits
            self.seen[ctx.batch.index] = True

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        return peers_and_their_ensemble(run)
