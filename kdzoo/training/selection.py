"""The choice of the epoch to deliver: the best on the validation split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdzoo.contract.classification import QUALITY
from kdzoo.training.job import has_report_items

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdzoo.training.job import Job


class Selection:
    """The best epoch so far, -1 before the first; with ``train.select: best`` also its weights.

    ``algorithm`` holds the algorithm's weights of that epoch, where it has report_items.
    """

    def __init__(self, job: Job) -> None:
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}
        self.algorithm: dict[str, Tensor] = {}
        self._job = job
        self._quality = -math.inf

    def consider(self, epoch: int, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Take ``model``, of which ``metrics`` are the validation metrics, if it is better than all before."""
        if not metrics[QUALITY] > self._quality:
            return
        self._quality, self.epoch = metrics[QUALITY], epoch
        if self._job.train.select == "best":
            self.weights = _copy(model)
            algorithm = self._job.algorithm
            self.algorithm = _copy(algorithm) if has_report_items(type(algorithm)) else {}

    def state(self) -> dict[str, Any] | None:
        """The choice without its weights, as JSON; None before the first."""
        return {"quality": self._quality, "epoch": self.epoch} if self.epoch >= 0 else None

    def restore(
        self, saved: Mapping[str, Any] | None, weights: dict[str, Tensor], algorithm: dict[str, Tensor]
    ) -> None:
        """Continue from a saved choice."""
        self._quality, self.epoch = (saved["quality"], saved["epoch"]) if saved else (-math.inf, -1)
        self.weights, self.algorithm = weights, algorithm


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
