"""Wide residual networks for 32 x 32 images, of depth 6n + 4.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdzoo.api.models import StagedNet, he_normal, network_cfgs, register_networks


class PreActBlock(nn.Module):
    """BatchNorm and ReLU come before each of two convolutions; a block that changes width has a 1 x 1 shortcut."""

    def __init__(self, before: int, width: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes = (stride, before) != (1, width)
        self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        out = self.conv2(self.drop(self.bn2(self.conv1(active)).relu()))
        return out + (x if self.shortcut is None else self.shortcut(active))


class CifarWideResNet(StagedNet):
    """A stem of 3 x 3 and three stages of ``width`` times 16, 32 and 64 channels.

    A level is a stage's sum, before the BatchNorm and ReLU that the next block begins with.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 100,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        block_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth: {depth}; 6n + 4 would be right, e.g. 16, 28, 40")
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        stages, before = [], 16
        for i in range(3):
            channels = 16 * 2**i * width
            blocks = []
            for j in range((depth - 4) // 6):
                blocks.append(PreActBlock(before, channels, 2 if i and not j else 1, block_drop_rate))
                before = channels
            stages.append((f"block{i + 1}", channels, 2**i))
            self.add_module(stages[-1][0], nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(before)
        self.finish(stages, before, num_classes, drop_rate=drop_rate)
        he_normal(self)

    def enter(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def leave(self, x: Tensor) -> Tensor:
        return self.bn1(x).relu()


VARIANTS: dict[str, dict[str, Any]] = {
    f"cifar_wrn_{depth}_{width}": {"depth": depth, "width": width} for depth in (16, 40) for width in (1, 2)
}

default_cfgs = network_cfgs(VARIANTS, size=32, channels=3, classes=100, first_conv="conv1")
models = register_networks(CifarWideResNet, VARIANTS)
