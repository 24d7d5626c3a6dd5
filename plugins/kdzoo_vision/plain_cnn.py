"""Plain convnets: those of 2 to 10 layers that teacher assistants were tried on, and tiny ones for 8 x 8 digits.

Source: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020,
https://arxiv.org/abs/1902.03393 (plain CNNs for CIFAR).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdzoo.api.models import StagedNet, he_normal, network_cfgs, register_networks


class PlainCNN(StagedNet):
    """Stages of 3 x 3 convolutions, each with BatchNorm and ReLU, and a max-pooling of 2 between stages.

    ``stages`` gives the channels of each convolution, e.g. ``((16, 16), (32, 32))``. After the last stage there is
    another pooling when ``last_pool``, then average pooling to ``grid`` x ``grid`` (no change at the paper's size of
    32 x 32, and what makes other sizes work), then a hidden layer of ``hidden`` units, if any, and the classifier.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        grid: int = 1,
        hidden: int = 0,
        last_pool: bool = True,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        names, before = [], in_chans
        for depth, widths in enumerate(stages):
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if depth else []
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            names.append((f"stage{depth + 1}", before, 2**depth))
            self.add_module(names[-1][0], nn.Sequential(*layers))
        flat = before * grid * grid
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if last_pool else nn.Identity()
        self.hidden = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.finish(names, hidden or flat, num_classes, grid, drop_rate)
        he_normal(self)

    def leave(self, x: Tensor) -> Tensor:
        return self.pool(x)

    def embed(self, x: Tensor) -> Tensor:
        return self.hidden(x)


PLAIN: dict[str, dict[str, Any]] = {
    "plain_cnn2": {"stages": ((16,), (16,)), "grid": 8},
    "plain_cnn4": {"stages": ((16, 16), (32, 32)), "grid": 8},
    "plain_cnn6": {"stages": ((16, 16), (32, 32), (64, 64)), "grid": 4},
    "plain_cnn8": {"stages": ((16, 16), (32, 32), (64, 64), (128, 128)), "grid": 2, "hidden": 64},
    "plain_cnn10": {"stages": ((32, 32), (64, 64), (128, 128), (256, 256, 256, 256)), "grid": 2, "hidden": 128},
}
DIGITS: dict[str, dict[str, Any]] = {
    "digits_cnn_tiny": {"stages": ((6,), (12,)), "last_pool": False},  # 868 parameters for grey 8 x 8 digits
    "digits_cnn_small": {"stages": ((16,), (32,)), "last_pool": False},
    "digits_cnn": {"stages": ((32, 32), (64, 64), (128,)), "last_pool": False},
}

default_cfgs = {
    **network_cfgs(PLAIN, size=32, channels=3, classes=10, first_conv="stage1.0"),
    **network_cfgs(DIGITS, size=8, channels=1, classes=10, first_conv="stage1.0"),
}
plain_models = register_networks(PlainCNN, PLAIN)
digits_models = register_networks(PlainCNN, DIGITS)
