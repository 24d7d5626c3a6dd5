"""Training loops written by hand, without kdzoo: what its engine is measured against.

``PlainLoop`` is the loop of the field's existing toolkits. ``HandLoop`` is the fastest one that public torch gives for
the same models, batch and precision; nothing in it can be reused, checked or resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

TEMPERATURE = 4.0
TASK, KD = 0.1, 0.9


@dataclass(frozen=True)
class Setting:
    """What both loops train with: the same as the engine's."""

    images: np.ndarray  # (N, H, W, C) uint8
    targets: np.ndarray  # (N,) int64
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    crop_flip: bool
    lr: float
    momentum: float
    weight_decay: float

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        settings = {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": True}
        return torch.optim.SGD(model.parameters(), lr=self.lr, **settings)


def distillation_loss(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy and softened divergence; (N, K), (N, K), (N,) -> scalar."""
    own = F.log_softmax(student / TEMPERATURE, dim=1)
    taught = F.log_softmax(teacher / TEMPERATURE, dim=1)
    divergence = F.kl_div(own, taught, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return TASK * F.cross_entropy(student, targets) + KD * divergence


class PlainLoop:
    """DataLoader, PIL transforms, float32, NCHW, the teacher in eval mode under no_grad, SGD."""

    def __init__(self, setting: Setting, student: nn.Module, teacher: nn.Module) -> None:
        from torchvision import transforms

        crop = [transforms.RandomCrop(setting.images.shape[1:3], padding=4), transforms.RandomHorizontalFlip()]
        normalised = [transforms.ToTensor(), transforms.Normalize(setting.mean, setting.std)]
        transform = transforms.Compose([transforms.ToPILImage(), *(crop if setting.crop_flip else []), *normalised])
        data = _Images(setting.images, setting.targets, transform)
        self.loader = torch.utils.data.DataLoader(data, setting.batch_size, shuffle=True, drop_last=True)
        self.student, self.teacher = copy.deepcopy(student).train(), copy.deepcopy(teacher).eval()
        self.optimizer = setting.optimizer(self.student)
        self.batches = self._endless()

    def steps(self, count: int) -> None:
        for _ in range(count):
            inputs, targets = next(self.batches)
            with torch.no_grad():
                taught = self.teacher(inputs)
            loss = distillation_loss(self.student(inputs), taught, targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()  # for the running mean that every toolkit prints

    def _endless(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader


class _Images(torch.utils.data.Dataset[Any]):
    def __init__(self, images: np.ndarray, targets: np.ndarray, transform: Any) -> None:
        self.images, self.targets, self.transform = images, targets, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.targets[index])


class HandLoop:
    """Batched augmentation in memory, the teacher folded, each network in its own precision and memory format."""

    def __init__(
        self, setting: Setting, student: nn.Module, teacher: nn.Module, student_way: Way, teacher_way: Way
    ) -> None:
        self.setting = setting
        pixels = torch.from_numpy(setting.images).permute(0, 3, 1, 2).contiguous()
        self.images = F.pad(pixels, (4, 4, 4, 4)) if setting.crop_flip else pixels
        self.targets = torch.from_numpy(setting.targets)
        self.size = setting.images.shape[1:3]
        self.mean = torch.tensor(setting.mean).view(1, -1, 1, 1)
        self.std = torch.tensor(setting.std).view(1, -1, 1, 1)
        self.student_way, self.teacher_way = student_way, teacher_way
        self.student = student_way.place(copy.deepcopy(student).train())
        self.teacher = teacher_way.place(fuse(copy.deepcopy(teacher).eval()).requires_grad_(False))
        self.optimizer = setting.optimizer(self.student)

    def steps(self, count: int) -> None:
        for _ in range(count):
            rows = torch.randint(len(self.images), (self.setting.batch_size,))
            inputs, targets = self._inputs(rows), self.targets[rows]
            with torch.no_grad(), self.teacher_way.autocast():
                taught = self.teacher(inputs).float()
            with self.student_way.autocast():
                logits = self.student(inputs)
            loss = distillation_loss(logits.float(), taught, targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _inputs(self, rows: Tensor) -> Tensor:
        images = self.images[rows]
        if self.setting.crop_flip:
            height, width = self.size
            windows = images.unfold(2, height, 1).unfold(3, width, 1)
            top, left = torch.randint(9, (2, len(rows)))
            images = windows[torch.arange(len(rows)), :, top, left]
            images = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, images.flip(3), images)
        pixels = images.to(torch.float32, memory_format=self.student_way.memory_format).div_(255)
        return pixels.sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Way:
    """How one network runs: autocast type or None for float32, and memory format."""

    dtype: torch.dtype | None
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast("cpu", dtype=self.dtype)

    def place(self, module: nn.Module) -> nn.Module:
        return module.to(memory_format=self.memory_format)  # type: ignore[call-overload]
