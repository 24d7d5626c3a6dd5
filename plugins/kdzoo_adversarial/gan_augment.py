"""A generator, trained on the training set, that makes more samples for the student."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    FinishedRun,
    Images,
    Needs,
    OwnNetwork,
    Paper,
    ReportItem,
    Shapes,
    StepContext,
    Temperature,
    Update,
    soft_target_loss,
)
from kdzoo_adversarial.discriminators import adversary, collapse, watch

#: Pictures of each class in the report, and the number of classes shown.
SHOWN, CLASSES_SHOWN = 6, 10


def gan_augment_discriminator_loss(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """Average the cross-entropies of "real" on real and "fake" on generated samples, in nats.

    Shapes: any shape, the same or not for both; log-odds -> scalar. Undecided scores of 0 cost 2 ln 2.
    """
    return F.softplus(-real_score).mean() + F.softplus(fake_score).mean()


def gan_augment_generator_loss(fake_score: Tensor) -> Tensor:
    """Average the cross-entropy of "real" on generated samples, in nats; ln 2 where the discriminator is undecided.

    Shapes: any shape; log-odds -> scalar.
    """
    return F.softplus(-fake_score).mean()


class ClassGenerator(nn.Module):
    """Noise and a class to images in [0, 1]: a quarter-size map, doubled twice, with convolutions between.

    Shapes: (N, latent_dim), (N,) classes -> (N, C, H, W).
    """

    def __init__(self, latent_dim: int, width: int, num_classes: int, image: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *size = image
        self.size = (size[0], size[1])
        # At least 2x2: in a batch of one BatchNorm averages over positions only.
        self.base = (width, *(max(2, math.ceil(side / 4)) for side in size))
        self.classes = nn.Embedding(num_classes, latent_dim)
        self.stem = nn.Linear(2 * latent_dim, math.prod(self.base))
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, channels, 3, padding=1),
        )

    def forward(self, latent: Tensor, classes: Tensor) -> Tensor:
        start = self.stem(torch.cat([latent, self.classes(classes)], dim=1))
        maps = self.blocks(start.unflatten(1, self.base))
        if maps.shape[2:] != self.size:
            maps = F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False)
        return torch.sigmoid(maps)


class ClassDiscriminator(nn.Module):
    """Convolutions on images, without normalisation, and two heads: real or generated, and the class.

    Shapes: (N, C, H, W) in [0, 1] -> score (N,), class logits (N, K).
    """

    def __init__(self, width: int, num_classes: int, image: tuple[int, int, int]) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(image[0], width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.score = nn.Linear(8 * width, 1)
        self.label = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.pool(self.maps(2 * images - 1)).flatten(1)
        return self.score(hidden).squeeze(1), self.label(hidden)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm, because generated samples have others than the data."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum


class GANAugment(Algorithm):
    """Makes the student match the teacher on the training set, and on samples of a GAN that was trained on it.

    On the training set a student can learn little more from its teacher, because both fit it almost perfectly. A
    class-conditional generator G makes new samples of the same distribution; the teacher answers them, and the student
    learns these answers: L = T^2 KL(p_t || p_s) on real samples, and the same on generated ones, with T
    ``temperature``. The GAN is trained together with the student, on the same batches. Its discriminator separates real
    from generated samples and names the class of both. The generator learns to make samples that look real and show
    their class.

    Reads: the images (N, C, H, W) and labels of the batch; logits of student and teacher on them, (N, K), and on
        generated images.
    Loss terms: ``kd``: nats times T^2, 0 when student equals teacher, mean over samples.
        ``kd_generated``: the same on generated samples, times the share of ``warmup_epochs`` that is done.
        ``discriminator``: nats, 2 ln 2 when undecided, mean over samples. ``generator``: nats, ln 2 when undecided.
        ``discriminator_class``, ``generator_class``: nats, cross-entropies of the discriminator's classes, on real and
        generated samples, and on generated ones; means over samples.
    Trains: a generator and a discriminator with Adam optimizers of their own.   State: BatchNorm of the generator.
    Raises: NeedsError if the data are not images.
    Source: Liu, Fusi, Mackey, "Teacher-Student Compression with Generative Adversarial Networks", 2018,
        https://arxiv.org/abs/1812.02271, and the authors' code (GAN-TSC); the GAN: Odena, Olah, Shlens, "Conditional
        Image Synthesis with Auxiliary Classifier GANs", ICML 2017.
    Differs from the paper: 1. the GAN is trained together with the student; the authors' is trained before. 2. each
        step has real and generated samples; in the authors' code a step has one kind, generated ones with probability
        p_fake: the weights of ``kd`` and ``kd_generated`` replace that. 3. the divergence of softened answers; the
        authors' code has the squared difference of logits. 4. the task loss on real samples is added. 5. the student's
        BatchNorm statistics come from real samples only. 6. the networks of the GAN are small and our own.
    Defaults from: ``kd`` (temperature 4, task 0.1, kd 0.9); our own choice (all else), tuned on nothing.
    """

    name = "gan_augment"
    paper = Paper(
        title="Teacher-Student Compression with Generative Adversarial Networks",
        authors="Liu, Fusi, Mackey",
        year=2018,
        url="https://arxiv.org/abs/1812.02271",
    )
    needs = Needs(teachers=1, makes_images=True)
    loss_functions = (soft_target_loss, gan_augment_generator_loss, gan_augment_discriminator_loss)
    default_weights: ClassVar = {
        "task": 0.1,
        "kd": 0.9,
        "kd_generated": 0.9,
        "discriminator": 1.0,
        "discriminator_class": 1.0,
        "generator": 1.0,
        "generator_class": 1.0,
    }
    also_known_as = ("gan_tsc", "gan_mc", "gan_compression")
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "The terms of the GAN do not depend on the student, and on generated samples "
        "the answers are new; kd is 0.",
    }

    class Options(AlgorithmOptions):
        temperature: Temperature = 4.0
        generated: float = Field(
            1.0, gt=0, le=16, description="Generated samples for each real one in a step of the student."
        )
        warmup_epochs: int = Field(
            5,
            ge=0,
            le=10_000,
            description="Epochs over which the weight of generated samples grows to its full value.",
        )
        latent_dim: int = Field(64, ge=1, le=65536, description="Width of the generator's input noise.")
        width: int = Field(
            64,
            ge=2,
            le=4096,
            description="Channels of the generator's first map; the last has half of it, and so has the "
            "discriminator's first.",
        )
        generator_lr: float = Field(
            1e-3, gt=0, le=10, description="Adam learning rate of the generator, before the schedule."
        )
        discriminator_lr: float = Field(
            1e-3, gt=0, le=10, description="Adam learning rate of the discriminator, before the schedule."
        )

    options: Options

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        own = self.options
        self.generator = ClassGenerator(own.latent_dim, own.width, shapes.num_classes, shapes.image)
        self.discriminator = ClassDiscriminator(max(1, own.width // 2), shapes.num_classes, shapes.image)

    def networks(self) -> Mapping[str, OwnNetwork]:
        return {
            "generator": adversary(self.generator, self.options.generator_lr),
            "discriminator": adversary(self.discriminator, self.options.discriminator_lr),
        }

    def step(self, ctx: StepContext) -> Iterator[Update]:
        real, targets = ctx.batch.inputs.float(), ctx.batch.targets
        images, classes = self.generate(ctx)

        score, label = self.discriminator(real)
        fake_score, fake_label = self.discriminator(images.detach())
        watch(ctx, score, fake_score)
        named = (F.cross_entropy(label, targets) + F.cross_entropy(fake_label, classes)) / 2
        loss = gan_augment_discriminator_loss(score, fake_score)
        yield Update("discriminator", {"discriminator": loss, "discriminator_class": named})

        score, label = self.discriminator(images)  # the discriminator is already updated here
        loss = gan_augment_generator_loss(score)
        yield Update("generator", {"generator": loss, "generator_class": F.cross_entropy(label, classes)})

        images = images.detach()
        with torch.no_grad():
            answers = ctx.networks["teacher"](images).logits
        ctx.note("generated_class_accuracy", (answers.argmax(dim=1) == classes).float().mean())
        with statistics_kept(ctx.modules["student"]):
            student = ctx.networks["student"](images).logits
        done = min(1.0, (ctx.clock.step + 1) / max(1, self.options.warmup_epochs * ctx.clock.steps_per_epoch))
        yield Update(
            "student",
            {
                "task": ctx.task_loss(ctx.student.logits),
                "kd": soft_target_loss(ctx.student.logits, ctx.teacher.logits, temperature=self.options.temperature),
                "kd_generated": done * soft_target_loss(student, answers, temperature=self.options.temperature),
            },
        )

    def generate(self, ctx: StepContext) -> tuple[Tensor, Tensor]:
        """Images of random classes and those classes: (N, C, H, W), (N,)."""
        random, count = ctx.random("generated"), max(1, round(self.options.generated * ctx.batch_size))
        latent = torch.randn(count, self.options.latent_dim, generator=random).to(ctx.device)
        classes = torch.randint(self.shapes.num_classes, (count,), generator=random).to(ctx.device)
        return self.generator(latent, classes), classes

    def warnings(self, means: Mapping[str, float]) -> Iterable[str]:
        return collapse(means, "real samples", "generated ones")

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterator[ReportItem]:
        generator, names = run.algorithm(run.student).generator, run.classes[:CLASSES_SHOWN]
        device = next(generator.parameters()).device
        latent = torch.randn(len(names) * SHOWN, run.options.latent_dim, generator=run.random("generated"))
        classes = torch.arange(len(names)).repeat_interleave(SHOWN)
        with torch.no_grad():
            images = generator(latent.to(device), classes.to(device)).cpu()
        yield Images(
            "Generated samples",
            images,
            tuple(names[k] for k in classes),
            "What the student sees besides the data, by the class that was asked for.",
        )
