"""What the losses of several algorithms are made of: pure functions of tensors, all in log space and nats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_target_loss(student_logits: Tensor, *teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return temperature^2 times KL(teacher || student) of the softened predictions, in nats, averaged over samples.

    Both sets of logits are divided by the temperature before the softmax. Of several teachers the divergences are
    summed. Only ``student_logits`` receive a gradient, whose size hardly depends on the temperature; it is that of the
    cross-entropy with the teacher's soft targets.

    Shapes: (N, K), each teacher's (N, K) -> scalar, at least 0, 0 when student equals teacher.
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning Workshop,
        https://arxiv.org/abs/1503.02531, section 2.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teachers = [F.log_softmax(logits.detach() / temperature, dim=1) for logits in teacher_logits]
    terms = [F.kl_div(student, teacher, reduction="batchmean", log_target=True) for teacher in teachers]
    return torch.stack(terms).sum() * temperature**2


def mean_prediction(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Return the logarithm of the mean of several networks' softened probabilities.

    Shapes: each (N, K) -> (N, K), each row the logarithm of a distribution.
    """
    predictions = torch.stack([F.log_softmax(own / temperature, dim=1) for own in logits])
    return predictions.logsumexp(dim=0) - math.log(len(predictions))


def sample_distances(features: Tensor) -> Tensor:
    """Return the Euclidean distances between all samples of a batch.

    Shapes: (N, ...) -> (N, N), in units of the features.
    """
    samples = features.flatten(1)
    # From the differences themselves: the product form loses close pairs in float32.
    return torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")
