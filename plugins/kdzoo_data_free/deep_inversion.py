"""DeepInversion: images with a teacher's stored statistics, made from noise, and a student that learns from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    FinishedRun,
    Needs,
    NeedsError,
    OwnNetwork,
    Paper,
    ReportItem,
    Shapes,
    StepContext,
    Temperature,
    Update,
    soft_target_loss,
)
from kdzoo_data_free.generator import SHOWN, by_channel, pictures
from kdzoo_data_free.statistics import batch_norm_gap_loss, batch_norm_inputs, in_eval_mode

#: For the disagreement, the authors soften both networks by this and keep probabilities within these limits.
DISAGREEMENT_TEMPERATURE = 3.0
DISAGREEMENT_LIMITS = (0.01, 0.99)


def total_variation_loss(images: Tensor, norm: Literal["l1", "l2"]) -> Tensor:
    """Sum the differences of each pixel to its right, lower, lower left and lower right neighbour.

    ``l1``: four mean absolute differences; ``l2``: four Euclidean norms over the whole batch, not squared.
    Shapes: (N, C, H, W), H and W at least 2 -> scalar, in units of the pixels.
    """
    differences = (
        images[..., :, :-1] - images[..., :, 1:],
        images[..., :-1, :] - images[..., 1:, :],
        images[..., 1:, :-1] - images[..., :-1, 1:],
        images[..., :-1, :-1] - images[..., 1:, 1:],
    )
    sizes = [d.abs().mean() if norm == "l1" else torch.linalg.vector_norm(d) for d in differences]
    return torch.stack(sizes).sum()


def deep_inversion_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the disagreement of student and teacher: the Jensen-Shannon divergence with its directions exchanged.

    It averages KL(M || student) and KL(M || teacher) for the mean M of both predictions, as the authors' code does.
    All predictions are kept within 0.01 and 0.99.
    Shapes: (N, K), (N, K) -> scalar, in nats, mean over samples.
    """
    student, teacher = (F.softmax(o / DISAGREEMENT_TEMPERATURE, dim=1) for o in (student_logits, teacher_logits))
    mean, student, teacher = (p.clamp(*DISAGREEMENT_LIMITS) for p in ((student + teacher) / 2, student, teacher))
    divergences = [F.kl_div(p.log(), mean, reduction="batchmean") for p in (student, teacher)]
    return torch.stack(divergences).mean()


def deep_inversion_disagreement_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Penalise images on which student and teacher agree: 1 minus their divergence, which counts up to 1.

    Shapes: (N, K), (N, K) -> scalar in [0, 1].
    """
    return 1 - deep_inversion_divergence(student_logits, teacher_logits).clamp(0, 1)


class Canvas(nn.Module):
    """The current images: normalised pixels (N, C, H, W), as the teacher sees them, trained like weights."""

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.pixels = nn.Parameter(pixels)


class DeepInversion(Algorithm):
    """Makes the student match the teacher on images with the statistics stored in the teacher.

    It reads no training data. It trains a batch of noise, pixel by pixel, until the teacher sees the wanted class in
    each image and the features have the mean and variance stored in the teacher's BatchNorm layers, with a prior
    against noise: L = CE + alpha_tv * TV + alpha_l2 * l2 + alpha_f * batch_norm. In the adaptive variant images on
    which the student already agrees cost more (alpha_c * disagreement). After ``inversion_steps`` the images are kept
    and new ones begin; in the same steps the student learns the teacher's answers on the kept images.

    Reads: teacher logits (N, K) and the inputs of its BatchNorm layers, student logits (N, K), on synthetic images.
    Loss terms: ``cross_entropy``: nats, 0 for a certain teacher, mean over samples.
        ``total_variation``: in normalised pixels, 0 for flat images; the option of that name chooses the norm.
        ``l2``: in normalised pixels, norm of the batch.
        ``batch_norm``: in units of the features, 0 for the stored statistics, sum over layers.
        ``disagreement``: from 1 (student equals teacher) to 0, mean over samples; only where ``adaptive``.
        ``kd``: nats, 0 when student equals teacher, mean over samples.
    Trains: the current images, with their own Adam optimizer. State: the kept images.
    Raises: NeedsError if the teacher has no BatchNorm.
    Source: Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha, Kautz, "Dreaming to Distill: Data-free Knowledge Transfer
        via DeepInversion", CVPR 2020, https://arxiv.org/abs/1912.08795, equations 2 to 8, and the authors' code.
    Differs from the paper: 1. the student learns while images are made, in the same steps, from finished images (at
        first from unfinished ones); the paper makes all images first, or in turns with the student. 2. only the last
        ``bank`` batches are kept. 3. the last state of a batch is kept; the authors' code keeps the one that cost
        least. 4. Adam has the betas of the authors' code for ImageNet (0.5, 0.9), so it forgets a batch when the next
        begins; the authors begin a new optimizer. 5. pixels are clipped to 0 and 1 after each step, as in the authors'
        code for ImageNet but not in that for CIFAR. 6. the divergence behind ``disagreement`` has its two directions
        exchanged and its probabilities kept within 0.01 and 0.99, as in the authors' code; the paper has the
        Jensen-Shannon divergence.
    Defaults from: the authors' code for CIFAR-10 with the parameters it calls the paper's (loss weights, images,
        inversion_steps, inversion_lr, jitter); the paper (weight of disagreement); our own choice (bank, temperature).
    """

    name = "deep_inversion"
    paper = Paper(
        title="Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
        authors="Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha, Kautz",
        year=2020,
        url="https://arxiv.org/abs/1912.08795",
        equation="equations 2 to 8",
    )
    needs = Needs(teachers=1, data="none")
    loss_functions = (total_variation_loss, batch_norm_gap_loss, deep_inversion_disagreement_loss, soft_target_loss)
    default_weights: ClassVar = {
        "cross_entropy": 1.0,
        "total_variation": 2.5e-5,
        "l2": 0.0,
        "batch_norm": 10.0,
        "disagreement": 10.0,
        "kd": 1.0,
    }
    also_known_as = ("deepinversion", "adaptive_deep_inversion", "adi", "dream_to_distill")
    skip_checks: ClassVar = {
        "beats_its_own_start": "96 steps are too few to make images and learn from them; "
        "tests/plugins/test_deep_inversion.py has it learn the same task, without data, in more.",
    }

    class Options(AlgorithmOptions):
        images: int = Field(256, ge=2, le=65536, description="Number of images that are made at a time.")
        inversion_steps: int = Field(2000, ge=1, le=1_000_000, description="Number of steps to make a batch of images.")
        inversion_lr: float = Field(0.05, gt=0, le=10, description="Adam learning rate of the images.")
        bank: int = Field(20, ge=1, le=10_000, description="Batches of images kept for the student.")
        jitter: int = Field(2, ge=0, le=64, description="Largest random shift of the images in each step, pixels.")
        adaptive: bool = Field(True, description="Make images on which student and teacher disagree.")
        total_variation: Literal["l1", "l2"] = Field(
            "l2", description="Mean absolute differences of neighbours, or Euclidean norms over the batch."
        )
        temperature: Temperature = 3.0

    options: Options
    seed: Tensor
    bank: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        count, channels = self.options.images, shapes.image[0]
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.canvas = Canvas(self.noise(0))
        self.register_buffer("bank", torch.zeros(self.options.bank * count, *shapes.image))
        self.register_buffer("labels", torch.arange(count) % shapes.num_classes, persistent=False)
        for name, values in (("mean", shapes.teacher.mean), ("std", shapes.teacher.std)):
            self.register_buffer(name, by_channel(values, channels), persistent=False)

    def noise(self, batch: int) -> Tensor:
        """The first values of batch number ``batch`` of the images; the same in every process."""
        generator = torch.Generator().manual_seed(int(self.seed) * 1_000_003 + batch)
        return torch.randn(self.options.images, *self.shapes.image, generator=generator)

    def networks(self) -> Mapping[str, OwnNetwork]:
        adam = {"name": "adam", "lr": self.options.inversion_lr, "betas": (0.5, 0.9), "weight_decay": 0.0}
        # Each batch of images needs the full rate, also the last.
        return {"images": OwnNetwork(self.canvas, adam, scheduled=False)}

    def pixels(self, normalised: Tensor) -> Tensor:
        """Normalised pixels as pixels in the range of the data, [0, 1]."""
        return normalised * self.std + self.mean

    def step(self, ctx: StepContext) -> Iterator[Update]:
        yield Update("images", self.inversion_losses(ctx))
        images = self.kept(ctx.clock.step)
        rows = torch.randint(len(images), (ctx.batch_size,), generator=ctx.random("rows")).to(ctx.device)
        images = self.pixels(rolled(images[rows], self.options.jitter, ctx.random("view")))
        with torch.no_grad():
            teacher = ctx.networks["teacher"](images)
        student = ctx.networks["student"](images)
        loss = soft_target_loss(student.logits, teacher.logits, temperature=self.options.temperature)
        yield Update("student", {"kd": loss})

    def inversion_losses(self, ctx: StepContext) -> dict[str, Tensor]:
        """The terms that the current images minimise."""
        normalised = rolled(self.canvas.pixels, self.options.jitter, ctx.random("jitter"))
        images = self.pixels(normalised)
        with batch_norm_inputs(ctx.modules["teacher"]) as seen:
            teacher = ctx.networks["teacher"](images)
        if not seen:
            raise NeedsError(
                "algorithm 'deep_inversion': reads what the teacher's BatchNorm layers remember, and the teacher has "
                "none; choose a teacher with BatchNorm, or another data-free algorithm"
            )
        losses = {
            "cross_entropy": F.cross_entropy(teacher.logits, self.labels),
            "total_variation": total_variation_loss(normalised, self.options.total_variation),
            "l2": torch.linalg.vector_norm(normalised),
            "batch_norm": batch_norm_gap_loss(seen),
        }
        if self.options.adaptive:
            with in_eval_mode(ctx.modules["student"]):
                student = ctx.networks["student"](images)
            losses["disagreement"] = deep_inversion_disagreement_loss(student.logits, teacher.logits)
        return losses

    def kept(self, step: int) -> Tensor:
        """Normalised images (N, C, H, W) that are finished before ``step``; the current ones if there are none."""
        batches = min(step // self.options.inversion_steps, self.options.bank)
        return self.bank[: batches * self.options.images] if batches else self.canvas.pixels.detach()

    def update(self, ctx: StepContext) -> None:
        pixels = self.canvas.pixels
        pixels.copy_(self.pixels(pixels).clamp(0, 1).sub(self.mean).div(self.std))
        batch, place = divmod(ctx.clock.step + 1, self.options.inversion_steps)
        if place == 0:
            start = (batch - 1) % self.options.bank * self.options.images
            self.bank[start : start + self.options.images] = pixels
            pixels.copy_(self.noise(batch))

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        algorithm = run.algorithm(run.student)
        finished = algorithm.bank.flatten(1).any(1)
        images = algorithm.bank[finished] if finished.any() else algorithm.canvas.pixels.detach()
        rows = torch.randperm(len(images), generator=run.random("rows"))[:SHOWN]
        shown = algorithm.pixels(images[rows.to(images.device)])
        yield pictures(shown, run.network(run.teachers[0]), run.classes)


def rolled(images: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Move images (N, C, H, W), all alike, by up to ``most`` pixels each way; what leaves enters on the other side."""
    down, right = torch.randint(-most, most + 1, (2,), generator=random).tolist()
    return images.roll((down, right), dims=(2, 3))
