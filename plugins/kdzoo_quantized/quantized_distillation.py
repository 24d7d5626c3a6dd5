"""A student whose weights take a few values each, taught by a teacher in floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from kdzoo.api import Needs, Paper, StepContext, Temperature, soft_target_loss
from kdzoo_quantized.rounding import Rounding, RoundingOptions


class QuantizedDistillation(Rounding):
    """Makes a student of few different weights match its teacher in floats.

    Each step projects the weights v onto 2^s evenly spaced values a bucket, Q(v), computes the gradient of the loss at
    Q(v), and takes the optimizer's step with it from v. s is ``bits``, a bucket ``bucket_size`` consecutive weights of
    a tensor, between whose smallest and largest the values lie. In the end the weights are Q(v). The loss is a sum of
    the soft targets at a temperature T, times T^2, and the labels.

    Reads: logits of student and teacher, each (N, K).
    Loss terms: ``kd``: nats, at least 0, 0 when student equals teacher; sum over classes, mean over samples.
    Trains: nothing of its own; up to three stages.   State: none; ranges of activations belong to the student.
    Raises: KdzooError without torchao (extra: quant); ModelError for a network that cannot be computed in int8.
    Source: Polino, Pascanu, Alistarh, "Model compression via distillation and quantization", ICLR 2018,
        https://arxiv.org/abs/1802.05668. Read were the abstract and the authors' code,
        https://github.com/antspy/quantized_distillation (uniform quantization with linear scaling, training of the
        convolutional networks); the text was out of reach.
    Differs from the paper: its text was out of reach; from the authors' code: 1. activations are rounded as uint8 and
        projected weights once more as int8 a channel, so that a runtime can compute in integers; theirs stay in
        floats. 2. biases and BatchNorm are not projected, since a runtime has them folded. 3. the divergence is summed
        over classes; theirs is a mean over samples and classes, and so weighs K times less. 4. their steps may be
        preceded by epochs in floats (``share``).
    Defaults from: the authors' code (T 2, weights 0.7 and 0.3, 256 weights a bucket, 4 bits as in its CIFAR-10 script).
    """

    name = "quantized_distillation"
    paper = Paper(
        title="Model compression via distillation and quantization",
        authors="Polino, Pascanu, Alistarh",
        year=2018,
        url="https://arxiv.org/abs/1802.05668",
    )
    needs = Needs(of_teacher="top_k", data="any")
    loss_functions = (soft_target_loss,)
    default_weights: ClassVar = {"task": 0.3, "kd": 0.7}
    quantizer = "int8_buckets"

    class Options(RoundingOptions):
        bits: int = Field(4, ge=2, le=8, description="Bits of a weight: it takes one of 2 to the bits values a bucket.")
        bucket_size: int = Field(256, ge=2, description="Consecutive weights of a tensor that share their values.")
        temperature: Temperature = 2.0

    @classmethod
    def quantizer_options(cls, options: Any) -> Mapping[str, Any]:
        return {"bits": options.bits, "bucket_size": options.bucket_size}

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"kd": soft_target_loss(ctx.student.logits, ctx.teacher.logits, temperature=self.options.temperature)}
