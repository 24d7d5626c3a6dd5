"""Supervision transfer: features of one modality supervise another."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import AlgorithmOptions, Needs, NeedsError, Paper, Shapes, StepContext
from kdzoo_cross_modal.pairs import Pairs, PairsOptions


def supervision_transfer_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Average the squared difference of two feature maps of the same scenes; the larger is pooled to the smaller.

    Only ``student_map`` receives a gradient.

    Shapes: (N, C, H, W), (N, C, H', W') -> scalar, in squared activations.
    """
    height = min(student_map.shape[2], teacher_map.shape[2])
    width = min(student_map.shape[3], teacher_map.shape[3])
    student, teacher = (F.adaptive_avg_pool2d(features, (height, width)) for features in (student_map, teacher_map))
    return F.mse_loss(student, teacher.detach())


class SupervisionTransfer(Pairs):
    """Makes the student's features of one modality match a teacher's features of another, over unlabelled pairs.

    A network for modality s, trained with labels, supervises one for modality d, which has pairs only: at level i* the
    student minimises ||psi_d(I_d) - phi_s(I_s)||^2 over all pairs (option ``level``). Then it is fine-tuned on the few
    samples with a label. Both stages share the recipe's epochs, so the control, which trains on those labels alone,
    takes as many steps.

    Reads: features of student and teacher at one paired level, (N, C, H, W). No label.
    Loss terms: ``transfer``: squared activations, 0 when both maps are equal; mean over all elements.
    Trains: a 1 x 1 convolution from the student's channels to the teacher's, if they differ. State: none.
    Raises: NeedsError if ``level`` is not one of the paired levels, or for fewer than two epochs.
    Source: Gupta, Hoffman, Malik, "Cross Modal Distillation for Supervision Transfer", CVPR 2016,
        https://arxiv.org/abs/1507.00448, equation 1.
    Differs from the paper: 1. a projector and pooling where the networks differ. 2. the student starts from random
        weights. 3. small data sets, and classification only; the paper also detects. This list is from general
        knowledge of the paper; we did not have its text.
    Defaults from: our own choice.
    """

    name = "supervision_transfer"
    paper = Paper(
        title="Cross Modal Distillation for Supervision Transfer",
        authors="Gupta, Hoffman, Malik",
        year=2016,
        url="https://arxiv.org/abs/1507.00448",
        equation="equation 1",
    )
    needs = Needs(teachers=1, features=True, data="unlabelled")
    loss_functions = (supervision_transfer_loss,)
    default_weights: ClassVar = {"transfer": 1.0}
    also_known_as = ("cross_modal_distillation",)

    class Options(PairsOptions):
        level: int = Field(
            -1, ge=-8, le=7, description="Paired level to match, shallow to deep; negative from the end."
        )

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        count = len(shapes.student.levels)
        self.level = self.options.level
        if not -count <= self.level < count:
            raise NeedsError(
                f"algorithm 'supervision_transfer': option 'level' is {self.level}, but {count} levels are paired: "
                f"{-count} to {count - 1}"
            )
        student, teacher = shapes.student.levels[self.level], shapes.teacher.levels[self.level]
        same = student.channels == teacher.channels
        self.projector: nn.Module = nn.Identity() if same else nn.Conv2d(student.channels, teacher.channels, 1)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        student, teacher = ctx.student.features[self.level], ctx.teacher.features[self.level]
        return {"transfer": supervision_transfer_loss(self.projector(student), teacher)}
