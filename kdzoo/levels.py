"""Which depth of one backbone belongs to which of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdzoo.errors import NeedsError
from kdzoo.types import Level

#: Levels that networks without common strides are paired at.
BY_DEPTH = 4


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
