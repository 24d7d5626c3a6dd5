"""A text classifier and a data set of text in a few lines, without any library for text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import register_model
from torch import Tensor, nn

from kdzoo.api.data import DataSource, DataSplits, OfferOptions, Tokens, TokenSplit

PAD, UNKNOWN = 0, 1
TOKENS = Tokens(12, PAD, UNKNOWN, {"pieces.txt": b"the pieces"})


class TinyText(nn.Module):
    """Adds what each layer makes of a token to it; a text is the mean of its tokens."""

    def __init__(self, tokens: Mapping[str, Any], num_classes: int, layers: int = 3, width: int = 8) -> None:
        super().__init__()
        self.pad = tokens["pad"]
        self.table = nn.Embedding(tokens["vocab_size"], width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, num_classes)
        self.feature_info = [{"module": f"layer {i}", "num_chs": width, "reduction": 1} for i in range(layers)]

    def forward(self, ids: Tensor) -> Tensor:
        return self.forward_head(self.forward_intermediates(ids)[0])

    def forward_features(self, ids: Tensor) -> Tensor:
        return self.forward_intermediates(ids)[0]

    def forward_head(self, mean: Tensor, pre_logits: bool = False) -> Tensor:
        return mean if pre_logits else self.head(mean)

    def forward_intermediates(
        self, ids: Tensor, indices: Sequence[int] | None = None, output_fmt: str = "NCHW"
    ) -> tuple[Tensor, list[Tensor]]:
        real = (ids != self.pad)[..., None]
        states, state = [], self.table(ids)
        for layer in self.layers:
            state = (state + torch.tanh(layer(state))) * real
            states.append(state.transpose(1, 2)[..., None])
        mean = state.sum(1) / real.sum(1)
        return mean, states if indices is None else [states[i] for i in indices]


class Shallower(TinyText):
    """Knows which layers to take of a deeper one."""

    def take_over(self, other: nn.Module) -> None:
        taken = [other.layers[2 * i + 1] for i in range(len(self.layers))]  # type: ignore[index, operator]
        for own, their in zip([self.table, self.head, *self.layers], [other.table, other.head, *taken], strict=True):
            own.load_state_dict(their.state_dict())  # type: ignore[union-attr]


@register_model
def tiny_text(pretrained: bool = False, *, tokens: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    return TinyText(tokens, kwargs["num_classes"], kwargs.get("layers", 3), kwargs.get("width", 8))


@register_model
def tiny_text_shallower(pretrained: bool = False, *, tokens: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    return Shallower(tokens, kwargs["num_classes"], kwargs.get("layers", 1), kwargs.get("width", 8))


class Sentences(DataSource):
    """Rows of 2 to 9 ids; the class is how often one id is among them."""

    name = "sentences"
    description = "made-up text for tests"

    class Options(OfferOptions):
        samples: int = 90

    def load(self, root: Path) -> DataSplits:
        options: Any = self.options
        test = self.split(1, 30)
        return DataSplits(
            self.split(0, options.samples), lambda: test, ("none", "some", "many"), 1, (9, 1), (0.0,), (1.0,),
            tokens=TOKENS,
        )  # fmt: skip

    @staticmethod
    def split(seed: int, samples: int) -> TokenSplit:
        rng = np.random.default_rng(seed)
        ids = rng.integers(3, TOKENS.vocab_size, (samples, 9))
        lengths = rng.integers(4, 10, samples)
        ids[np.arange(9) >= lengths[:, None]] = PAD
        targets = np.arange(samples) % 3
        ids[:, 0] = np.where(targets > 0, 2, 3)
        ids[:, 1] = np.where(targets > 1, 2, 3)
        return TokenSplit(ids, targets)
