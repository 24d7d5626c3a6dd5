"""Exemplars: choosing samples of a class to keep, and classifying by them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Outputs, StagePlan, StageResult

#: Rows of the training split by class, the most typical first.
Exemplars = Mapping[int, tuple[int, ...]]


def herding(embeddings: Tensor, count: int) -> list[int]:
    """Choose ``count`` rows (all, if there are fewer), one by one, so that their mean is nearest to the mean of all.

    Embeddings are brought to length 1 first. Every prefix of the answer is the answer for a smaller count.

    Shapes: ``embeddings`` (N, D) -> indices below N, each once.
    """
    features = F.normalize(embeddings.double(), dim=1)
    mean, total = features.mean(0), torch.zeros(features.shape[1], dtype=features.dtype)
    chosen: list[int] = []
    for number in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + features) / number).square().sum(1)
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
        total += features[chosen[-1]]
    return chosen


def class_mean(embeddings: Tensor) -> Tensor:
    """Return the mean of embeddings of length 1, itself brought to length 1: (N, D) -> (D,)."""
    return F.normalize(F.normalize(embeddings, dim=1).mean(0), dim=0)


def choose_exemplars(
    plan: StagePlan, tasks: Sequence[Sequence[int]], results: Sequence[StageResult], memory: int
) -> Exemplars:
    """Return the exemplars after the tasks of ``results``: equally many of each class seen, at most ``memory`` in all.

    The network that has just learnt a task chooses the exemplars of its classes; later the lists are only shortened.
    """
    kept: dict[int, tuple[int, ...]] = {}
    for task, result in zip(tasks, results, strict=False):
        each = memory // (len(kept) + len(task))
        kept = {k: rows[:each] for k, rows in kept.items()}
        for k in task:
            rows = [row for row, target in enumerate(plan.targets) if target == k]
            order = herding(plan.outputs(result, rows).pre_logits, each) if rows else []
            kept[k] = tuple(rows[place] for place in order)
    return kept


class NearestMean(nn.Module):
    """Answers with the class of the nearest mean of exemplars: logits are minus the squared distance.

    Classes without an exemplar are never the answer. ``network`` gives the embedding when asked for ``pre_logits``.
    """

    means: Tensor

    def __init__(self, network: nn.Module, means: Mapping[int, Tensor], num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.classes, self.num_classes = list(means), num_classes
        device = next(network.parameters()).device
        self.register_buffer("means", torch.stack(list(means.values())).to(device))

    def forward(self, inputs: Any) -> Outputs:
        embedding = F.normalize(self.network(inputs, pre_logits=True).pre_logits, dim=1)
        distance = (embedding[:, None] - self.means).square().sum(-1)
        logits = distance.new_full((len(distance), self.num_classes), -torch.inf)
        logits[:, self.classes] = -distance
        return Outputs(logits)


def nearest_mean(plan: StagePlan, network: nn.Module, result: StageResult, exemplars: Exemplars) -> NearestMean:
    """The classifier by exemplars; the network of ``result``, live as ``network``, computes their means."""
    means = {k: class_mean(plan.outputs(result, rows).pre_logits) for k, rows in exemplars.items() if rows}
    return NearestMean(network, means, plan.num_classes)
