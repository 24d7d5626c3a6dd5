"""Small convnets of one width and one depth; each also runs at any smaller width.

A network of width w is an ordinary one: plain convolutions, BatchNorm and a classifier, saved and exported as such. It
is slimmable: the leading parts of its tensors are a network of a smaller width, which ``at`` runs.

Source: Yu & Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019,
https://arxiv.org/abs/1903.05134, section 3 (the networks themselves are ours, of the sizes that this project needs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdzoo.api.models import StagedNet, he_normal, network_cfgs, register_networks


def leading(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the leading part of each tensor, as views; raise ValueError if a shape does not fit in.

    Shapes: each tensor (A, B, ...) with a shape (a, b, ...), a <= A, b <= B, ... -> (a, b, ...).
    """
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())
        raise ValueError(f"not the same network: only one of the two has {', '.join(odd[:5])}")
    parts = {}
    for name, shape in shapes.items():
        whole = tensors[name]
        if whole.dim() != len(shape) or any(small > large for small, large in zip(shape, whole.shape, strict=True)):
            raise ValueError(f"'{name}' of shape {tuple(shape)} is no part of {tuple(whole.shape)}")
        parts[name] = whole[tuple(slice(side) for side in shape)]
    return parts


class ConvStage(nn.Sequential):
    """3 x 3 convolutions, each with BatchNorm and ReLU; the first has the stride."""

    def __init__(self, before: int, width: int, depth: int, stride: int) -> None:
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [
                nn.Conv2d(width if i else before, width, 3, 1 if i else stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if (before, stride) != (width, 1):
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(inner)) + self.shortcut(x)).relu()


class ResidualStage(nn.Sequential):
    """Residual blocks, the first with the stride."""

    def __init__(self, before: int, width: int, depth: int, stride: int) -> None:
        super().__init__(*(ResidualBlock(width if i else before, width, 1 if i else stride) for i in range(depth)))


STAGES = {"conv": ConvStage, "residual": ResidualStage}


class SlimmableNet(StagedNet):
    """``stages`` stages of ``depth`` blocks; the first has ``width`` channels at full size, each next twice at half.

    Residual networks begin with a 3 x 3 convolution of their own. ``at(w)`` runs the leading part of every tensor,
    which is a network of width w; in training mode it leaves the running statistics of BatchNorm alone. A separate
    network of width w is built with ``width=w`` and gets those parts.
    """

    def __init__(
        self,
        kind: str = "conv",
        width: int = 16,
        depth: int = 1,
        stages: int = 3,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("stages", stages)):
            if value < 1:
                raise ValueError(f"{name}: {value}; at least 1 would be right")
        self.built_with: dict[str, Any] = {
            "kind": kind,
            "depth": depth,
            "stages": stages,
            "num_classes": num_classes,
            "in_chans": in_chans,
            "drop_rate": drop_rate,
        }
        self.width = width
        self._at: int | None = None  # the smaller width that forward runs, if any
        self._shapes: dict[int, tuple[dict[str, torch.Size], dict[str, torch.Size]]] = {}
        residual = kind == "residual"
        widths = [width * 2**i for i in range(stages)]
        self.stem: nn.Module = nn.Identity()
        if residual:
            self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        befores, described = [width if residual else in_chans, *widths], []
        for i, (before, channels) in enumerate(zip(befores, widths, strict=False)):
            described.append((f"stage{i + 1}", channels, 2**i))
            self.add_module(described[-1][0], STAGES[kind](before, channels, depth, min(i, 1) + 1))
        self.finish(described, widths[-1], num_classes, drop_rate=drop_rate)
        he_normal(self)

    def enter(self, x: Tensor) -> Tensor:
        assert self._at is None, "a smaller width runs through forward only"
        return self.stem(x)

    # --- smaller widths -----------------------------------------------------------------------

    @contextmanager
    def at(self, width: int) -> Iterator[None]:
        """Let ``forward`` run the network of a smaller width inside; ValueError for a width that is not inside."""
        if not 1 <= width <= self.width:
            raise ValueError(f"width: {width}; 1 to {self.width} are inside this network")
        before, self._at = self._at, None if width == self.width else width
        try:
            yield
        finally:
            self._at = before

    def _part(self, width: int) -> dict[str, Tensor]:
        """The tensors of a smaller width: parameters as views; buffers as copies, so that the whole's stay its own."""
        if width not in self._shapes:
            with torch.device("meta"):
                small = type(self)(width=width, **self.built_with)
            self._shapes[width] = (
                {name: parameter.shape for name, parameter in small.named_parameters()},
                {name: buffer.shape for name, buffer in small.named_buffers()},
            )
        parameters, buffers = self._shapes[width]
        copies = {name: part.clone() for name, part in leading(dict(self.named_buffers()), buffers).items()}
        return leading(dict(self.named_parameters()), parameters) | copies

    def forward(self, x: Tensor) -> Tensor:
        if self._at is None:
            return self.forward_head(self.forward_features(x))
        part = self._part(self._at)
        with self.at(self.width):
            return functional_call(self, part, (x,))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.built_with["num_classes"] = num_classes
        self._shapes = {}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {**super().group_matcher(coarse), "stem": r"^stem"}


VARIANTS: dict[str, dict[str, Any]] = {"slimmable_cnn": {"kind": "conv"}, "slimmable_resnet": {"kind": "residual"}}

default_cfgs = {
    **network_cfgs(["slimmable_cnn"], size=32, channels=3, classes=10, first_conv="stage1.0"),
    **network_cfgs(["slimmable_resnet"], size=32, channels=3, classes=10, first_conv="stem.0"),
}
models = register_networks(SlimmableNet, VARIANTS)
