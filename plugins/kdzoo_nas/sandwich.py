"""In-place distillation in a weight-sharing supernet: the sandwich rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdzoo.api import (
    Algorithm,
    AlgorithmChoice,
    AlgorithmOptions,
    FinishedRun,
    ModelSpec,
    Needs,
    NeedsError,
    Paper,
    Point,
    ReportItem,
    Scatter,
    Shapes,
    Stage,
    StagePlan,
    Stages,
    StepContext,
    Table,
    Update,
    soft_target_loss,
)
from kdzoo_nas.slimmable import leading


def sandwich_loss(narrow: Sequence[Tensor], widest: Tensor) -> Tensor:
    """Sum, over the narrower networks, the divergence KL(widest || narrower), in nats, averaged over samples.

    Only ``narrow`` receive a gradient: the widest is the target. There is no temperature.

    Shapes: each of ``narrow`` (N, K), ``widest`` (N, K) -> scalar.
    """
    return torch.stack([soft_target_loss(logits, widest) for logits in narrow]).sum()


class Sandwich(Algorithm):
    """Trains one network at many widths at once; the widest teaches the narrower ones inside it.

    A network of width w is the leading part of every tensor of the widest, the supernet. Each step runs the widest on
    the labels, and the narrowest and ``random`` widths drawn in between on the widest's predictions of that step: L =
    CE(y, p_max) + sum over w of CE(p_max, p_w), one update of the shared weights. After training, each of ``widths`` is
    cut out as a plain network with unchanged weights, and its BatchNorm statistics are measured again.

    Reads: logits of the student at each width, each (N, K).
    Loss terms: ``sandwich``: nats, 0 when every width answers as the widest; mean over the batch, sum over the widths.
    Trains: nothing of its own; a stage for the supernet, one for each width cut out of it, and, unless ``alone`` is
        false, one for each width trained alone.   State: none.
    Raises: NeedsError if ``widths`` are all equal, or do not include the student's, or the student cannot switch its
        width.
    Source: Yu, Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019,
        https://arxiv.org/abs/1903.05134, sections 3.2 to 4.2, and the authors' code; the same in Yu et al., "BigNAS:
        Scaling Up Neural Architecture Search with Big Single-Stage Models", ECCV 2020, section 3.
    Differs from the paper: 1. widths are whole numbers of channels, drawn uniformly; the paper draws a share of the
        widest. 2. the divergence, not the cross-entropy with soft targets: the gradient is the same, and it is 0 when
        the widths agree. 3. BatchNorm statistics are the mean over one pass through the training split as it is
        augmented, by default; the paper takes about a thousand images. 4. BigNAS's own initialisation, learning-rate
        schedule and regularisation are left out.
    Defaults from: the paper (four widths a step: ``random`` 2); our own choice (``widths``).
    """

    name = "sandwich"
    paper = Paper(
        title="Universally Slimmable Networks and Improved Training Techniques",
        authors="Yu, Huang",
        year=2019,
        url="https://arxiv.org/abs/1903.05134",
        equation="sections 3.2 to 4.2",
    )
    needs = Needs(teachers=0)
    loss_functions = (sandwich_loss,)
    default_weights: ClassVar = {"task": 1.0, "sandwich": 1.0}
    also_known_as = ("us_net", "universally_slimmable", "inplace_distillation", "big_nas")
    tiny_recipe: ClassVar = {
        "algorithm": {"options": {"widths": [4, 8]}},
        "models": {"student": {"name": "slimmable_cnn", "args": {"width": 4}}},
    }

    class Options(AlgorithmOptions):
        widths: tuple[int, ...] = Field(
            (8, 16, 24),
            min_length=2,
            description="Widths to measure, channels; includes the student's; the largest is the supernet's.",
        )
        random: int = Field(
            2, ge=0, le=64, description="Number of widths drawn between the narrowest and the widest in each step."
        )
        calibration_epochs: int = Field(
            1, ge=1, le=1000, description="Passes over the training split that measure BatchNorm statistics again."
        )
        alone: bool = Field(True, description="Also train every width alone, under the student's budget, to compare.")
        phase: Literal["supernet", "cut"] = Field(
            "supernet", description="Which part of the algorithm a stage runs; set by the algorithm, not by a recipe."
        )

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.narrowest, self.widest = min(self.options.widths), max(self.options.widths)

    # --- the stages ---------------------------------------------------------------------------

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        options, wanted = plan.options, plan.student.args.get("width")
        widths = sorted(set(options.widths))
        if len(widths) < 2:
            raise NeedsError(
                f"algorithm 'sandwich': algorithm.options.widths names {widths[0]} alone; two or more different widths "
                "would be right"
            )
        if wanted not in widths:
            raise NeedsError(
                f"algorithm 'sandwich': the student's width (models.student.args.width) is {wanted}; one of "
                f"algorithm.options.widths would be right: {', '.join(map(str, widths))}, of a network that can switch "
                "it, e.g. slimmable_cnn"
            )
        if plan.student.weights != "train":
            raise NeedsError(
                f"algorithm 'sandwich': the student begins with the weights '{plan.student.weights}', which are of one "
                "width; models.student.weights: train would be right"
            )
        alone = [Stage(f"alone_{width}", _of_width(plan.student, width)) for width in widths if options.alone]
        supernet = Stage("supernet", _of_width(plan.student, widths[-1]), plan.own)
        *_, trained = yield [*alone, supernet]
        cut = AlgorithmChoice(cls.name, {**plan.own.options, "phase": "cut"}, plan.own.loss_weights)
        once = {"epochs": options.calibration_epochs, "ema_decay": None, "select": "last"}
        results = yield [
            Stage(f"width_{width}", _of_width(plan.student, width), cut, start=trained, train=once) for width in widths
        ]
        return results[widths.index(wanted)]

    @classmethod
    def load_start(cls, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Cut a network out of a wider one; reset its BatchNorm, which then averages over all batches it sees."""
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        model.load_state_dict(leading(weights, shapes), strict=True)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None

    # --- one step -----------------------------------------------------------------------------

    def step(self, ctx: StepContext) -> Iterator[Update]:
        if self.options.phase == "cut":
            return  # the forward pass of ctx.student has measured this batch's statistics; no weight changes
        model: Any = ctx.modules["student"]
        width = getattr(model, "width", None)
        if width != self.widest or not callable(getattr(model, "at", None)):
            raise NeedsError(
                "algorithm 'sandwich': the student's width cannot be switched; a network with an argument 'width' and "
                "a method at(width) would be right, e.g. slimmable_cnn"
            )
        narrow = []
        # All processes run the same widths, because they share the statistics of each width.
        for each in self.draw(ctx.random("widths", shared=True)):
            with model.at(each):
                narrow.append(ctx.networks["student"](ctx.batch.inputs).logits)
        widest = ctx.student.logits
        yield Update("student", {"task": ctx.task_loss(widest), "sandwich": sandwich_loss(narrow, widest)})

    def draw(self, generator: torch.Generator) -> list[int]:
        """The narrower widths of one step: the narrowest, and whole numbers below the widest."""
        drawn = torch.randint(self.narrowest, self.widest, (self.options.random,), generator=generator)
        return [self.narrowest, *drawn.tolist()]

    # --- what is shown ------------------------------------------------------------------------

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        """Measure every width, cut out and alone."""
        found = {result.name: result for result in run.stages}
        widths = sorted(set(run.options.widths))
        kinds = {"width_{}": "cut, width {}", "alone_{}": "alone, width {}"}
        named = {
            words.format(width): found[stage.format(width)]
            for width in widths
            for stage, words in kinds.items()
            if stage.format(width) in found
        }
        measured = run.measure({label: run.network(result) for label, result in named.items()})
        entries = {entry["label"]: entry for entry in measured}

        def cell(label: str, key: str) -> float | None:
            return entries[label][key] if label in entries else None

        rows = []
        for width in widths:
            cut, alone = (words.format(width) for words in kinds.values())
            entry = entries[cut]
            costs = (entry["params_m"], entry["macs_g"] * 1e3, entry["latency_ms"]["p50"])
            rows.append((width, *costs, cell(cut, "top1_percent"), cell(alone, "top1_percent")))
        yield Table(
            "Every width",
            ("width", "parameters, M", "MACs, M", "latency, ms", "cut out of the supernet, test %", "alone, test %"),
            tuple(rows),
            note="Cut out of the supernet, all widths together took one training; alone, each took one of its own.",
        )
        yield Scatter(
            "Accuracy against cost",
            "MACs, M",
            "test accuracy, %",
            tuple(
                Point(entry["macs_g"] * 1e3, entry["top1_percent"], label.split()[-1], label.split(",")[0])
                for label, entry in entries.items()
            ),
            front="cut",
            note="Labels are widths. The line joins those cut out of the supernet.",
        )


def _of_width(spec: ModelSpec, width: int) -> ModelSpec:
    return replace(spec, args={**spec.args, "width": width})
