"""How adversaries are trained, how well a discriminator separates real from fake, and when it has collapsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from kdzoo.api import OwnNetwork, StepContext

#: From this mean accuracy of an epoch on, a discriminator has won.
WON = 0.99
#: Below this mean spread of scores in an epoch, a discriminator says the same of all samples. With all objectives here,
#: decided scores are about 1 apart.
DEAD = 0.01


def adversary(module: nn.Module, lr: float) -> OwnNetwork:
    """A network of the algorithm with the usual Adam of adversaries: little momentum, no decay."""
    return OwnNetwork(module, {"name": "adam", "lr": lr, "betas": (0.5, 0.999), "weight_decay": 0.0})


def discriminator_accuracy(real_score: Tensor, fake_score: Tensor, threshold: Tensor | float = 0.0) -> Tensor:
    """Return the share of scores on the right side of ``threshold``, real ones above; real and fake count equally.

    A score on the threshold counts half, so that a discriminator which always says the same has 0.5.

    Shapes: any shape, the same or not for both -> scalar in [0, 1], without gradient.
    """
    real, fake = real_score.detach(), fake_score.detach()
    told_real = (real > threshold).float() + 0.5 * (real == threshold).float()
    told_fake = (fake < threshold).float() + 0.5 * (fake == threshold).float()
    return (told_real.mean() + told_fake.mean()) / 2


def midpoint(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """Return the threshold half way between the mean scores, for objectives without a fixed undecided score.

    Shapes: any shape -> scalar, without gradient.
    """
    return (real_score.detach().mean() + fake_score.detach().mean()) / 2


def watch(
    ctx: StepContext, real_score: Tensor, fake_score: Tensor, threshold: Tensor | float = 0.0, of: str = ""
) -> None:
    """Note a discriminator's accuracy and the standard deviation of its scores, real and fake; ``of`` names it."""
    scores = torch.cat([real_score.detach().flatten(), fake_score.detach().flatten()])
    ctx.note(f"discriminator_accuracy{of}", discriminator_accuracy(real_score, fake_score, threshold))
    ctx.note(f"discriminator_spread{of}", scores.std(correction=0))


def collapse(means: Mapping[str, float], real: str, fake: str, of: str = "") -> Iterator[str]:
    """Say that a discriminator has collapsed, if the epoch's means of what ``watch`` noted show it.

    It has collapsed if it is never wrong, or says the same of everything. If it is often wrong but judges samples
    differently, it has not collapsed: its opponent is good.
    """
    accuracy, spread = f"discriminator_accuracy{of}", f"discriminator_spread{of}"
    if means[accuracy] >= WON:
        yield (
            f"a discriminator has collapsed: over a whole epoch '{accuracy}' was {WON:.2f} or more, so it tells {fake} "
            f"from {real} without fail, and what it teaches is of little use; lower discriminator_lr"
        )
    elif means[spread] < DEAD:
        yield (
            f"a discriminator has collapsed: over a whole epoch '{spread}' was below {DEAD:.2f}, so it says the same "
            f"of {real} and {fake}, and teaches nothing; raise discriminator_lr"
        )
