"""Small convnets over time, for samples of sensors: (N, C, 1, W), W moments of C channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdzoo.api.models import StagedNet, he_normal, network_cfgs, register_networks


class SensorCNN(StagedNet):
    """One convolution over ``kernel`` moments a stage, with BatchNorm and ReLU, and a max-pooling of 2 between stages.

    Shapes: (N, C, 1, W) -> (N, K).
    """

    def __init__(
        self,
        widths: Sequence[int],
        kernel: int = 5,
        num_classes: int = 5,
        in_chans: int = 6,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        names, before = [], in_chans
        for depth, width in enumerate(widths):
            layers: list[nn.Module] = [nn.MaxPool2d((1, 2), ceil_mode=True)] if depth else []
            layers += [nn.Conv2d(before, width, (1, kernel), padding=(0, kernel // 2), bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            before = width
            names.append((f"stage{depth + 1}", before, 2**depth))
            self.add_module(names[-1][0], nn.Sequential(*layers))
        self.finish(names, before, num_classes, 1, drop_rate)
        he_normal(self)


VARIANTS: dict[str, dict[str, Any]] = {
    "sensor_cnn": {"widths": (32, 64, 128)},
    "sensor_cnn_small": {"widths": (12, 24, 32)},
}

default_cfgs = network_cfgs(VARIANTS, size=50, channels=6, classes=5, first_conv="stage1.0")
models = register_networks(SensorCNN, VARIANTS)
