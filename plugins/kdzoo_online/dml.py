"""Deep mutual learning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from torch import Tensor

from kdzoo.api import Algorithm, FinishedRun, Needs, Paper, ReportItem, StepContext, Update, soft_target_loss
from kdzoo_online.comparison import peers_and_their_ensemble


def dml_loss(logits: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Average, over the other networks, the divergence KL(other || this one), in nats.

    Only ``logits`` receive a gradient: the others are targets. There is no temperature.

    Shapes: ``logits`` and each of ``others`` (N, K) -> scalar.
    """
    return soft_target_loss(logits, *others) / len(others)


class DML(Algorithm):
    """Makes each of several untrained networks match the current predictions of all the others.

    There is no teacher. Network k of M minimises its own cross-entropy plus the mean imitation of the rest,
    L_k = L_C + 1/(M-1) * sum over l != k of KL(p_l || p_k). Every step updates all M networks, the student first;
    in the end the student is kept and its peers are stored beside it. The report measures every network and
    their ensemble.

    Reads: logits of the student and of every peer, each (N, K).
    Loss terms: ``dml``: nats, 0 when all networks agree; mean over the batch and over the other networks.
    Trains: nothing of its own; the peers are networks of the recipe.   State: none.
    Raises: nothing.
    Source: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, https://arxiv.org/abs/1706.00384.
    Differs from the paper: 1. all networks of a step learn from predictions made before any of them was updated, as in
        public implementations; the paper predicts anew with a network that has just been updated.
    Defaults from: the paper's equations, which weigh both terms by 1.
    """

    name = "dml"
    paper = Paper(
        title="Deep Mutual Learning",
        authors="Zhang, Xiang, Hospedales, Lu",
        year=2018,
        url="https://arxiv.org/abs/1706.00384",
    )
    needs = Needs(teachers=0, peers=(1, None), data="any")
    loss_functions = (dml_loss,)
    default_weights: ClassVar = {"task": 1.0, "dml": 1.0}
    also_known_as = ("deep_mutual_learning", "mutual_learning")

    def step(self, ctx: StepContext) -> Iterator[Update]:
        networks = {"student": ctx.student, **{f"peer_{i}": peer for i, peer in enumerate(ctx.peers)}}
        logits = {name: outputs.logits for name, outputs in networks.items()}
        for name, own in logits.items():
            others = [other for peer, other in logits.items() if peer != name]
            yield Update(name, {"task": ctx.task_loss(own), "dml": dml_loss(own, others)})

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        return peers_and_their_ensemble(run)
