"""On-the-fly native ensemble: branches over shared lower layers, taught by their own gated ensemble."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    FinishedRun,
    Level,
    Needs,
    NeedsError,
    Outputs,
    Paper,
    ReportItem,
    Shapes,
    StepContext,
    Table,
    Temperature,
)
from kdzoo.api.models import he_normal

#: The authors add this to each probability of the ensemble, so its logarithm exists.
SMALLEST = 1e-7
#: A branch with a larger mean weight in the ensemble leaves nothing for the others.
COLLAPSED = 0.99


def one_loss(branches: Sequence[Tensor], ensemble: Tensor, temperature: float) -> Tensor:
    """Return the divergence T^2 * KL(ensemble || branch) of softened answers, in nats: mean over samples, sum over
    branches.

    Only ``branches`` receive a gradient. As in the authors' code, 1e-7 is added to the ensemble's probabilities.

    Shapes: each of ``branches`` and ``ensemble`` are logits (N, K) -> scalar.
    """
    target = F.softmax(ensemble.detach() / temperature, dim=1) + SMALLEST
    terms = [
        (target * (target.log() - F.log_softmax(logits / temperature, dim=1))).sum(1).mean() for logits in branches
    ]
    return temperature**2 * torch.stack(terms).sum()


def one_rampup(epoch: int, rampup_epochs: int) -> float:
    """Return the factor of the term's weight in an epoch: exp(-5 (1 - e / E)^2), 1 from epoch E on."""
    return math.exp(-5.0 * (1.0 - min(epoch, rampup_epochs) / rampup_epochs) ** 2) if rampup_epochs else 1.0


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, at stride 1 or 2: (N, C, H, W) -> (N, C', H', W')."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = before == after and stride == 1
        conv = nn.Conv2d(before, after, 1, stride, bias=False)
        self.shortcut: nn.Module = nn.Identity() if same else nn.Sequential(conv, nn.BatchNorm2d(after))
        he_normal(self)

    def forward(self, features: Tensor) -> Tensor:
        return (self.body(features) + self.shortcut(features)).relu()


class Branch(nn.Module):
    """Residual blocks from the shared level's shape to the deepest one's, pooling, and a classifier.

    Shapes: (N, C, H, W) -> logits (N, K).
    """

    def __init__(self, shared: Level, deepest: Level, blocks: int, num_classes: int) -> None:
        super().__init__()
        halvings = max(0, round(math.log2(max(shared.height / deepest.height, shared.width / deepest.width))))
        channels = [shared.channels] + [deepest.channels] * max(blocks, halvings)
        self.blocks = nn.Sequential(
            *(
                Residual(before, after, 2 if i < halvings else 1)
                for i, (before, after) in enumerate(itertools.pairwise(channels))
            )
        )
        self.classifier = nn.Linear(deepest.channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.blocks(features).mean(dim=(2, 3)))


class Gate(nn.Module):
    """The weight of each branch for each sample: pooling, a linear layer, BatchNorm, ReLU, softmax.

    Shapes: (N, C, H, W) -> (N, branches), each row of sum 1.
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(channels, branches), nn.BatchNorm1d(branches), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        return self.score(features.mean(dim=(2, 3))).softmax(dim=1)


class OneBranch(nn.Module):
    """The shared sections and one branch alone: inputs as in a batch -> logits (N, K)."""

    def __init__(self, section: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.section, self.branch = section, branch

    def forward(self, inputs: Tensor) -> Tensor:
        return self.branch(self.section(inputs))


class GatedEnsemble(nn.Module):
    """The whole multi-branch network: inputs as in a batch -> the gated ensemble's logits (N, K)."""

    def __init__(self, network: nn.Module, one: ONE) -> None:
        super().__init__()
        self.network, self.branches, self.gate = network, one.branches, one.gate

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Outputs = self.network(inputs)
        (shared,) = outputs.features
        logits = [outputs.logits, *(branch(shared) for branch in self.branches)]
        return gated(self.gate(shared), logits)


def gated(weights: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """Return each sample's weighted sum of the branches' logits: (N, M), M of (N, K) -> (N, K)."""
    return (weights[:, :, None] * torch.stack(list(logits), dim=1)).sum(dim=1)


class ONE(Algorithm):
    """Makes a network and extra branches over its lower layers match their own gated ensemble.

    The network's own top is branch 0; ``branches`` more grow from the level before its last ``depth``. A gate g reads
    that shared level, and z_e = sum over branches i of g_i z_i. All branches and the ensemble learn from the labels,
    and the ensemble teaches the branches: sum over i of T^2 KL(p_e || p_i), with a weight that ramps up. So the teacher
    improves with its students and costs only the branches. At the end branches and gate are dropped, and the plain
    network is delivered; the report measures each branch and the ensemble.

    Reads: logits (N, K) and features at every level of the student, each (N, C, H, W), and the labels.
    Loss terms: ``branches``: nats, cross-entropy of the extra branches; mean over the batch, sum over branches.
        ``ensemble``: nats, cross-entropy of the gated ensemble; mean over the batch.
        ``one``: nats, 0 when all branches agree; mean over the batch, sum over all branches. In epoch e it is
        multiplied by exp(-5 (1 - e / ``rampup_epochs``)^2), at most 1.
    Trains: the extra branches and the gate.   State: the running statistics of their BatchNorms.
    Raises: NeedsError if the student has no more than ``depth`` levels.
    Source: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018,
        https://arxiv.org/abs/1806.04606, section 3, and the authors' code (ONE_NeurIPS2018).
    Differs from the paper: 1. the extra branches are residual blocks to the shape of the deepest level for any student;
        in the paper they repeat its own last stage, which is the same for a ResNet of ``blocks`` blocks.
    Defaults from: the authors' code (2 extra branches, T 3, all weights 1, 80 of 300 epochs of ramp-up).
    """

    name = "one"
    paper = Paper(
        title="Knowledge Distillation by On-the-Fly Native Ensemble",
        authors="Lan, Zhu, Gong",
        year=2018,
        url="https://arxiv.org/abs/1806.04606",
        equation="section 3",
    )
    needs = Needs(teachers=0, features=True, min_batch=2)  # the gate normalises over the batch
    loss_functions = (one_loss,)
    default_weights: ClassVar = {"task": 1.0, "branches": 1.0, "ensemble": 1.0, "one": 1.0}
    also_known_as = ("on_the_fly_native_ensemble", "native_ensemble")

    class Options(AlgorithmOptions):
        branches: int = Field(2, ge=1, le=64, description="Extra branches besides the network's own top.")
        depth: int = Field(
            1, ge=1, le=64, description="Number of levels, the deepest ones, that each branch does not share."
        )
        blocks: int = Field(1, ge=1, le=1000, description="Residual blocks of an extra branch.")
        temperature: Temperature = 3.0
        rampup_epochs: int = Field(
            80,
            ge=0,
            le=100_000,
            description="Epochs over which the ensemble's teaching reaches full weight, 0 for none. Chosen for 300 "
            "epochs: lower it with shorter trainings.",
        )

    def __init__(self, options: ONE.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        levels = shapes.student.levels
        if len(levels) <= options.depth:
            raise NeedsError(
                f"algorithm 'one': depth: {options.depth} leaves no shared level of the student's {len(levels)}; lower "
                "depth, or choose a model with more levels"
            )
        self.shared = levels[-1 - options.depth]
        self.branches = nn.ModuleList(
            Branch(self.shared, levels[-1], options.blocks, shapes.num_classes) for _ in range(options.branches)
        )
        self.gate = Gate(self.shared.channels, 1 + options.branches)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        shared = ctx.student.features[-1 - self.options.depth]
        extra = [branch(shared) for branch in self.branches]
        logits = [ctx.student.logits, *extra]
        weights = self.gate(shared)
        ensemble = gated(weights, logits)
        for i, weight in enumerate(weights.mean(0)):
            ctx.note(f"gate_{i}", weight)
        return {
            "branches": torch.stack([ctx.task_loss(own) for own in extra]).sum(),
            "ensemble": ctx.task_loss(ensemble),
            "one": one_rampup(ctx.clock.epoch, self.options.rampup_epochs)
            * one_loss(logits, ensemble, self.options.temperature),
        }

    def warnings(self, means: Mapping[str, float]) -> Iterable[str]:
        for i in range(1 + self.options.branches):
            if means.get(f"gate_{i}", 0.0) > COLLAPSED:
                yield f"branch {i} has more than {COLLAPSED:.0%} of the ensemble: the others teach nothing"

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        one: ONE = run.algorithm(run.student)
        section = run.section(run.student, one.shared.name)
        modules: dict[str, nn.Module] = {"branch 0": run.network(run.student)}
        modules |= {f"branch {i + 1}": OneBranch(section, branch) for i, branch in enumerate(one.branches)}
        modules["gated ensemble"] = GatedEnsemble(run.network(run.student, levels=[one.shared.name]), one)
        entries = run.measure(modules)
        last = next(row for row in reversed(run.log(run.student)) if row["split"] == "train")
        shares = [round(100 * last[f"gate_{i}"], 1) for i in range(len(modules) - 1)] + [100.0]
        yield Table(
            "Branches and their ensemble",
            ("what", "top-1 in %", "thousand parameters", "share of the ensemble in %"),
            tuple(
                (entry["label"], round(entry["top1_percent"], 2), round(1000 * entry["params_m"], 1), share)
                for entry, share in zip(entries, shares, strict=True)
            ),
            "Branch 0 is the plain network, the only one delivered. The shares are the gate's means over the last "
            "epoch.",
        )
