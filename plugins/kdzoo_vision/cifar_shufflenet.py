"""ShuffleNet, first and second version, for 32 x 32 images.

Source: Zhang et al., "ShuffleNet", CVPR 2018, https://arxiv.org/abs/1707.01083; Ma et al., "ShuffleNet V2", ECCV 2018,
https://arxiv.org/abs/1807.11164; with the stem of 1 x 1 and the strides of the distillation benchmark of Tian et al.,
ICLR 2020, https://arxiv.org/abs/1910.10699.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo.api.models import StagedNet, he_normal, network_cfgs, register_networks

STEM = 24


def normed(
    before: int, width: int, size: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """A convolution with BatchNorm and, unless told otherwise, ReLU."""
    conv = nn.Conv2d(before, width, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), *([nn.ReLU()] if relu else []))


class UnitV1(nn.Module):
    """Grouped 1 x 1, shuffle, 3 x 3 a channel, grouped 1 x 1; added to its input, or joined to it when it halves it."""

    def __init__(self, before: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        made = width - before if stride == 2 else width
        inner = made // 4
        first = 1 if before == STEM else groups
        self.squeeze = normed(before, inner, groups=first)
        self.shuffle = nn.ChannelShuffle(first)
        self.filter = normed(inner, inner, 3, stride, groups=inner)
        self.expand = normed(inner, made, groups=groups, relu=False)
        self.halves = stride == 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(self.filter(self.shuffle(self.squeeze(x))))
        if self.halves:
            return torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1).relu()
        return (out + x).relu()


class UnitV2(nn.Module):
    """Half of the channels pass, half are filtered, then both are shuffled; when halving the map, both are filtered."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        taken = before if stride == 2 else half
        self.left: nn.Module | None = None
        if stride == 2:
            self.left = nn.Sequential(normed(before, before, 3, 2, groups=before, relu=False), normed(before, half))
        self.right = nn.Sequential(
            normed(taken, half), normed(half, half, 3, stride, groups=half, relu=False), normed(half, half)
        )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.left is None else (self.left(x), x)
        return self.shuffle(torch.cat([left, self.right(right)], 1))


class CifarShuffleNet(StagedNet):
    """A stem of 1 x 1 and three stages that halve the map; ``groups`` is None for the second version's units.

    ``widths`` and ``blocks`` are of each stage; ``last`` adds a 1 x 1 convolution to that many channels.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        groups: int | None = None,
        last: int = 0,
        num_classes: int = 100,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = normed(in_chans, STEM)
        stages, before = [], STEM
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            units: list[nn.Module] = []
            for j in range(count):
                stride = 1 if j else 2
                units.append(UnitV2(before, width, stride) if groups is None else UnitV1(before, width, stride, groups))
                before = width
            stages.append((f"layer{i + 1}", width, 2 ** (i + 1)))
            self.add_module(stages[-1][0], nn.Sequential(*units))
        self.last = normed(before, last) if last else nn.Identity()
        self.finish(stages, last or before, num_classes, drop_rate=drop_rate)
        he_normal(self)

    def enter(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def leave(self, x: Tensor) -> Tensor:
        return self.last(x)


VARIANTS: dict[str, dict[str, Any]] = {
    "cifar_shuffle_v1": {"widths": (240, 480, 960), "blocks": (4, 8, 4), "groups": 3},
    "cifar_shuffle_v2": {"widths": (116, 232, 464), "blocks": (4, 8, 4), "last": 1024},
}

default_cfgs = network_cfgs(VARIANTS, size=32, channels=3, classes=100, first_conv="stem.0")
models = register_networks(CifarShuffleNet, VARIANTS)
