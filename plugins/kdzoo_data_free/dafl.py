"""Data-free learning of student networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, OwnNetwork, Paper, Shapes, StepContext, Update


def dafl_one_hot_loss(teacher_logits: Tensor) -> Tensor:
    """Reward a teacher that is sure of each sample: cross-entropy with its own most likely class, in nats.

    Shapes: (N, K) -> scalar, mean over samples.
    """
    return F.cross_entropy(teacher_logits, teacher_logits.detach().argmax(dim=1))


def dafl_activation_loss(teacher_pre_logits: Tensor) -> Tensor:
    """Reward samples that excite the teacher's features: minus their mean magnitude.

    Shapes: (N, D) -> scalar, in units of the features, mean over samples and features.
    """
    return -teacher_pre_logits.abs().mean()


def dafl_balance_loss(teacher_logits: Tensor) -> Tensor:
    """Reward a batch that holds all classes alike: minus the entropy of the mean prediction, in nats.

    Shapes: (N, K) -> scalar from -ln K (balanced) to 0 (one class only).
    """
    log_mean = torch.logsumexp(F.log_softmax(teacher_logits, dim=1), dim=0) - math.log(len(teacher_logits))
    return (log_mean.exp() * log_mean).sum()


def dafl_student_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Average KL(teacher || student) over the samples, in nats; without temperature.

    Shapes: (N, K), (N, K) -> scalar.
    """
    teacher = F.log_softmax(teacher_logits, dim=1)
    return F.kl_div(F.log_softmax(student_logits, dim=1), teacher, reduction="batchmean", log_target=True)


class Generator(nn.Module):
    """Noise to images in [0, 1]: a quarter-size map, doubled twice by upsampling, with convolutions between.

    Shapes: (N, latent_dim) -> (N, C, H, W).
    """

    def __init__(self, latent_dim: int, width: int, contrast: float, image: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width_px = image
        self.size = (height, width_px)
        # at least 2x2, so that BatchNorm has something to average over in a batch of one
        self.base = (width, max(2, math.ceil(height / 4)), max(2, math.ceil(width_px / 4)))
        self.stem = nn.Linear(latent_dim, math.prod(self.base))
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
        )
        # spreads the pixels of each batch over [0, 1]; flat grey images teach a student little
        self.spread = nn.BatchNorm2d(channels)
        nn.init.constant_(self.spread.weight, contrast)

    def forward(self, latent: Tensor) -> Tensor:
        maps = self.spread(self.blocks(self.stem(latent).unflatten(1, self.base)))
        if maps.shape[2:] != self.size:
            maps = F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False)
        return torch.sigmoid(maps)


class DAFL(Algorithm):
    """Makes the student match the teacher on images that a generator invents to please the teacher.

    No training data is read. A generator learns to make images to which the teacher answers as it does to real ones:
    with certainty (one-hot), with strong features (activation), and with all classes equally often in a batch
    (balance): L = one_hot + alpha * activation + beta * balance. On the same images the student learns the teacher's
    answers. Each step updates the generator, then the student on the images made before that update.

    Reads: teacher logits (N, K) and pre_logits (N, D) on generated images; student logits on the same.
    Loss terms: ``one_hot``: nats, 0 for a certain teacher, mean over samples.
        ``activation``: minus the mean magnitude of the teacher's features, below 0.
        ``balance``: nats, from -ln K (balanced) to 0.
        ``kd``: nats, 0 when student equals teacher, mean over samples.
    Trains: a generator with an Adam optimizer of its own.   State: BatchNorm statistics of the generator.
    Raises: nothing.
    Source: Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian, "Data-Free Learning of Student Networks", ICCV 2019,
        https://arxiv.org/abs/1904.01186, and the authors' code.
    Differs from the paper: 1. the generator ends in BatchNorm (of scale ``contrast`` at first) and a sigmoid, so that
        pixels are in [0, 1]; the authors' ends in tanh and BatchNorm and makes normalised pixels directly. 2. balance
        is in nats; the authors' code uses the logarithm to base 10, so its weight 5 is 5 / ln 10 here. 3. the
        generator's Adam learns at 3e-4, the authors' at 0.2. 4. BatchNorm in the generator has epsilon 1e-5, the
        authors' 0.8. 5. one schedule, the recipe's, holds for the generator too.
    Defaults from: the authors' code for MNIST (loss weights, latent_dim, width); our own choice (contrast,
        generator_lr).
    """

    name = "dafl"
    paper = Paper(
        title="Data-Free Learning of Student Networks",
        authors="Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian",
        year=2019,
        url="https://arxiv.org/abs/1904.01186",
    )
    needs = Needs(teachers=1, pre_logits=True, data="none")
    default_weights: ClassVar = {"one_hot": 1.0, "activation": 0.1, "balance": 2.17, "kd": 1.0}
    also_known_as = ("data_free_learning",)
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "one_hot, activation and balance judge the generator and do not depend on the "
        "student; only kd is 0 when student equals teacher",
        "beats_its_own_start": "96 steps of 8 images are too few for generator and student alike; "
        "tests/plugins/test_dafl.py has it learn the same task, without data, in 400 steps of 32",
    }

    class Options(AlgorithmOptions):
        latent_dim: int = Field(100, ge=1, le=65536, strict=True, description="Width of the generator's input noise.")
        width: int = Field(
            128,
            ge=2,
            le=4096,
            strict=True,
            description="Channels of the generator's first map; the last has half of it.",
        )
        contrast: float = Field(
            2.0,
            gt=0,
            le=100,
            strict=True,
            description="Spread of the generated pixels at the start: 1, 2 and 4 give a standard deviation of about "
            "0.21, 0.31 and 0.40 in [0, 1]; choose the one by which the teacher normalises.",
        )
        generator_lr: float = Field(
            3e-4, gt=0, le=10, strict=True, description="Adam learning rate of the generator, before the schedule."
        )

    options: Options

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.generator = Generator(self.options.latent_dim, self.options.width, self.options.contrast, shapes.image)

    def networks(self) -> Mapping[str, OwnNetwork]:
        return {
            "generator": OwnNetwork(
                self.generator, {"name": "adam", "lr": self.options.generator_lr, "weight_decay": 0.0}
            )
        }

    def step(self, ctx: StepContext) -> Iterator[Update]:
        noise = torch.randn(ctx.batch_size, self.options.latent_dim, generator=ctx.random("latent")).to(ctx.device)
        images = self.generator(noise)
        teacher = ctx.networks["teacher"](images)
        yield Update(
            "generator",
            {
                "one_hot": dafl_one_hot_loss(teacher.logits),
                "activation": dafl_activation_loss(teacher.pre_logits),
                "balance": dafl_balance_loss(teacher.logits),
            },
        )
        student = ctx.networks["student"](images.detach())
        yield Update("student", {"kd": dafl_student_loss(student.logits, teacher.logits.detach())})
