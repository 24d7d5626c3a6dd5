"""The mean response of several teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Needs, Paper, StepContext, Temperature, mean_prediction, soft_target_loss
from kdzoo_multi_teacher.comparison import SeveralTeachers, SeveralTeachersOptions, note_weights


def mt_average_outputs_loss(student_logits: Tensor, teacher_logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Return temperature^2 times KL(mean teacher || student) of the softened predictions, averaged over samples.

    In nats; the mean is that of the teachers' probabilities. Only ``student_logits`` receive a gradient.

    Shapes: (N, K), for each teacher (N, K) -> scalar.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    mean = mean_prediction(teacher_logits, temperature).detach()
    return F.kl_div(student, mean, reduction="batchmean", log_target=True) * temperature**2


def mt_average_losses_loss(student_logits: Tensor, teacher_logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Return temperature^2 times the mean over teachers of KL(teacher || student) of the softened predictions.

    In nats, averaged over samples. Only ``student_logits`` receive a gradient.

    Shapes: (N, K), for each teacher (N, K) -> scalar.
    """
    return soft_target_loss(student_logits, *teacher_logits, temperature=temperature) / len(teacher_logits)


class MTAverage(SeveralTeachers):
    """Makes the student's softened class probabilities match the mean of several teachers' probabilities.

    An ensemble of networks answers better than each of them, and its mean answer can teach one student. With logits
    divided by T (``temperature``) before the softmax, L = T^2 * KL(1/M sum of p_m(T) || p_student(T)) over M teachers
    (``average: outputs``), or the mean of M such divergences, one per teacher (``average: losses``). Both have the same
    gradient; the second is larger by the teachers' disagreement.

    Reads: logits of student and of every teacher, each (N, K).
    Loss terms: ``kd``: nats times T^2, at least 0; sum over classes, mean over samples. 0 when the student gives the
        teachers' mean answer (``outputs``), or when student and teachers all answer alike (``losses``).
    Trains: nothing of its own.   State: none.
    Raises: NeedsError (by the core) for fewer than two teachers.
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning Workshop,
        https://arxiv.org/abs/1503.02531, section 1; both forms as in the code of AE-KD (Du et al., NeurIPS 2020).
    Differs from the paper: 1. the divergence, not the cross-entropy with soft targets; the gradient is the same. 2. the
        paper's other mean, the geometric one, is left out.
    Defaults from: the code of AE-KD (temperature 4, task 1, kd 0.9); our choice (``average``).
    """

    name = "mt_average"
    paper = Paper(
        title="Distilling the Knowledge in a Neural Network",
        authors="Hinton, Vinyals, Dean",
        year=2015,
        url="https://arxiv.org/abs/1503.02531",
        equation="section 1",
    )
    needs = Needs(teachers=(2, None), data="any")
    loss_functions = (mt_average_outputs_loss, mt_average_losses_loss)
    default_weights: ClassVar = {"task": 1.0, "kd": 0.9}
    also_known_as = ("ensemble_kd", "average_kd", "avg_kd", "multi_teacher")

    class Options(SeveralTeachersOptions):
        temperature: Temperature = 4.0
        average: Literal["outputs", "losses"] = Field(
            "outputs",
            description="What is averaged over the teachers: their probabilities, or the divergences from each. Same "
            "gradient, other value.",
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        note_weights(ctx, [1 / len(ctx.teachers)] * len(ctx.teachers))
        loss = mt_average_outputs_loss if self.options.average == "outputs" else mt_average_losses_loss
        return {"kd": loss(ctx.student.logits, [teacher.logits for teacher in ctx.teachers], self.options.temperature)}
