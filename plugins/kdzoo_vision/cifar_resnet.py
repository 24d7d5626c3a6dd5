"""Residual networks for 32 x 32 images, of depth 6n + 2.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385,
section 4.2; the four times wider 8x4 and 32x4 and the convolution on shortcuts are the distillation benchmark's of
Tian et al., "Contrastive Representation Distillation", ICLR 2020, https://arxiv.org/abs/1910.10699.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo.api.models import StagedNet, he_normal, network_cfgs, register_networks

Shortcut = Literal["conv", "pad"]


class PadShortcut(nn.Module):
    """Every second pixel, with channels of zeros on both sides: the paper's option A, free of parameters."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = more // 2, more - more // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut around them."""

    def __init__(self, before: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if (stride, before) != (1, width) and shortcut == "conv":
            conv = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
        elif (stride, before) != (1, width):
            self.shortcut = PadShortcut(width - before, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(out)) + self.shortcut(x)).relu()


class CifarResNet(StagedNet):
    """A stem of 3 x 3 and stages of (depth - 2) / 6 basic blocks, at strides 1, 2 and 4.

    ``widths`` are the channels of the stem and of each stage: three in the paper; a fourth, at stride 8, is as deep as
    the others. ``shortcut`` is "conv" (1 x 1 with BatchNorm, as in the benchmark) or "pad" (no parameters, as in the
    paper and in trained weights that are about).
    """

    def __init__(
        self,
        depth: int,
        widths: Sequence[int] = (16, 16, 32, 64),
        shortcut: Shortcut = "conv",
        num_classes: int = 100,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: {depth}; 6n + 2 would be right, e.g. 20, 32, 56")
        if shortcut not in ("conv", "pad"):
            raise ValueError(f"shortcut: '{shortcut}'; conv or pad would be right")
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = []
        for i, (before, width) in enumerate(itertools.pairwise(widths)):
            strides = [min(i, 1) + 1] + [1] * ((depth - 2) // 6 - 1)
            blocks = [BasicBlock(width if j else before, width, stride, shortcut) for j, stride in enumerate(strides)]
            stages.append((f"layer{i + 1}", width, 2**i))
            self.add_module(stages[-1][0], nn.Sequential(*blocks))
        self.finish(stages, widths[-1], num_classes, drop_rate=drop_rate)
        he_normal(self)

    def enter(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)).relu()


VARIANTS: dict[str, dict[str, Any]] = {
    f"cifar_resnet{depth}": {"depth": depth} for depth in (8, 14, 20, 26, 32, 44, 56, 110)
}
VARIANTS |= {f"cifar_resnet{depth}x4": {"depth": depth, "widths": (32, 64, 128, 256)} for depth in (8, 32)}

default_cfgs = network_cfgs(VARIANTS, size=32, channels=3, classes=100, first_conv="conv1")
models = register_networks(CifarResNet, VARIANTS)
