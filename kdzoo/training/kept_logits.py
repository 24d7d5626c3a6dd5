"""What is kept of a teacher's logits: all of them, or the likeliest classes and the sum of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdzoo.errors import NeedsError
from kdzoo.recipe.sections import KeepRecipe

#: The most classes that two bytes can number.
TWO_BYTES = 2**16
DTYPES = {"float16": torch.float16, "float32": torch.float32}
#: How far a rounded number may be from one that was rounded the other way, relative to it.
ROUNDING = {torch.float16: 2e-3, torch.float32: 0.0}


@dataclass(frozen=True)
class KeptLogits:
    """Packs logits (N, K) for the store, and makes logits (N, K) of what is stored.

    With ``top_k``, the logarithms of the likeliest classes' probabilities are kept, in order, and after them that of
    the mean probability of all other classes. So the softmax of the logits that come out has the kept probabilities,
    and the rest of the mass is spread evenly. Without ``top_k``, the logits themselves are kept.
    """

    num_classes: int
    top_k: int | None
    dtype: torch.dtype

    @classmethod
    def of_recipe(cls, keep: KeepRecipe, num_classes: int) -> KeptLogits:
        """What a recipe asks for. Raises NeedsError where there are not more classes than it keeps."""
        if keep.top_k is not None and keep.top_k >= num_classes:
            raise NeedsError(
                f"cache.keep.top_k: {keep.top_k} of {num_classes} classes leaves no rest; leave out top_k to keep all, "
                f"or keep at most {num_classes - 1}"
            )
        return cls(num_classes, keep.top_k, DTYPES[keep.dtype])

    @classmethod
    def all_of(cls, num_classes: int) -> KeptLogits:
        """All logits, as they are."""
        return cls(num_classes, None, torch.float32)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> KeptLogits:
        """What ``record`` says."""
        return cls(record["classes"], record["top_k"], DTYPES[record["dtype"]])

    @property
    def _of_classes(self) -> torch.dtype:
        return torch.uint16 if self.num_classes <= TWO_BYTES else torch.uint32

    @property
    def bytes_of_a_sample(self) -> int:
        """Bytes that one sample takes in one view."""
        if self.top_k is None:
            return self.num_classes * self.dtype.itemsize
        return self.top_k * self._of_classes.itemsize + (self.top_k + 1) * self.dtype.itemsize

    def pack(self, logits: Tensor) -> dict[str, Tensor]:
        """Return what is stored of logits (N, K), by name."""
        if self.top_k is None:
            return {"logits": self._rounded(logits)}
        log_probabilities = logits.float().log_softmax(dim=1)
        likeliest, classes = log_probabilities.topk(self.top_k, dim=1)
        others = log_probabilities.scatter(1, classes, -math.inf)
        rest = others.logsumexp(dim=1, keepdim=True) - math.log(self.num_classes - self.top_k)
        return {
            "classes": classes.cpu().to(self._of_classes),
            "values": self._rounded(torch.cat([likeliest, rest], dim=1)),
        }

    def unpack(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return logits (N, K) in float32."""
        if self.top_k is None:
            return stored["logits"].float()
        values = stored["values"].float()
        logits = values[:, -1:].repeat(1, self.num_classes)
        return logits.scatter_(1, stored["classes"].to(torch.int64), values[:, :-1])

    def _rounded(self, values: Tensor) -> Tensor:
        limit = torch.finfo(self.dtype).max
        return values.clamp(-limit, limit).to(self.dtype)

    def record(self) -> dict[str, Any]:
        """The same as plain values, for results.json and keys."""
        return {"classes": self.num_classes, "top_k": self.top_k, "dtype": str(self.dtype).removeprefix("torch.")}
