"""VGG networks for 32 x 32 images: one linear layer, and no pooling before the last of five stages.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
https://arxiv.org/abs/1409.1556, as cut down by the distillation benchmark of Tian et al., ICLR 2020,
https://arxiv.org/abs/1910.10699.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kdzoo.api.models import StagedNet, he_normal, network_cfgs, register_networks

WIDTHS = (64, 128, 256, 512, 512)
STRIDES = (1, 2, 4, 8, 8)


class CifarVGG(StagedNet):
    """Five stages of ``per_stage`` convolutions, each with BatchNorm and ReLU."""

    def __init__(self, per_stage: int, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        stages, before, stride_before = [], in_chans, 1
        for i, (width, stride) in enumerate(zip(WIDTHS, STRIDES, strict=True)):
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if stride > stride_before else []
            for _ in range(per_stage):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            stride_before = stride
            stages.append((f"block{i}", width, stride))
            self.add_module(stages[-1][0], nn.Sequential(*layers))
        self.finish(stages, before, num_classes, drop_rate=drop_rate)
        he_normal(self)


VARIANTS: dict[str, dict[str, Any]] = {"cifar_vgg8": {"per_stage": 1}, "cifar_vgg13": {"per_stage": 2}}

default_cfgs = network_cfgs(VARIANTS, size=32, channels=3, classes=100, first_conv="block0.0")
models = register_networks(CifarVGG, VARIANTS)
