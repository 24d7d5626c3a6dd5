"""Knowledge distillation from softened predictions."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, Paper, StepContext, Temperature, soft_target_loss


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 times KL(teacher || student) of the softened predictions, in nats.

    Only ``student_logits`` receive a gradient; sum over classes, mean over samples.

    Shapes: (N, K), (N, K) -> scalar, at least 0, 0 when student equals teacher.
    """
    return soft_target_loss(student_logits, teacher_logits, temperature=temperature)


class KD(Algorithm):
    """Makes the student's softened class probabilities match the teacher's.

    A teacher that is almost sure of one class still ranks the others, and that ranking tells how it generalises. Both
    sets of logits are divided by a temperature T (``temperature``) before the softmax, which brings the small
    probabilities out; L = T^2 * KL(p_teacher(T) || p_student(T)). The factor T^2 keeps the size of the gradient
    about the same whatever T is, so that the weights need not follow it.

    Reads: logits of student and teacher, each (N, K).
    Loss terms: ``kd``: nats times T^2, at least 0, 0 when student equals teacher; sum over classes, mean over samples.
    Trains: nothing of its own.   State: none.
    Raises: nothing.
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning Workshop,
        https://arxiv.org/abs/1503.02531, section 2.
    Differs from the paper: 1. the divergence instead of the cross-entropy with soft targets: it is smaller by the
        entropy of the teacher's answer, which the student cannot change, so the gradient is the same and a perfect
        student scores 0.
    Defaults from: the CIFAR-100 settings of RepDistiller and mdistiller (temperature 4, task 0.1, kd 0.9).
    """

    name = "kd"
    paper = Paper(
        title="Distilling the Knowledge in a Neural Network",
        authors="Hinton, Vinyals, Dean",
        year=2015,
        url="https://arxiv.org/abs/1503.02531",
        equation="section 2",
    )
    needs = Needs(of_teacher="top_k", data="any")
    loss_functions = (kd_loss,)
    default_weights: ClassVar = {"task": 0.1, "kd": 0.9}
    also_known_as = ("hinton", "vanilla_kd", "soft_targets", "logit_distillation")

    class Options(AlgorithmOptions):
        temperature: Temperature = 4.0

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"kd": kd_loss(ctx.student.logits, ctx.teacher.logits, self.options.temperature)}
