"""What timm expects of a network besides ``forward``, written once for all networks of plugins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


class StagedNet(nn.Module):
    """A convnet of consecutive stages before one linear classifier, with timm's feature interface.

    A subclass builds its modules, calls ``finish`` and may override ``enter`` (before the first stage) and ``leave``
    (after the last). Every stage's output is a level. The classifier is called ``linear``.
    """

    num_classes: int
    num_features: int
    linear: nn.Module

    def finish(
        self,
        stages: Sequence[tuple[str, int, int]],
        embedding: int,
        num_classes: int,
        grid: int = 1,
        drop_rate: float = 0.0,
    ) -> None:
        """Add the head and describe the stages, given as (attribute, channels, stride).

        The last map is pooled to ``grid`` x ``grid`` and flattened; ``embedding`` is what the classifier then takes.
        """
        self.feature_info = [
            {"module": module, "num_chs": channels, "reduction": stride} for module, channels, stride in stages
        ]
        self.stages = tuple(module for module, _, _ in stages)
        self.num_features = self.head_hidden_size = embedding
        self.global_pool: nn.Module = nn.AdaptiveAvgPool2d(grid)
        self.dropout = nn.Dropout(drop_rate)
        self.num_classes = num_classes
        self.linear = self._classifier()

    def _classifier(self) -> nn.Module:
        return nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()

    def enter(self, x: Tensor) -> Tensor:
        """Run what comes before the first stage."""
        return x

    def leave(self, x: Tensor) -> Tensor:
        """Run what comes between the last stage and pooling."""
        return x

    def embed(self, x: Tensor) -> Tensor:
        """Run what comes between pooling and the classifier; (N, D) -> (N, D)."""
        return x

    # --- timm's interface -------------------------------------------------------------------

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.leave(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.dropout(self.embed(self.global_pool(x).flatten(1)))
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

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
        depths = range(len(self.stages))
        if indices is None or isinstance(indices, int):
            wanted = list(depths if indices is None else depths[-indices:])
        else:
            wanted = [depths[i] for i in indices]
        taken = []
        x = self.enter(x)
        for i, name in enumerate(self.stages[: max(wanted) + 1] if stop_early else self.stages):
            x = getattr(self, name)(x)
            if i in wanted:
                taken.append(x)
        return taken if intermediates_only else (self.leave(x), taken)

    def get_classifier(self) -> nn.Module:
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one for ``num_classes``; 0 removes it."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: '{global_pool}'; only avg is known here")
        self.num_classes = num_classes
        self.linear = self._classifier()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for timm's layer-wise learning rates."""
        return {"stem": r"^(conv1|bn1)", "blocks": [(rf"^{name}", None) for name in self.stages]}

    @torch.jit.ignore  # type: ignore[misc]
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("gradient checkpointing is not offered: these networks are small")


def he_normal(module: nn.Module) -> None:
    """Initialise convolutions for ReLUs, over their fan-out; BatchNorm is left at one and zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def network_cfgs(names: Iterable[str], size: int, channels: int, classes: int, first_conv: str) -> dict[str, Any]:
    """What timm stores about each network: the inputs of its paper and where its first and last layer are."""
    entry = {
        "url": "",
        "num_classes": classes,
        "input_size": (channels, size, size),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": (0.5,) * channels,
        "std": (0.5,) * channels,
        "first_conv": first_conv,
        "classifier": "linear",
    }
    return dict(generate_default_cfgs({name: dict(entry) for name in names}))


def register_networks(cls: type[StagedNet], variants: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Add ``variants`` (name -> arguments of ``cls``) to timm's registry; return their names.

    timm looks for ``default_cfgs`` in the module that ``cls`` is written in.
    """
    for name, arguments in variants.items():
        register_model(_entry(cls, name, arguments))
    return tuple(variants)


def _entry(cls: type[StagedNet], name: str, arguments: Mapping[str, Any]) -> Any:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(cls, name, pretrained, **{**arguments, **kwargs})

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = cls.__module__
    entry.__doc__ = f"Make {name}: {cls.__name__} with {', '.join(f'{k}={v}' for k, v in arguments.items())}."
    return entry
