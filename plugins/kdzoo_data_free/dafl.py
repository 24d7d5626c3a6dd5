"""Data-free learning of student networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Needs, Paper, StepContext, Update, soft_target_loss
from kdzoo_data_free.generator import Generating
from kdzoo_data_free.statistics import batch_norm_gap_loss, batch_norm_inputs


def dafl_one_hot_loss(teacher_logits: Tensor) -> Tensor:
    """Reward a teacher that is sure of each sample: cross-entropy with its own most likely class, in nats.

    Shapes: (N, K) -> scalar, mean over samples.
    """
    return F.cross_entropy(teacher_logits, teacher_logits.detach().argmax(dim=1))


def dafl_activation_loss(teacher_pre_logits: Tensor) -> Tensor:
    """Reward samples with strong features of the teacher: minus the mean magnitude.

    Shapes: (N, D) -> scalar, in units of the features, mean over samples and features.
    """
    return -teacher_pre_logits.abs().mean()


def dafl_balance_loss(teacher_logits: Tensor) -> Tensor:
    """Reward a batch with all classes equally often: minus the entropy of the mean prediction, in nats.

    Shapes: (N, K) -> scalar from -ln K (balanced) to 0 (one class only).
    """
    log_mean = torch.logsumexp(F.log_softmax(teacher_logits, dim=1), dim=0) - math.log(len(teacher_logits))
    return (log_mean.exp() * log_mean).sum()


class DAFL(Generating):
    """Makes the student match the teacher on generated images that the teacher answers like real ones.

    It reads no training data. A generator learns to make images that the teacher answers like real ones: with certainty
    (one-hot), with strong features (activation), and with all classes equally often in a batch (balance): L = one_hot +
    alpha * activation + beta * balance. On the same images the student learns the teacher's answers. Each step updates
    the generator, then the student on the images made before that update.

    Reads: teacher logits (N, K) and pre_logits (N, D) on generated images; student logits on the same.
    Loss terms: ``one_hot``: nats, 0 for a certain teacher, mean over samples.
        ``activation``: minus the mean magnitude of the teacher's features, below 0.
        ``balance``: nats, from -ln K (balanced) to 0.
        ``batch_norm``: distance of the images' features from the mean and variance that the teacher's BatchNorm layers
        store, in the features' units, sum over layers; 0 for a teacher without BatchNorm.
        ``kd``: nats, 0 when student equals teacher, mean over samples.
    Trains: a generator with its own Adam optimizer. State: BatchNorm statistics of the generator.
    Raises: nothing.
    Source: Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian, "Data-Free Learning of Student Networks", ICCV 2019,
        https://arxiv.org/abs/1904.01186, and the authors' code.
    Differs from the paper: 1. generated pixels are clipped to 0 and 1, the range of real ones; the authors' pass
        through tanh before their BatchNorm and are unbounded. 2. balance is in nats; the authors' code uses the
        logarithm to base 10, so its weight 5 is 5 / ln 10 here. 3. the generator's Adam learns at 1e-3, the authors' at
        0.2. 4. BatchNorm in the generator has epsilon 1e-5, the authors' 0.8. 5. the recipe's schedule applies to the
        generator too. 6. the term ``batch_norm`` is not in the paper but from DeepInversion; its weight is 0 unless a
        recipe sets it.
    Defaults from: the authors' code for MNIST (loss weights, latent_dim, width); our own choice (generator_lr).
    """

    name = "dafl"
    paper = Paper(
        title="Data-Free Learning of Student Networks",
        authors="Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian",
        year=2019,
        url="https://arxiv.org/abs/1904.01186",
    )
    needs = Needs(teachers=1, pre_logits=True, data="none")
    loss_functions = (dafl_one_hot_loss, dafl_activation_loss, dafl_balance_loss, batch_norm_gap_loss, soft_target_loss)
    default_weights: ClassVar = {"one_hot": 1.0, "activation": 0.1, "balance": 2.17, "batch_norm": 0.0, "kd": 1.0}
    also_known_as = ("data_free_learning",)
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "The terms one_hot, activation and balance judge the generator and do not "
        "depend on the student; only kd is 0 when student equals teacher.",
        "beats_its_own_start": "96 steps of 8 images are too few for generator and student alike; "
        "tests/plugins/test_dafl.py has it learn the same task, without data, in 400 steps of 32.",
    }

    def step(self, ctx: StepContext) -> Iterator[Update]:
        images = self.generate(ctx)
        with batch_norm_inputs(ctx.modules["teacher"]) as seen:
            teacher = ctx.networks["teacher"](images)
        yield Update(
            "generator",
            {
                "one_hot": dafl_one_hot_loss(teacher.logits),
                "activation": dafl_activation_loss(teacher.pre_logits),
                "balance": dafl_balance_loss(teacher.logits),
                "batch_norm": batch_norm_gap_loss(seen) if seen else images.new_zeros(()),
            },
        )
        student = ctx.networks["student"](images.detach())
        yield Update("student", {"kd": soft_target_loss(student.logits, teacher.logits)})

    def warnings(self, means: Mapping[str, float]) -> Iterable[str]:
        least = -math.log(self.shapes.num_classes)
        if means["balance"] > least / 2:
            yield (
                f"the generator makes few classes: balance is {means['balance']:.2f}, {least:.2f} were all alike; "
                "raise its weight or data.batch_size"
            )
