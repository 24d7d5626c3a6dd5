"""One network's optimizer and learning-rate schedule, by timm's factories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import MultiStepLRScheduler, create_scheduler_v2
from torch import Tensor, nn

from kdzoo.errors import RecipeError, nearest
from kdzoo.recipe.train_sections import OptimizerRecipe, TrainRecipe
from kdzoo.storage.state_codec import packed, unpacked
from kdzoo.training.device import Precision

#: Learning rate of the first step of a warm-up, as in timm; of a smaller rate, a hundredth.
WARMUP_LR = 1e-5


class Optimized:
    """One network's parameters with their optimizer, schedule and, under fp16, gradient scaler."""

    def __init__(
        self,
        modules: nn.Module,
        settings: Mapping[str, Any],
        train: TrainRecipe,
        steps_per_epoch: int,
        precision: Precision,
        where: str = "train.optimizer",
        network: nn.Module | None = None,
    ) -> None:
        """``network`` is the model of timm among ``modules``, by which parameters are grouped."""
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimizer = _optimizer(modules, dict(settings), where, network)
        self.schedule = _schedule(self.optimizer, train, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype is torch.float16)

    def to_step(self, step: int) -> None:
        """Set the learning rate of optimizer step ``step``."""
        if self.schedule is not None:
            self.schedule.step_update(step)

    @property
    def lr(self) -> float:
        """The learning rate, of layers that decay the last one's."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state of optimizer and scaler: tensors by their place in it, and the rest as JSON."""
        tensors: dict[str, Tensor] = {}
        content = self.optimizer.state_dict()
        groups = [{key: value for key, value in group.items() if _plain(value)} for group in content["param_groups"]]
        return tensors, {
            "slots": packed(content["state"], tensors, "slots"),
            "groups": packed(groups, tensors, "groups"),  # where some optimizers count their steps
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        fresh = self.optimizer.state_dict()["param_groups"]
        groups = [{**old, **new} for old, new in zip(fresh, unpacked(saved["groups"], tensors), strict=True)]
        self.optimizer.load_state_dict({"state": unpacked(saved["slots"], tensors), "param_groups": groups})
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])


def settings_of(optimizer: OptimizerRecipe) -> dict[str, Any]:
    """A recipe's optimizer as timm takes it."""
    settings = {"name": optimizer.name, "lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    settings |= optimizer.options
    if optimizer.decay_free != "norm_and_bias":
        settings["decay_free"] = optimizer.decay_free
    if optimizer.layer_decay is not None:
        settings["layer_decay"] = optimizer.layer_decay
    if optimizer.momentum is not None:
        settings["momentum"] = optimizer.momentum
    return settings


def _plain(value: Any) -> bool:
    """Whether a setting of an optimizer can be saved; types and functions never change after it is made."""
    return value is None or isinstance(value, bool | int | float | str | list | tuple | Tensor)


def _optimizer(
    modules: nn.Module, settings: dict[str, Any], where: str, network: nn.Module | None
) -> torch.optim.Optimizer:
    name = str(settings.pop("name", ""))
    known = [str(name) for name in list_optimizers()]
    if name not in known:
        raise RecipeError(
            f"{where}.name: unknown optimizer '{name}'{nearest(name, known) or ';'} timm knows {len(known)}"
        )
    if get_optimizer_info(name).second_order:
        raise RecipeError(f"{where}.name: '{name}' needs second derivatives, which are not taken; choose another")
    if name == "sgd" and settings.get("momentum") == 0:
        settings.setdefault("nesterov", False)  # on by default, and refused without momentum
    decay_free, layer_decay = settings.pop("decay_free", None), settings.pop("layer_decay", None)
    groups: Any = modules
    if decay_free is not None or layer_decay is not None:
        weight_decay = float(settings.get("weight_decay", 0.0))
        groups = parameter_groups(modules, network, weight_decay, decay_free or "norm_and_bias", layer_decay)
    try:
        return create_optimizer_v2(groups, opt=name, **settings)
    except (TypeError, ValueError) as error:  # an argument that this optimizer does not take
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise RecipeError(f"{where}: '{name}' cannot be made with {shown}: {error}") from error


def parameter_groups(
    modules: nn.Module, network: nn.Module | None, weight_decay: float, decay_free: str, layer_decay: float | None
) -> list[dict[str, Any]]:
    """Return timm's parameter groups of ``modules``: a network, or what is trained along with it too.

    Layers are those of the network's ``group_matcher``; ``lr_scale`` of a group is the factor of its learning rate.
    """
    kinds: dict[str, Any] = {"weight_decay": weight_decay, "weight_decay_exclude_1d": decay_free != "nothing"}
    groups: list[dict[str, Any]] = []
    for module in [modules] if modules is network else modules.children():
        listed: Any = getattr(module, "no_weight_decay", None)
        free = tuple(listed()) if decay_free == "model" and module is network and listed is not None else ()
        if layer_decay is None or module is not network:
            groups += param_groups_weight_decay(module, no_weight_decay_list=free, **kinds)
        else:
            groups += param_groups_layer_decay(module, no_weight_decay_list=free, layer_decay=layer_decay, **kinds)
    return [group for group in groups if group["params"]]


def _schedule(optimizer: torch.optim.Optimizer, train: TrainRecipe, steps_per_epoch: int) -> Any:
    schedule = train.schedule
    if schedule.name == "constant" and not schedule.warmup_epochs:
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)  # which otherwise timm's schedules do
        return None
    peak = max(float(group["lr"]) for group in optimizer.param_groups)
    warmup_lr = WARMUP_LR if peak > WARMUP_LR else peak / 100
    if schedule.name in ("multistep", "constant"):
        return MultiStepLRScheduler(
            optimizer,
            decay_t=[milestone * steps_per_epoch + 1 for milestone in schedule.milestones],  # timm's come a step early
            decay_rate=schedule.decay_rate,
            warmup_t=schedule.warmup_epochs * steps_per_epoch,
            warmup_lr_init=warmup_lr,
            warmup_prefix=False,
            t_in_epochs=False,
        )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=train.epochs,
        decay_epochs=schedule.milestones[0] if schedule.milestones else None,
        decay_rate=schedule.decay_rate,
        min_lr=schedule.min_lr,
        warmup_lr=warmup_lr,
        warmup_epochs=schedule.warmup_epochs,
        warmup_prefix=False,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return scheduler
