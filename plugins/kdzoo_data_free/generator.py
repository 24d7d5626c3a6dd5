"""A generator of images, and the base of the algorithms that train one: its options, optimizer and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    FinishedRun,
    Images,
    ModelShapes,
    OwnNetwork,
    ReportItem,
    Shapes,
    StepContext,
)

#: Synthetic samples in the report.
SHOWN = 40


class Generator(nn.Module):
    """Noise to images in [0, 1]: a quarter-size map, doubled twice by upsampling, with convolutions between.

    In training a batch has the mean and the standard deviation of the teacher's normalisation, except for clipping to 0
    and 1.

    Shapes: (N, latent_dim) -> (N, C, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, latent_dim: int, width: int, image: tuple[int, int, int], teacher: ModelShapes) -> None:
        super().__init__()
        channels, height, width_px = image
        self.size = (height, width_px)
        # at least 2x2, because in a batch of one BatchNorm averages over positions only
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
        self.normalise = nn.BatchNorm2d(channels, affine=False)
        for name, values in (("mean", teacher.mean), ("std", teacher.std)):
            self.register_buffer(name, by_channel(values, channels), persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        maps = self.normalise(self.blocks(self.stem(latent).unflatten(1, self.base)))
        if maps.shape[2:] != self.size:
            maps = F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False)
        return (maps * self.std + self.mean).clamp(0, 1)


class GeneratingOptions(AlgorithmOptions):
    """Options of every algorithm that trains a generator."""

    latent_dim: int = Field(100, ge=1, le=65536, description="Width of the generator's input noise.")
    width: int = Field(
        128, ge=2, le=4096, description="Channels of the generator's first map; the last has half of it."
    )
    generator_lr: float = Field(
        1e-3, gt=0, le=10, description="Adam learning rate of the generator, before the schedule."
    )


class Generating(Algorithm):
    """Base of this family's algorithms that train a generator: makes it, feeds it noise, and shows what it made."""

    Options = GeneratingOptions

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.generator = Generator(self.options.latent_dim, self.options.width, shapes.image, shapes.teacher)

    def networks(self) -> Mapping[str, OwnNetwork]:
        adam = {"name": "adam", "lr": self.options.generator_lr, "weight_decay": 0.0}
        return {"generator": OwnNetwork(self.generator, adam)}

    def generate(self, ctx: StepContext) -> Tensor:
        """A batch of images (N, C, H, W) from noise of this step."""
        return self.generator(self.noise(ctx.batch_size, ctx.random("latent")))

    def noise(self, samples: int, random: torch.Generator) -> Tensor:
        """The generator's input: (N, latent_dim), on the generator's device."""
        return torch.randn(samples, self.options.latent_dim, generator=random).to(self.generator.mean.device)

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        algorithm: Generating = run.algorithm(run.student)
        with torch.no_grad():
            images = algorithm.generator(algorithm.noise(SHOWN, run.random("latent")))
        yield pictures(images, run.network(run.teachers[0]), run.classes)


def by_channel(values: Sequence[float], channels: int) -> Tensor:
    """Numbers of the teacher's channels as (1, C, 1, 1); their average where the data has more or fewer channels."""
    numbers = torch.tensor(values, dtype=torch.float32)
    return (numbers if len(numbers) == channels else numbers.mean().expand(channels)).reshape(1, -1, 1, 1).clone()


@torch.no_grad()
def pictures(images: Tensor, teacher: nn.Module, classes: Sequence[str]) -> Images:
    """Show synthetic images (N, C, H, W), each with the teacher's answer."""
    probabilities = teacher(images).logits.float().softmax(dim=1)
    captions = tuple(f"{classes[int(p.argmax())]} ({float(p.max()):.0%})" for p in probabilities)
    return Images(
        "Synthetic samples",
        images.cpu(),
        captions,
        "What the student was trained on instead of data. Below each: the class that the teacher sees, and how surely.",
    )
