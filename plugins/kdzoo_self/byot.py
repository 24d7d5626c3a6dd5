"""Be your own teacher: exits along a network, taught by its deepest classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    FinishedRun,
    Level,
    Needs,
    NeedsError,
    Outputs,
    Paper,
    Point,
    ReportItem,
    Scatter,
    Shapes,
    StepContext,
    Table,
    Temperature,
    mean_prediction,
    soft_target_loss,
)


def byot_soft_label_loss(exits: Sequence[Tensor], deepest: Tensor, temperature: float) -> Tensor:
    """Return the divergence T^2 * KL(deepest || exit) of softened answers, in nats: mean over samples, sum over exits.

    Only ``exits`` receive a gradient.

    Shapes: each of ``exits`` and ``deepest`` are logits (N, K) -> scalar.
    """
    return torch.stack([soft_target_loss(logits, deepest, temperature=temperature) for logits in exits]).sum()


def byot_hint_loss(exits: Sequence[Tensor], deepest: Tensor) -> Tensor:
    """Return the squared distance of embeddings: sum over dimensions and exits, mean over samples.

    Only ``exits`` receive a gradient.

    Shapes: each of ``exits`` and ``deepest`` (N, D) -> scalar in squared activation units.
    """
    return torch.stack([(embedding - deepest.detach()).square().sum(1).mean() for embedding in exits]).sum()


class Exit(nn.Module):
    """A bottleneck from one section's shape to the deepest section's, pooling, and a classifier.

    Shapes: (N, C, H, W) -> logits (N, K), embedding (N, D), where D are the deepest section's channels.
    """

    def __init__(self, section: Level, deepest: Level, num_classes: int) -> None:
        super().__init__()
        # The middle convolution brings the map to the deepest one's size and leaves out no pixel.
        reach = max(1, section.height // deepest.height), max(1, section.width // deepest.width)
        width = max(1, deepest.channels // 4)
        layers: list[nn.Module] = []
        for before, after, kernel in (
            (section.channels, width, (1, 1)),
            (width, width, reach),
            (width, deepest.channels, (1, 1)),
        ):
            conv = nn.Conv2d(before, after, kernel, stride=kernel, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        self.bottleneck = nn.Sequential(*layers)
        self.classifier = nn.Linear(deepest.channels, num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.bottleneck(features).mean(dim=(2, 3))
        return self.classifier(embedding), embedding


class EarlyExit(nn.Module):
    """A network that stops after a section and answers by its exit: inputs as in a batch -> logits (N, K)."""

    def __init__(self, section: nn.Module, exit_: nn.Module) -> None:
        super().__init__()
        self.section, self.exit = section, exit_

    def forward(self, inputs: Tensor) -> Tensor:
        return self.exit(self.section(inputs))[0]


class AllExits(nn.Module):
    """A network and all its exits, each computed once: inputs as in a batch -> the mean of their probabilities, as
    logarithms (N, K).
    """

    def __init__(self, network: nn.Module, exits: Iterable[nn.Module]) -> None:
        super().__init__()
        self.network, self.exits = network, nn.ModuleList(exits)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Outputs = self.network(inputs)
        pairs = zip(self.exits, outputs.features, strict=True)
        return mean_prediction([outputs.logits, *(exit_(features)[0] for exit_, features in pairs)])


class BYOT(Algorithm):
    """Makes exits after each section of a network answer like the network's own, deepest classifier.

    The network is cut into ``sections`` (a ResNet into four); after each but the last comes an exit: a bottleneck to
    the shape of the deepest section, pooling and a classifier. Four kinds of supervision: q^C, the network's own
    classifier, learns from the labels (``task``); every exit q^i learns from the labels (``exit_labels``), from the
    deepest classifier's softened answers (``exit_soft``: T^2 KL(q^C || q^i)) and from its features (``exit_hint``: |F_i
    - F_C|^2). All gradients meet in the shared sections. An exit is also a network of its own, shallower and faster;
    the report measures each. The delivered student is the plain network without any exit.

    Reads: logits (N, K) and features at every level of the student, each (N, C, H, W), and the labels.
    Loss terms: ``exit_labels``: nats, mean over the batch, sum over exits.
        ``exit_soft``: nats, 0 when all exits answer like the deepest; mean over the batch, sum over exits.
        ``exit_hint``: squared activation units, 0 when all embeddings agree; mean over the batch, sum over exits and
        dimensions.
    Trains: the exits.   State: the running statistics of their BatchNorms.
    Raises: NeedsError if the student has fewer than two levels.
    Source: Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher: Improve the Performance of Convolutional Neural
        Networks via Self Distillation", ICCV 2019, https://arxiv.org/abs/1905.08094, section 3.
    Differs from the paper: 1. three of the kinds of supervision are the paper's; that of the network's own classifier
        is a separate term. 2. embeddings are compared after pooling, as in public code. 3. the term of the soft labels
        is multiplied by T^2, so its weight does not depend on ``temperature``. 4. the bottleneck's middle convolution
        is as wide as its stride.
    Defaults from: a public implementation (T 3, alpha 0.1; its 1e-6 for a sum over a batch of 128 is 1e-4 for a mean).
    """

    name = "byot"
    paper = Paper(
        title="Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
        authors="Zhang, Song, Gao, Chen, Bao, Ma",
        year=2019,
        url="https://arxiv.org/abs/1905.08094",
        equation="section 3",
    )
    needs = Needs(teachers=0, features=True, min_batch=2)  # an exit may come down to one pixel
    loss_functions = (byot_soft_label_loss, byot_hint_loss)
    default_weights: ClassVar = {"task": 0.9, "exit_labels": 0.9, "exit_soft": 0.1, "exit_hint": 1e-4}
    also_known_as = ("be_your_own_teacher", "self_distillation")

    class Options(AlgorithmOptions):
        sections: int = Field(
            4,
            ge=2,
            le=64,
            description="Sections of the network, the deepest of its levels; with fewer levels, as many as there are.",
        )
        temperature: Temperature = 3.0

    def __init__(self, options: BYOT.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        sections = shapes.student.levels[-options.sections :]
        if len(sections) < 2:
            raise NeedsError(
                f"algorithm 'byot': the student has {len(sections)} level of features, and nothing before the deepest "
                "to put an exit after; choose a model with more levels"
            )
        self.sections = sections
        self.exits = nn.ModuleList(Exit(section, sections[-1], shapes.num_classes) for section in sections[:-1])

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        features = ctx.student.features[-len(self.sections) :]
        answers = [exit_(own) for exit_, own in zip(self.exits, features[:-1], strict=True)]
        logits, embeddings = [answer[0] for answer in answers], [answer[1] for answer in answers]
        return {
            "exit_labels": torch.stack([ctx.task_loss(own) for own in logits]).sum(),
            "exit_soft": byot_soft_label_loss(logits, ctx.student.logits, self.options.temperature),
            "exit_hint": byot_hint_loss(embeddings, features[-1].mean(dim=(2, 3))),
        }

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        algorithm: BYOT = run.algorithm(run.student)
        names = [level.name for level in algorithm.sections]
        modules: dict[str, nn.Module] = {
            f"exit {i + 1}": EarlyExit(run.section(run.student, name), exit_)
            for i, (name, exit_) in enumerate(zip(names[:-1], algorithm.exits, strict=True))
        }
        modules[f"exit {len(names)}"] = run.network(run.student)
        modules["ensemble"] = AllExits(run.network(run.student, levels=names[:-1]), algorithm.exits)
        entries = run.measure(modules)
        yield _costs_of_exits(entries, [*names, "all"])
        points = tuple(
            Point(entry["latency_ms"]["p50"], entry["top1_percent"], entry["label"], "exits") for entry in entries[:-1]
        )
        whole = entries[-1]
        points += (Point(whole["latency_ms"]["p50"], whole["top1_percent"], "ensemble", "ensemble"),)
        yield Scatter("Accuracy against latency", "latency in ms, batch 1", "top-1 in %", points, front="exits")


def _costs_of_exits(entries: Sequence[dict[str, Any]], after: Sequence[str]) -> Table:
    plain = entries[-2]
    rows = tuple(
        (
            entry["label"],
            name,
            round(entry["top1_percent"], 2),
            round(entry["params_m"] * 1000, 1),
            round(100 * entry["macs_g"] / plain["macs_g"], 1),
            round(entry["latency_ms"]["p50"], 3),
            round(plain["latency_ms"]["p50"] / entry["latency_ms"]["p50"], 2),
        )
        for entry, name in zip(entries, after, strict=True)
    )
    return Table(
        "Exits",
        ("exit", "after", "top-1 in %", "thousand parameters", "MACs in % of the plain network", "ms", "times faster"),
        rows,
        f"Each exit computes and holds nothing beyond its section. '{plain['label']}' is the plain network, the only "
        "one delivered; the ensemble averages the probabilities of all.",
    )
