"""FitNets: hints from a teacher's feature map."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Level, Needs, NeedsError, Paper, Shapes, StepContext


def fitnet_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return the squared difference of two tensors of one shape, averaged over all their elements.

    Only ``student_features`` receive a gradient.

    Shapes: two of the same, e.g. (N, C, H, W) -> scalar.
    """
    return F.mse_loss(student_features, teacher_features.detach())


class HintProjector(nn.Module):
    """Brings the student's map to the teacher's shape: one convolution, batch norm, and an optional ReLU.

    The convolution depends on the sizes: 3x3 with stride 2 from twice the size, 4x4 transposed with stride 2 from half
    the size, otherwise one without padding that gives the teacher's size (1x1 for equal sizes). A student map that is
    smaller in another ratio is first resized bilinearly.

    Shapes: (N, C_student, H_student, W_student) -> (N, C_teacher, H_teacher, W_teacher).
    """

    def __init__(self, student: Level, teacher: Level, use_relu: bool) -> None:
        super().__init__()
        have, want = (student.height, student.width), (teacher.height, teacher.width)
        channels = student.channels, teacher.channels
        self.resize: tuple[int, int] | None = None
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if have == (2 * want[0], 2 * want[1]):
            self.conv = nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
        elif want == (2 * have[0], 2 * have[1]):
            self.conv = nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
        elif have[0] >= want[0] and have[1] >= want[1]:
            self.conv = nn.Conv2d(*channels, kernel_size=(1 + have[0] - want[0], 1 + have[1] - want[1]))
        else:
            self.resize = want
            self.conv = nn.Conv2d(*channels, kernel_size=1)
        # The projector is never evaluated, so nothing would read running statistics.
        self.bn = nn.BatchNorm2d(teacher.channels, track_running_stats=False)
        self.relu = nn.ReLU() if use_relu else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        if self.resize is not None:
            features = F.interpolate(features, self.resize, mode="bilinear", align_corners=False)
        return self.relu(self.bn(self.conv(features)))


class FitNet(Algorithm):
    """Makes a feature map of the student, projected to the teacher's shape, match the teacher's map (the hint).

    The hint at one level guides the lower half of a student that is thinner, and perhaps deeper, than its teacher. A
    projector r, trained with the student and dropped afterwards, bridges the shapes: L = mean of (r(student map) -
    teacher map)^2. ``level`` chooses the pair of maps.

    Reads: features of student and teacher at one paired level, each (N, C, H, W).
    Loss terms: ``hint``: squared activation units, at least 0, 0 when the projected student map equals the teacher's;
        mean over all elements.
    Trains: the projector from the student's to the teacher's shape.   State: none.
    Raises: NeedsError if no levels can be paired (by the core), or ``level`` is not one of them.
    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015,
        https://arxiv.org/abs/1412.6550, section 2.2; the projector as in mdistiller.
    Differs from the paper: 1. hint and task are trained together, as in later comparisons; the paper first trains up to
        the hinted layer alone, then the whole with soft targets. 2. mean of squares instead of half their sum. 3. batch
        norm and ReLU after the projector's convolution. 4. mdistiller's projector has no rule for some shapes; they are
        resized.
    Defaults from: mdistiller and RepDistiller (hint 100, task 1, the middle level).
    """

    name = "fitnet"
    paper = Paper(
        title="FitNets: Hints for Thin Deep Nets",
        authors="Romero, Ballas, Kahou, Chassang, Gatta, Bengio",
        year=2015,
        url="https://arxiv.org/abs/1412.6550",
        equation="section 2.2",
    )
    # Batch norm of a one-pixel map has nothing to average in a batch of one.
    needs = Needs(features=True, min_batch=2, data="any")
    loss_functions = (fitnet_loss,)
    default_weights: ClassVar = {"task": 1.0, "hint": 100.0}
    also_known_as = ("fitnets", "hint", "hints")
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "The projector between the two maps starts from random weights.",
    }

    class Options(AlgorithmOptions):
        level: int | None = Field(
            None, ge=0, le=1000, description="Which pair of levels, 0 for the shallowest; null for the middle one."
        )
        use_relu: bool = Field(
            True,
            description="End the projector in a ReLU; false for maps that go below zero (ViT, ConvNeXt).",
        )

    def __init__(self, options: FitNet.Options, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        pairs = len(shapes.teacher.levels)
        self.level = pairs // 2 if options.level is None else options.level
        if self.level >= pairs:
            raise NeedsError(
                f"algorithm 'fitnet': option 'level' is {self.level}, but {pairs} levels are paired: 0 to {pairs - 1}"
            )
        self.projector = HintProjector(
            shapes.student.levels[self.level], shapes.teacher.levels[self.level], options.use_relu
        )

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        hint = ctx.teacher.features[self.level]
        return {"hint": fitnet_loss(self.projector(ctx.student.features[self.level]), hint)}
