"""A student in 8 bits, taught by a teacher in floats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    Bench,
    Exhibit,
    Paper,
    Stage,
    StagePlan,
    Stages,
    StepContext,
    Table,
)


def soft_label_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(teacher || student) of the predictions at temperature 1, in nats, averaged over samples.

    Only ``student_logits`` receive a gradient.

    Shapes: (N, K), (N, K) -> scalar.
    """
    student, teacher = F.log_softmax(student_logits, dim=1), F.log_softmax(teacher_logits.detach(), dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class QATKD(Algorithm):
    """Makes a student that computes in 8 bits match its teacher in floats.

    The student is first trained in floats on the labels. Then it goes on with its weights and activations rounded as
    int8 and uint8, gradients passing straight through the rounding, on alpha H(y, p_student) + beta H(p_teacher,
    p_student), where alpha and beta are the weights of ``task`` and ``kd``. The second phase takes ``share`` of the
    recipe's epochs at a rate of ``lr``. Beside it the same phase is trained without teacher (``compare_alone``), so
    that a table can tell what the teacher gives.

    Reads: logits of student and teacher, each (N, K).
    Loss terms: ``kd``: nats, at least 0, 0 when student equals teacher; sum over classes, mean over samples.
    Trains: nothing of its own; up to three stages.   State: none; ranges of activations belong to the student.
    Raises: KdzooError without torchao (extra: quant); ModelError for a network that cannot be computed in int8.
    Source: Mishra, Marr, "Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision Network
        Accuracy", ICLR 2018, https://arxiv.org/abs/1711.05852, equation 1 and scheme C.
    Differs from the paper: 1. 8 bits for weights and activations, which is what onnxruntime computes in; the paper has
        2 to 4 bits for weights and 8 for activations, on no runtime. 2. The first and the last layer are rounded too.
        3. The divergence instead of the cross-entropy with the teacher's answer: the same gradient, and a perfect
        student scores 0. 4. The paper's gamma H(y, p_teacher) trains the teacher and is left out, as in its scheme C.
    Defaults from: the paper (alpha 1, beta 0.5); ``share`` and ``lr`` are ours.
    """

    name = "qat_kd"
    paper = Paper(
        title="Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision Network Accuracy",
        authors="Mishra, Marr",
        year=2018,
        url="https://arxiv.org/abs/1711.05852",
        equation="equation 1, scheme C",
    )
    default_weights: ClassVar = {"task": 1.0, "kd": 0.5}
    also_known_as = ("apprentice", "qat", "quantization_aware_distillation")

    class Options(AlgorithmOptions):
        share: float = Field(
            0.25, gt=0, lt=1, description="Share of the recipe's epochs with rounding, after the others in floats."
        )
        lr: float = Field(0.005, gt=0, le=1000, description="Learning rate of the epochs with rounding.")
        compare_alone: bool = Field(True, description="Also train the epochs with rounding without teacher.")

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"kd": soft_label_loss(ctx.student.logits, ctx.teacher.logits)}

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        epochs = plan.train["epochs"]
        rounding = min(max(1, round(epochs * plan.options.share)), max(1, epochs - 1))
        start = yield Stage("float", plan.student, train={"epochs": max(1, epochs - rounding)})
        model = replace(plan.student, arithmetic="int8")
        train = {"epochs": rounding, "optimizer": {"lr": plan.options.lr}}
        if plan.options.compare_alone:
            yield Stage("qat", model, start=start, train=train)
        return (yield Stage("qat_kd", model, plan.own, plan.teachers, start=start, train=train))

    @classmethod
    def exhibits(cls, bench: Bench) -> Iterable[Exhibit]:
        stages = {stage.name: stage for stage in bench.stages}
        rounded = {
            label: bench.network(stages[name], "student_prepared")
            for name, label in (("qat", "int8, trained with rounding"), ("qat_kd", "int8, and taught"))
            if name in stages
        }
        measured = bench.measure({"float32": bench.network(stages["float"]), **rounded})
        rows = [_row(entry["label"], entry) for entry in measured]
        for label, name in (
            ("onnx of control", "float32, alone, in its runtime"),
            ("onnx int8 of control", "int8 after training, alone, in its runtime"),
            ("onnx int8", "int8 after training, taught, in its runtime"),
            ("onnx int8-trained", "int8, trained with rounding and taught, in its runtime"),
        ):
            if label in bench.entries:
                rows.append(_row(name, bench.entries[label], runs=True))
        yield Table("From floats to integers", ("student", "top-1 %", "size KiB", "ms at batch 1"), tuple(rows))


def _row(name: str, entry: Mapping[str, Any], runs: bool = False) -> tuple[str | float | None, ...]:
    """Size and speed mean something only of a file in its runtime: rounding in floats is for training."""
    size = round(entry["size_mib"] * 1024, 1) if runs else None
    latency = (entry["latency_ms"] or {}).get("p50") if runs else None
    return name, round(entry["top1_percent"], 2), size, latency and round(latency, 3)
