"""Small convnets of one width and one depth, each of which runs at any smaller width too.

A network of width w is an ordinary one: plain convolutions, BatchNorm and a classifier, saved and exported as such.
What makes it slimmable is that the leading part of each of its tensors is a network of a smaller width, run by ``at``.

Source: Yu & Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019,
https://arxiv.org/abs/1903.05134, section 3 (the networks themselves are ours, of the sizes that this project needs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.func import functional_call


def leading(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the leading part of each tensor, as views; raise ValueError where a shape does not fit in.

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
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

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


class SlimmableNet(nn.Module):
    """``stages`` stages of ``depth`` blocks; the first has ``width`` channels at full size, each next twice at half.

    Residual networks begin with a 3 x 3 convolution of their own. ``at(w)`` runs the leading part of every tensor,
    which is a network of width w; in training mode it leaves the running statistics of BatchNorm alone. A network of
    width w that stands alone is built with ``width=w`` and given those parts.
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
        self.width, self.num_classes = width, num_classes
        self._at: int | None = None  # the smaller width that forward runs, if any
        self._shapes: dict[int, tuple[dict[str, torch.Size], dict[str, torch.Size]]] = {}
        residual = kind == "residual"
        widths = [width * 2**i for i in range(stages)]
        self.stem: nn.Module = nn.Identity()
        if residual:
            self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage_names = tuple(f"stage{i + 1}" for i in range(stages))
        befores = [width if residual else in_chans, *widths]
        for i, (name, before, channels) in enumerate(zip(self.stage_names, befores, widths, strict=False)):
            self.add_module(name, STAGES[kind](before, channels, depth, min(i, 1) + 1))
        self.feature_info = [
            {"module": name, "num_chs": channels, "reduction": 2**i}
            for i, (name, channels) in enumerate(zip(self.stage_names, widths, strict=True))
        ]
        self.num_features = self.head_hidden_size = widths[-1]
        self.global_pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(drop_rate)
        self.linear = self._classifier()
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and not part.weight.is_meta:
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def _classifier(self) -> nn.Module:
        return nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()

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

    # --- timm's interface ---------------------------------------------------------------------

    def forward_features(self, x: Tensor) -> Tensor:
        return self.forward_intermediates(x, indices=[])[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.dropout(self.global_pool(x).flatten(1))
        return x if pre_logits else self.linear(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return (final features, outputs of the stages that ``indices`` choose)."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: '{output_fmt}'; only NCHW can be had of a convnet")
        assert self._at is None, "a smaller width runs through forward only"
        depths = range(len(self.stage_names))
        wanted = list(depths[-indices:] if isinstance(indices, int) else depths)
        if isinstance(indices, list):
            wanted = [depths[i] for i in indices]
        last = max(wanted, default=0) if stop_early else depths[-1]
        taken = []
        x = self.stem(x)
        for i, name in enumerate(self.stage_names[: last + 1]):
            x = getattr(self, name)(x)
            if i in wanted:
                taken.append(x)
        return taken if intermediates_only else (x, taken)

    def get_classifier(self) -> nn.Module:
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Start the classifier anew for ``num_classes``; 0 leaves none."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: '{global_pool}'; only avg is known here")
        self.num_classes = self.built_with["num_classes"] = num_classes
        self._shapes = {}
        self.linear = self._classifier()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for timm's layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": [(rf"^{name}", None) for name in self.stage_names]}

    @torch.jit.ignore  # type: ignore[misc]
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("gradient checkpointing is not offered: these networks are small")


# --- timm's registry ------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {"slimmable_cnn": {"kind": "conv"}, "slimmable_resnet": {"kind": "residual"}}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "first_conv": "stem.0" if variant["kind"] == "residual" else "stage1.0",
            "classifier": "linear",
        }
        for name, variant in VARIANTS.items()
    }
)


def _entry(name: str, arguments: Mapping[str, Any]) -> Any:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(SlimmableNet, name, pretrained, **{**arguments, **kwargs})

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    entry.__doc__ = f"Make {name}: {SlimmableNet.__name__} of {arguments['kind']} blocks."
    return entry


for _name, _arguments in VARIANTS.items():
    register_model(_entry(_name, _arguments))
models = tuple(VARIANTS)
