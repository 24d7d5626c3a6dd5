"""Online distillation between peers, with a discriminator on the feature maps of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdzoo.api import (
    Algorithm,
    AlgorithmOptions,
    Level,
    Needs,
    OwnNetwork,
    Paper,
    Shapes,
    StepContext,
    Temperature,
    Update,
    soft_target_loss,
)
from kdzoo_adversarial.discriminators import adversary, collapse, watch


def afd_online_discriminator_loss(own_score: Tensor, other_score: Tensor) -> Tensor:
    """Reward scores of 1 on the other network's maps and 0 on the own ones: the sum of the mean squared misses.

    Shapes: any shape, the same or not for both; scores without unit -> scalar. Undecided scores of 1/2 cost 1/2.
    """
    return (1 - other_score).square().mean() + own_score.square().mean()


def afd_online_generator_loss(own_score: Tensor) -> Tensor:
    """Reward own maps that score 1, as the other network's: the mean squared miss.

    Shapes: any shape; scores without unit -> scalar, 1/4 where the discriminator is undecided.
    """
    return (1 - own_score).square().mean()


class MapDiscriminator(nn.Module):
    """Two convolutions on a feature map, averaged over positions, and a score.

    Shapes: (N, C, H, W) -> (N,).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.score = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.score(self.maps(features).mean(dim=(2, 3))).squeeze(1)


class AFDOnline(Algorithm):
    """Makes each of several untrained networks match the others' answers, and fool a discriminator on feature maps.

    There is no teacher. Each of M networks learns from the labels, from the others' softened answers, with T
    ``temperature``, and from the maps of the next network in a cycle (of two, from each other's): its discriminator
    learns to call the next network's maps real and its own network's maps fake; a transfer layer gives the latter the
    same number of channels. The network and its transfer layer learn to fool the discriminator. L_k = CE + T^2 mean
    KL(p_l || p_k) + (1 - D_k(f_k))^2.

    Reads: logits of the student and of every peer, each (N, K); their features at the deepest level, (N, C, H, W).
    Loss terms: ``kd``: nats times T^2, 0 when all networks agree; mean over samples and over the other networks.
        ``adversarial``: squared score, 1/4 where the discriminator is undecided, mean over samples; a network's own.
        ``discriminator``: squared score, 1/2 when undecided; mean over samples and discriminators.
        ``transfer``: as ``adversarial``, for the transfer layers; mean over samples and networks.
    Trains: a discriminator and a transfer layer (1x1 convolution) per network, both with Adam. State: none.
    Raises: NeedsError (by the core) if no levels can be paired, or without a peer.
    Source: Chung, Park, Kim, Kwak, "Feature-map-level Online Adversarial Knowledge Distillation", ICML 2020,
        https://arxiv.org/abs/2002.01775.
    Differs from the paper: 1. the adversarial term is added to the others, with one optimizer for all; in the paper it
        has its own optimizer. 2. every network has a transfer layer, also if the numbers of channels agree. 3. all
        networks of a step learn from answers given before any of them was updated. 4. the discriminator, its optimizer
        and all weights are ours. There may be more: we did not have the full text.
    Defaults from: the paper (temperature 3), as far as we know; the validation split of digits (adversarial, learning
        rates); our own choice (width).
    """

    name = "afd_online"
    paper = Paper(
        title="Feature-map-level Online Adversarial Knowledge Distillation",
        authors="Chung, Park, Kim, Kwak",
        year=2020,
        url="https://arxiv.org/abs/2002.01775",
    )
    needs = Needs(teachers=0, peers=(1, None), features=True)
    loss_functions = (soft_target_loss, afd_online_generator_loss, afd_online_discriminator_loss)
    default_weights: ClassVar = {"task": 1.0, "kd": 1.0, "adversarial": 0.1, "discriminator": 1.0, "transfer": 1.0}
    also_known_as = ("afd_adversarial", "online_adversarial_kd", "adversarial_feature_distillation")
    skip_checks: ClassVar = {
        "perfect_student_scores_zero": "Among equal networks only kd is 0: adversarial and transfer are what the "
        "discriminators make of maps that went through transfer layers.",
    }

    class Options(AlgorithmOptions):
        temperature: Temperature = 3.0
        width: int = Field(64, ge=1, le=65536, description="Channels of the discriminators.")
        discriminator_lr: float = Field(
            1e-4, gt=0, le=10, description="Adam learning rate of the discriminators, before the schedule."
        )
        transfer_lr: float = Field(
            1e-2,
            gt=0,
            le=10,
            description="Adam learning rate of the transfer layers, before the schedule.",
        )

    options: Options

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.names = ("student", *(f"peer_{i}" for i in range(len(shapes.peers))))
        levels: list[Level] = [network.levels[-1] for network in (shapes.student, *shapes.peers)]
        pairs = [(level.channels, following.channels) for level, following in zip(levels, _turned(levels), strict=True)]
        self.transfers = nn.ModuleList(nn.Conv2d(own, following, 1) for own, following in pairs)
        self.discriminators = nn.ModuleList(MapDiscriminator(following, self.options.width) for _, following in pairs)

    def networks(self) -> Mapping[str, OwnNetwork]:
        return {
            "discriminators": adversary(self.discriminators, self.options.discriminator_lr),
            "transfers": adversary(self.transfers, self.options.transfer_lr),
        }

    def step(self, ctx: StepContext) -> Iterator[Update]:
        outputs = (ctx.student, *ctx.peers)
        maps = [own.features[-1] for own in outputs]
        yield Update("discriminators", {"discriminator": self.tell_apart(ctx, [own.detach() for own in maps])})
        fooled = [self.fool(k, own.detach()) for k, own in enumerate(maps)]
        yield Update("transfers", {"transfer": torch.stack(fooled).mean()})
        logits = [own.logits for own in outputs]
        for k, name in enumerate(self.names):
            others = [*logits[:k], *logits[k + 1 :]]
            yield Update(
                name,
                {
                    "task": ctx.task_loss(logits[k]),
                    "kd": soft_target_loss(logits[k], *others, temperature=self.options.temperature) / len(others),
                    "adversarial": self.fool(k, maps[k]),
                },
            )

    def tell_apart(self, ctx: StepContext, maps: Sequence[Tensor]) -> Tensor:
        """The mean loss of the discriminators; their accuracies are noted."""
        losses = []
        for k, (name, discriminator) in enumerate(zip(self.names, self.discriminators, strict=True)):
            with torch.no_grad():
                own = self.transfers[k](maps[k])
            own_score, other_score = discriminator(own), discriminator(_turned(maps)[k])
            losses.append(afd_online_discriminator_loss(own_score, other_score))
            watch(ctx, other_score, own_score, 0.5, of=f"_{name}")
        return torch.stack(losses).mean()

    def fool(self, k: int, maps: Tensor) -> Tensor:
        """The loss of network ``k`` for maps that its discriminator recognises."""
        return afd_online_generator_loss(self.discriminators[k](self.transfers[k](maps)))

    def warnings(self, means: Mapping[str, float]) -> Iterable[str]:
        for name, following in zip(self.names, _turned(self.names), strict=True):
            yield from collapse(means, f"those of {following}", f"the maps of {name}", of=f"_{name}")


def _turned(networks: Sequence) -> list:  # type: ignore[type-arg]
    """For each network the next one, which it imitates; after the last comes the first."""
    return [*networks[1:], networks[0]]
