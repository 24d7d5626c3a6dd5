"""Learning without forgetting."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Paper, StepContext, Temperature
from kdzoo_lifelong.class_incremental import Lifelong, LifelongOptions


def lwf_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the student's softened predictions against the teacher's, in nats; mean over samples.

    ``smoothing`` mixes the student's distribution with the uniform one, so no probability is less than smoothing / K.
    There is no factor of temperature^2. Only ``student_logits`` receive a gradient.

    Shapes: (N, K), (N, K) -> scalar.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    if smoothing:
        uniform = torch.full_like(student, math.log(smoothing / student.shape[1]))
        student = torch.logaddexp(student, uniform) - math.log1p(smoothing)
    teacher = F.softmax(teacher_logits.detach() / temperature, dim=1)
    return -(teacher * student).sum(dim=1).mean()


class LwF(Lifelong):
    """Makes the network answer new samples, on the classes of earlier tasks, as it did before it learnt the new task.

    The classes come in ``tasks`` tasks. Task i starts from the network of task i - 1 and sees only its own samples:
    L = L_new(y, p_new) + lambda * L_old(p'_old, p_old), where L_new is the cross-entropy over the classes of the task,
    L_old that between the softened predictions on all earlier classes of the network before (the teacher) and the
    network now, lambda is ``loss_weights.lwf`` and T is ``temperature``. No sample of an earlier task is kept.

    Reads: logits of the student and of the network before, each (N, K).
    Loss terms: ``lwf``: nats; sum over the earlier classes, mean over samples; for a student equal to its teacher the
        entropy of the softened prediction.
    Trains: nothing of its own; one stage per task, and one more per task for the lower bound. State: none.
    Raises: NeedsError if there are more tasks than classes, or a task has no training sample.
    Source: Li, Hoiem, "Learning without Forgetting", ECCV 2016, https://arxiv.org/abs/1606.09282, equations 2 and 3;
        for a sequence of tasks in one head: Masana et al., FACIL (src/approach/lwf.py).
    Differs from the paper: 1. one head has an output for every class of the data, and the task is not given at test
        time (class-incremental): the answer is the largest output among all classes seen. The losses of a task touch
        only outputs of classes seen so far, the cross-entropy only those of the task, as if it had a head of its own.
        2. the earlier classes share one softmax, as in FACIL; the paper has one per task. 3. there is no warm-up with
        frozen weights. 4. every task is trained with the same settings; the paper lowers the learning rate for later
        ones.
    Defaults from: the paper (temperature 2, lambda 1); FACIL smooths by 1e-5, the paper does not.
    """

    name = "lwf"
    paper = Paper(
        title="Learning without Forgetting",
        authors="Li, Hoiem",
        year=2016,
        url="https://arxiv.org/abs/1606.09282",
        equation="equations 2 and 3",
    )
    loss_functions = (lwf_loss,)
    default_weights: ClassVar = {"task": 1.0, "lwf": 1.0}
    also_known_as = ("learning_without_forgetting",)

    class Options(LifelongOptions):
        temperature: Temperature = 2.0
        smoothing: float = Field(
            0.0, ge=0, le=0.1, description="Share of the uniform distribution in the student's; dimensionless."
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        if not ctx.teachers:  # the first task
            return {"lwf": ctx.student.logits.new_zeros(())}
        student, teacher = ctx.student.logits[:, self.old], ctx.teacher.logits[:, self.old]
        return {"lwf": lwf_loss(student, teacher, self.options.temperature, self.options.smoothing)}
