"""What stands still in training: BatchNorm on request, and at first everything but the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdzoo.errors import NeedsError
from kdzoo.recipe.train_sections import TrainRecipe


class Freezing:
    """Puts the parts of trained networks into training or eval mode, and stops gradients where nothing is trained."""

    def __init__(self, networks: Mapping[str, nn.Module], train: TrainRecipe, steps_per_epoch: int) -> None:
        """``networks`` are models of timm by name. Raises NeedsError where one has no classifier to train first."""
        self.head_steps = train.head_epochs * steps_per_epoch
        self._frozen: dict[str, tuple[nn.Module, ...]] = {}
        self._bodies: dict[str, tuple[nn.Module, ...]] = {}
        self._waiting: list[nn.Parameter] = []
        self._began: bool | None = None  # whether the head alone was trained in the last step; None: there was none
        for name, model in networks.items():
            norms = [part for part in model.modules() if train.frozen_batch_norm and isinstance(part, _BatchNorm)]
            for part in norms:
                part.requires_grad_(False)
            self._frozen[name] = tuple(norms)
            if self.head_steps:
                head = {id(part) for part in _classifier(name, model).modules()}
                self._bodies[name] = tuple(part for part in model.modules() if id(part) not in head)
                self._waiting += [
                    parameter for part in self._bodies[name] for parameter in part.parameters(recurse=False)
                ]
        self._waiting = [parameter for parameter in self._waiting if parameter.requires_grad]

    def still(self, name: str, step: int) -> tuple[nn.Module, ...]:
        """Return the parts of a network that are in eval mode at an optimizer step."""
        if step < self.head_steps and name in self._bodies:
            return self._bodies[name]
        return self._frozen.get(name, ())

    def start_step(self, step: int) -> None:
        """Let gradients through to what is trained at an optimizer step."""
        head_alone = step < self.head_steps
        if head_alone is not self._began:
            self._began = head_alone
            for parameter in self._waiting:
                parameter.requires_grad_(not head_alone)


def checkpoint_gradients(name: str, model: nn.Module, train: TrainRecipe) -> None:
    """Have a model of timm compute its blocks again in the backward pass; raise NeedsError where that is not exact."""
    counts = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if counts and not train.frozen_batch_norm:
        raise NeedsError(
            f"train.grad_checkpointing: '{name}' has BatchNorm, which would count each batch twice, as blocks run "
            "twice; train.frozen_batch_norm: true, or train.accumulate to save memory, would be right"
        )
    enable: Any = getattr(model, "set_grad_checkpointing", None)
    try:
        if enable is None:
            raise ValueError("it has no set_grad_checkpointing")
        enable(True)
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise NeedsError(
            f"train.grad_checkpointing: '{name}' cannot compute its blocks again: {error}; train.accumulate saves "
            "memory too"
        ) from error


def _classifier(name: str, model: nn.Module) -> nn.ModuleList:
    find: Any = getattr(model, "get_classifier", None)
    found = find() if find is not None else None
    heads = nn.ModuleList(found if isinstance(found, tuple | list) else [] if found is None else [found])
    if not list(heads.parameters()):
        raise NeedsError(f"train.head_epochs: '{name}' has no classifier of its own that could be trained first")
    return heads
