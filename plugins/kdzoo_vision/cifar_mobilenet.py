"""MobileNetV2 of half width for 32 x 32 images.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
https://arxiv.org/abs/1801.04381, with the strides of the distillation benchmark of Tian et al., ICLR 2020,
https://arxiv.org/abs/1910.10699.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdzoo.api.models import StagedNet, he_normal, network_cfgs, register_networks

# Of each stage its groups: expansion, channels at width 1, blocks, stride of the first block.
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by 3 x 3, narrow by 1 x 1 without activation."""

    def __init__(self, before: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.adds = stride == 1 and before == width
        self.conv = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class CifarMobileNetV2(StagedNet):
    """A stem of stride 2, four stages at strides 2 to 16, and a 1 x 1 convolution to 1280 channels."""

    def __init__(self, width: float, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        before = int(32 * width)
        self.conv1 = nn.Conv2d(in_chans, before, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        stages = []
        for i, groups in enumerate(STAGES):
            blocks = []
            for expansion, channels, count, stride in groups:
                for j in range(count):
                    blocks.append(InvertedResidual(before, int(channels * width), 1 if j else stride, expansion))
                    before = int(channels * width)
            stages.append((f"stage{i + 1}", before, 2 ** (i + 1)))
            self.add_module(stages[-1][0], nn.Sequential(*blocks))
        last = max(1280, int(1280 * width))
        self.conv2 = nn.Conv2d(before, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.finish(stages, last, num_classes, drop_rate=drop_rate)
        he_normal(self)

    def enter(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)).relu()

    def leave(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(x)).relu()


VARIANTS: dict[str, dict[str, Any]] = {"cifar_mobilenet_v2": {"width": 0.5}}

default_cfgs = network_cfgs(VARIANTS, size=32, channels=3, classes=100, first_conv="conv1")
models = register_networks(CifarMobileNetV2, VARIANTS)
