"""Zero-shot knowledge transfer by adversarial belief matching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Needs, Paper, StepContext, Temperature, Update
from kdzoo_data_free.generator import Generating, GeneratingOptions


def zskt_divergence_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Average KL(teacher || student) over samples and classes, in nats; not multiplied by the squared temperature.

    Shapes: (N, K), (N, K) -> scalar.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).mean()


def zskt_attention_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Sum over levels the mean squared difference of the maps that show where a network is active.

    Shapes: pairs of (N, C, H, W) with one H and W a pair -> scalar, dimensionless.
    """
    gaps = [
        (attention(student) - attention(teacher)).square().mean()
        for student, teacher in zip(student_features, teacher_features, strict=True)
    ]
    return torch.stack(gaps).sum()


def attention(features: Tensor) -> Tensor:
    """Mean squared activation of each place, as a unit vector: (N, C, H, W) -> (N, H*W)."""
    return F.normalize(features.square().mean(dim=1).flatten(1))


class ZSKT(Generating):
    """Makes the student match the teacher on generated images where the two differ most.

    It reads no training data. A generator learns to maximise D_KL(teacher || student). On the same images the student
    learns to minimise it, and to be active where the teacher is (attention transfer, weight beta). Each step updates
    the generator once and then, on the images made before that, the student ``student_updates`` times (n_S).

    Reads: teacher and student logits (N, K) and paired levels (N, C, H, W), on generated images.
    Loss terms: ``disagreement``: what the generator minimises, minus ``kd`` on its images, at most 0.
        ``kd``: nats a class, 0 when student equals teacher, mean over samples and classes, and over a step's updates.
        ``attention``: dimensionless, 0 when student equals teacher, mean over samples and places, sum over levels.
    Trains: a generator with its own Adam optimizer. State: BatchNorm statistics of the generator.
    Raises: NeedsError if no levels can be paired (by the core).
    Source: Micaelli, Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019,
        https://arxiv.org/abs/1905.09768, algorithm 1, and the authors' code.
    Differs from the paper: 1. generated pixels are clipped to 0 and 1, the range of real ones; the authors' are
        unbounded. 2. the generator's first map is a quarter of the image's size, the authors' 10 x 10 for images of 32
        x 32. 3. levels are all that student and teacher share; the authors take the ends of the three groups of a
        WideResNet, which for such networks are the same. 4. gradients are clipped as the recipe says
        (``train.grad_clip_norm``; the authors' code clips at 5). 5. the student learns on the images made before the
        generator's update, as in algorithm 1; the authors' code makes them again after it, from the same noise.
    Defaults from: the authors' code (temperature, beta, latent_dim, generator_lr, width) and the paper
        (student_updates; 7 in the code).
    """

    name = "zskt"
    paper = Paper(
        title="Zero-shot Knowledge Transfer via Adversarial Belief Matching",
        authors="Micaelli, Storkey",
        year=2019,
        url="https://arxiv.org/abs/1905.09768",
        equation="algorithm 1",
    )
    needs = Needs(teachers=1, features=True, data="none")
    loss_functions = (zskt_divergence_loss, zskt_attention_loss)
    default_weights: ClassVar = {"disagreement": 1.0, "kd": 1.0, "attention": 250.0}
    also_known_as = ("zero_shot_knowledge_transfer",)
    skip_checks: ClassVar = {
        "beats_its_own_start": "96 steps of 8 images are too few for an adversarial game; tests/plugins/test_zskt.py "
        "has it learn the same task, without data, in more.",
    }

    class Options(GeneratingOptions):
        temperature: Temperature = 1.0
        student_updates: int = Field(10, ge=1, le=100, description="Updates of the student on each batch of images.")

    def step(self, ctx: StepContext) -> Iterator[Update]:
        images = self.generate(ctx)
        student, teacher = ctx.networks["student"], ctx.networks["teacher"]
        taught = teacher(images)
        divergence = zskt_divergence_loss(student(images).logits, taught.logits, self.options.temperature)
        yield Update("generator", {"disagreement": -divergence})
        images = images.detach()
        logits, features = taught.logits.detach(), [feature.detach() for feature in taught.features]
        for _ in range(self.options.student_updates):
            answer = student(images)
            yield Update(
                "student",
                {
                    "kd": zskt_divergence_loss(answer.logits, logits, self.options.temperature),
                    "attention": zskt_attention_loss(answer.features, features),
                },
            )
