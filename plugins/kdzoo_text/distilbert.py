"""DistilBERT: soft targets, and hidden states that point where the teacher's do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    FinishedRun,
    Needs,
    Paper,
    Shapes,
    StepContext,
    Table,
    Temperature,
    soft_target_loss,
)


def distilbert_cosine_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return 1 minus the cosine between the vectors of both at each position, averaged over positions.

    Positions where the teacher has no vector, all its channels being zero as at the fill of a text, do not count. Only
    ``student_features`` receive a gradient.

    Shapes: (N, C, H, W), (N, C, H, W) -> scalar.
    """
    teacher = teacher_features.detach()
    real = (teacher != 0).any(dim=1)
    distance = 1 - F.cosine_similarity(student_features, teacher, dim=1)
    return (distance * real).sum() / real.sum().clamp(min=1)


class DistilBERT(Algorithm):
    """Makes a shallower student match the teacher's softened answers and the direction of its last hidden states.

    L = w_kd * T^2 * KL(p_teacher(T) || p_student(T)) + w_cosine * mean over tokens of (1 - cos(h_student, h_teacher)),
    beside the task's loss; T is ``temperature``, h are the hidden states of the last layer. The student starts from
    every other layer of the teacher, which the recipe says, so that the control starts alike:
    ``weights: teacher`` and the model's ``layers``.

    Reads: logits of student and teacher, (N, K); features of the deepest pair of levels, (N, C, H, W), of text
        (N, D, L, 1), zero at fill.
    Loss terms: ``kd``: nats times T^2, at least 0; mean over samples. ``cosine``: in [0, 2]; mean over tokens. Both are
        0 when student equals teacher.
    Trains: a linear projector where the student is narrower or wider than the teacher, else nothing.   State: none.
    Raises: NeedsError if no levels can be paired (by the core).
    Source: Sanh, Debut, Chaumond, Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and
        lighter", NeurIPS 2019 EMC2 workshop, https://arxiv.org/abs/1910.01108, section 3.
    Differs from the paper: 1. it distils on the labelled task, whose cross-entropy stands where the paper has masked
        language modelling on a large corpus. 2. the first weights come from the recipe. 3. a projector bridges other
        widths, and maps of other sizes are resized; the paper's student is as wide as its teacher.
    Defaults from: the authors' training script (temperature 2, weights 5, 2 and 1).
    """

    name = "distilbert"
    paper = Paper(
        title="DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        authors="Sanh, Debut, Chaumond, Wolf",
        year=2019,
        url="https://arxiv.org/abs/1910.01108",
        equation="section 3",
    )
    needs = Needs(features=True, data="any")
    loss_functions = (soft_target_loss, distilbert_cosine_loss)
    default_weights: ClassVar = {"task": 2.0, "kd": 5.0, "cosine": 1.0}
    also_known_as = ("distil_bert", "distil")

    class Options(AlgorithmOptions):
        temperature: Temperature = 2.0

    def __init__(self, options: DistilBERT.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        student, teacher = shapes.student.levels[-1], shapes.teacher.levels[-1]
        self.projector: nn.Module = nn.Identity()
        if student.channels != teacher.channels:
            self.projector = nn.Conv2d(student.channels, teacher.channels, kernel_size=1, bias=False)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        student, teacher = self.projector(ctx.student.features[-1]), ctx.teacher.features[-1]
        if student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
        return {
            "kd": soft_target_loss(ctx.student.logits, ctx.teacher.logits, temperature=self.options.temperature),
            "cosine": distilbert_cosine_loss(student, teacher),
        }

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[Table]:
        """What the student saves and what it keeps: the table that shallower transformers are judged by."""
        first = [entry for entry in run.entries.values() if (entry["network"], entry["index"]) == ("teacher", 0)]
        teachers = {(entry["format"], entry["quantize"]): entry for entry in first}
        rows = []
        for label, entry in run.entries.items():
            reference = teachers.get((entry["format"], entry["quantize"]), teachers.get((None, None)))
            rows.append((label, *costs(entry), *(savings(entry, reference) if reference else (None, None, None))))
        yield Table(
            "What the student saves and keeps",
            (
                "",
                "parameters, millions",
                "MiB on disk",
                "seconds per 100 requests",
                "accuracy, %",
                "fewer parameters, %",
                "less time, %",
                "of the teacher's accuracy, %",
            ),
            tuple(rows),
            "A request is one sample at its own size. A file is compared with the teacher's file in the same runtime, "
            "where there is one, and anything else with the teacher.",
        )


def costs(entry: Mapping[str, Any]) -> tuple[float, float, float | None, float]:
    """Millions of parameters, MiB, seconds for 100 requests at the median, accuracy in percent."""
    latency = entry.get("latency_ms") or {}
    seconds = latency["p50"] / 10 if latency else None
    return entry["params_m"], entry["size_mib"], seconds, entry["top1_percent"]


def savings(entry: Mapping[str, Any], teacher: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    """By how many percent it has fewer parameters and takes less time than the teacher; how much accuracy is left."""
    (ours, _, our_time, our_top1), (theirs, _, their_time, their_top1) = costs(entry), costs(teacher)
    less_time = 100 * (1 - our_time / their_time) if our_time is not None and their_time else None
    return 100 * (1 - ours / theirs), less_time, 100 * our_top1 / their_top1 if their_top1 else None
