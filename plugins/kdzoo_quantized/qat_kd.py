"""A student in 8 bits, taught by a teacher in floats."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdzoo.api import Needs, Paper, StepContext, soft_target_loss
from kdzoo_quantized.rounding import Rounding, RoundingOptions


class QATKD(Rounding):
    """Makes a student that computes in 8 bits match its teacher in floats.

    The student is first trained in floats on the labels. Then it goes on with its weights and activations rounded as
    int8 and uint8, gradients passing straight through the rounding, on beta H(y, p_student) + gamma H(p_teacher,
    p_student), where beta and gamma are the weights of ``task`` and ``kd``. The second phase takes ``share`` of the
    recipe's epochs at a rate of ``lr``. Beside it the same phase is trained without teacher (``compare_alone``), so
    that a table can tell what the teacher gives.

    Reads: logits of student and teacher, each (N, K).
    Loss terms: ``kd``: nats, at least 0, 0 when student equals teacher; sum over classes, mean over samples.
    Trains: nothing of its own; up to three stages.   State: none; ranges of activations belong to the student.
    Raises: KdzooError without torchao (extra: quant); ModelError for a network that cannot be computed in int8.
    Source: Mishra, Marr, "Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision Network
        Accuracy", ICLR 2018, https://arxiv.org/abs/1711.05852, scheme C. The text was out of reach: read were its
        abstract, and two readers' notes for the loss, its weights and the schemes.
    Differs from the paper: 1. 8 bits for weights and for activations, which is what onnxruntime computes in; the paper
        has 3 values or 4 bits for weights. 2. every convolution and linear layer is rounded, by torchao's observers of
        ranges; how the paper rounds was not read. 3. the divergence instead of the cross-entropy with the teacher's
        answer: the same gradient, and a perfect student scores 0. 4. the paper's alpha H(y, p_teacher) trains the
        teacher and is left out, as the teacher of its scheme C is trained already.
    Defaults from: notes on the paper (beta and gamma 0.5, no temperature); ``share`` and ``lr`` are ours.
    """

    name = "qat_kd"
    paper = Paper(
        title="Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision Network Accuracy",
        authors="Mishra, Marr",
        year=2018,
        url="https://arxiv.org/abs/1711.05852",
        equation="scheme C",
    )
    needs = Needs(of_teacher="top_k", data="any")
    loss_functions = (soft_target_loss,)
    default_weights: ClassVar = {"task": 0.5, "kd": 0.5}
    also_known_as = ("apprentice", "qat", "quantization_aware_distillation")
    quantizer = "int8"
    tiny_recipe: ClassVar = {"train": {"epochs": 2}}  # a phase in floats, and one with rounding

    class Options(RoundingOptions):
        share: float = Field(
            0.25, gt=0, le=1, description="Share of the recipe's epochs with rounding, after the others in floats."
        )
        lr: float | None = Field(
            0.01, gt=0, le=1000, description="Learning rate of the epochs with rounding; null: the recipe's."
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"kd": soft_target_loss(ctx.student.logits, ctx.teacher.logits)}
