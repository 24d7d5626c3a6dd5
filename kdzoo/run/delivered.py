"""The networks that a run measures: what it delivers, and what that is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdzoo.contract.stage import ModelSpec, StageResult
from kdzoo.models.building import RESERVED
from kdzoo.models.network import Network


@dataclass(frozen=True)
class Role:
    """What a network is in a run: ``label`` is for people, ``network`` and ``index`` are for programs."""

    network: Literal["teacher", "control", "student", "peer"]
    index: int  # of several teachers or peers, from 0; else 0
    label: str

    def entry(self, model: str) -> dict[str, Any]:
        """The first fields of the network's entry in results.json."""
        about_files = {"format": None, "quantize": None, "of": None}
        return {"label": self.label, "model": model, "network": self.network, "index": self.index, **about_files}


STUDENT = Role("student", 0, "student")


@dataclass(frozen=True)
class Delivered:
    """A stored network that a run measures."""

    role: Role
    result: StageResult
    stored_as: str  # its name among the weights of the result
    spec: ModelSpec


@dataclass(frozen=True)
class Measured:
    """A network with its logits (N, K) of the test split."""

    role: Role
    network: Network
    logits: np.ndarray


def delivered_networks(
    teachers: Sequence[StageResult], control: StageResult | None, student: StageResult
) -> list[Delivered]:
    """Return what a run measures, in the order of its results."""
    found = []
    for i, teacher in enumerate(teachers):
        if teacher.model.answers is None:
            found.append(Delivered(teacher_role(i, len(teachers)), teacher, "student", teacher.model))
    if control is not None:
        found.append(Delivered(Role("control", 0, "control"), control, "student", control.model))
    found.append(Delivered(STUDENT, student, "student", student.model))
    for i, peer in enumerate(student.peers):
        found.append(Delivered(Role("peer", i, f"peer {i}"), student, f"peer_{i}", peer))
    return found


def teacher_role(index: int, count: int) -> Role:
    """One of ``count`` teachers."""
    return Role("teacher", index, "teacher" if count == 1 else f"teacher {index}")


def same_architecture(first: ModelSpec, second: ModelSpec) -> bool:
    """Whether two models are one architecture at one input size, whatever their weights."""
    one, other = ((model.name, dict(model.args), model.size, model.modality) for model in (first, second))
    return one == other


def delivered_spec(written: Mapping[str, Any]) -> ModelSpec:
    """The network that student.json describes. It is not the recipe's student where an algorithm chose another."""
    args = {name: value for name, value in written["args"].items() if name not in RESERVED}
    height, width = written["size"]
    if written.get("tokens"):
        return ModelSpec(written["model"], args=args)
    image = written.get("preprocessing", {}).get("image", {})
    return ModelSpec(
        written["model"],
        args=args,
        mean=tuple(written["mean"]),
        std=tuple(written["std"]),
        size=height if height == width else (height, width),
        modality=written.get("modality"),
        preprocessing={
            key: image[key] for key in ("crop_share", "resize", "interpolation", "color_mode", "decode") if key in image
        },
    )
