"""One network's optimizer and learning-rate schedule, by timm's factories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from kdzoo.device import Precision
from kdzoo.errors import RecipeError, nearest
from kdzoo.recipe import OptimizerRecipe, TrainRecipe


class Optimized:
    """One network's parameters with their optimizer, schedule and, under fp16, gradient scaler."""

    def __init__(
        self,
        modules: nn.Module,
        settings: Mapping[str, Any],
        train: TrainRecipe,
        steps_per_epoch: int,
        precision: Precision,
    ) -> None:
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimizer = _optimizer(modules, dict(settings))
        self.schedule = _schedule(self.optimizer, train, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype is torch.float16)

    def to_step(self, step: int) -> None:
        """Set the learning rate of optimizer step ``step``."""
        if self.schedule is not None:
            self.schedule.step_update(step)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's slots, tensors as ``<parameter>/<slot>`` apart from plain numbers, and the scaler."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for index, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                (tensors if isinstance(value, Tensor) else scalars)[f"{index}/{slot}"] = value
        return tensors, {"scalars": scalars, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
        """Take up a saved state; the learning rate follows from the step and is not part of it."""
        slots: dict[int, dict[str, Any]] = {}
        for key, value in {**tensors, **saved["scalars"]}.items():
            index, slot = key.split("/")
            slots.setdefault(int(index), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])


def settings_of(optimizer: OptimizerRecipe) -> dict[str, Any]:
    """A recipe's optimizer as timm takes it."""
    settings = {"name": optimizer.name, "lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    settings |= optimizer.options
    if optimizer.momentum is not None:
        settings["momentum"] = optimizer.momentum
    return settings


def _optimizer(modules: nn.Module, settings: dict[str, Any]) -> torch.optim.Optimizer:
    name = settings.pop("name")
    known = list_optimizers()
    if name not in known:
        raise RecipeError(
            f"train.optimizer.name: unknown optimizer '{name}'{nearest(name, known) or ';'} timm knows {len(known)}"
        )
    try:
        return create_optimizer_v2(modules, opt=name, **settings)
    except (TypeError, ValueError) as error:  # an argument that this optimizer does not take
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise RecipeError(f"train.optimizer: '{name}' cannot be made with {shown}: {error}") from error


def _schedule(optimizer: torch.optim.Optimizer, train: TrainRecipe, steps_per_epoch: int) -> Any:
    schedule = train.schedule
    if schedule.name == "constant" and not schedule.warmup_epochs:
        return None
    options: dict[str, Any] = {"decay_rate": schedule.decay_rate, "min_lr": schedule.min_lr}
    if schedule.name == "step":
        options["decay_epochs"] = schedule.milestones[0]
    elif schedule.name != "cosine":  # a constant rate with warm-up is one that never reaches its milestone
        options["decay_milestones"] = list(schedule.milestones) or [train.epochs + 1]
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="multistep" if schedule.name == "constant" else schedule.name,
        num_epochs=train.epochs,
        warmup_epochs=schedule.warmup_epochs,
        warmup_prefix=False,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
        **options,
    )
    return scheduler
