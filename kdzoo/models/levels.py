"""Which depth of one backbone belongs to which of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kdzoo.contract.declared import Level, ModelShapes, Shapes
from kdzoo.contract.stage import ModelSpec
from kdzoo.errors import NeedsError

#: Levels that networks without common strides are paired at.
BY_DEPTH = 4


class Shaped(Protocol):
    """What levels and shapes are read from: a network, or what is in its place."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def pre_logits_width(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Pairing:
    """Paired levels: ``indices[n][i]`` is network ``n``'s level of pair ``i``; network 0 is the student."""

    indices: tuple[tuple[int, ...], ...]
    levels: tuple[tuple[Level, ...], ...]  # the same, as levels
    by: str  # "stride" or "depth"

    def describe(self) -> list[str]:
        """One line a pair, e.g. ``stride 4: layer1 (16, 32, 32) <- layer1 (64, 32, 32)``."""
        lines = []
        for pair in zip(*self.levels, strict=True):
            student, others = pair[0], pair[1:]
            label = f"stride {student.stride}" if self.by == "stride" else "by depth"
            lines.append(f"{label}: {_shown(student)}" + "".join(f" <- {_shown(other)}" for other in others))
        return lines


def _shown(level: Level) -> str:
    return f"{level.name} ({level.channels}, {level.height}, {level.width})"


def pair(named: Sequence[tuple[str, Sequence[Level]]]) -> Pairing:
    """Pair the levels of all networks, given as (name, levels shallow to deep); the student comes first.

    Levels of one stride belong together, the deepest of each where a network has several. Networks with fewer than
    two strides in common (a transformer's levels all have one) are paired by relative depth, at ``BY_DEPTH`` levels
    or as many as the shallowest has. Raises NeedsError when a network has no levels.
    """
    for name, levels in named:
        if not levels:
            raise NeedsError(
                f"model '{name}': has no features to pair, as it offers no forward_intermediates; choose another "
                "model, or an algorithm that reads logits only"
            )
    deepest = [{level.stride: i for i, level in enumerate(levels)} for _, levels in named]
    common = sorted(set.intersection(*map(set, deepest)))
    if len(common) > 1:
        indices = [tuple(own[stride] for stride in common) for own in deepest]
    else:
        candidates = [
            sorted(own.values()) if len(own) > 1 else list(range(len(levels)))
            for own, (_, levels) in zip(deepest, named, strict=True)
        ]
        count = min(BY_DEPTH, *map(len, candidates))
        indices = [tuple(own[(i + 1) * len(own) // count - 1] for i in range(count)) for own in candidates]
    return Pairing(
        indices=tuple(indices),
        levels=tuple(tuple(levels[i] for i in own) for (_, levels), own in zip(named, indices, strict=True)),
        by="stride" if len(common) > 1 else "depth",
    )


def pair_levels(student: Shaped, others: Sequence[Shaped]) -> Pairing:
    """Pair the student's levels with those of every other network; see ``levels.pair``."""
    return pair([(network.spec.name, network.levels) for network in (student, *others)])


def shapes_of(
    student: Shaped,
    teachers: Sequence[Shaped],
    peers: Sequence[Shaped],
    pairing: Pairing | None,
    num_samples: int,
    image: tuple[int, int, int],
) -> Shapes:
    """Return what an algorithm is built from; ``pairing`` covers student, teachers and peers, in this order."""
    networks: list[Shaped] = [student, *teachers, *peers]
    levels = pairing.levels if pairing is not None else ((),) * len(networks)
    shapes = [
        ModelShapes(tuple(own), network.pre_logits_width, network.num_classes, network.mean, network.std)
        for network, own in zip(networks, levels, strict=True)
    ]
    return Shapes(
        student=shapes[0],
        teachers=tuple(shapes[1 : 1 + len(teachers)]),
        peers=tuple(shapes[1 + len(teachers) :]),
        num_classes=student.num_classes,
        num_samples=num_samples,
        image=image,
    )
