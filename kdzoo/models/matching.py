"""Models by patterns of their names, timm's and those of the plugins."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import timm

from kdzoo.errors import UnknownName, nearest, shown

WILDCARDS = "*?["


def is_pattern(name: str) -> bool:
    """Whether a name stands for several models."""
    return any(character in name for character in WILDCARDS)


def models_matching(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the names of models that match patterns such as ``mobilenetv3_*``, each once, in the patterns' order.

    Raises UnknownName for a pattern that no model matches, and for a name that no model has.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        names = timm.list_models(pattern) if is_pattern(pattern) else [pattern] if timm.is_model(pattern) else []
        if not names:
            what = "no model matches" if is_pattern(pattern) else "unknown model"
            known = timm.list_models()
            close = nearest(pattern.strip(WILDCARDS), known) or ";"
            raise UnknownName(
                f"{what} {shown(pattern)}{close} known: {len(known)} networks of timm and of the plugins, see kdzoo "
                "list models"
            )
        found.update(dict.fromkeys(names))
    return tuple(found)


def spaced(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of arguments' values, the last argument changing first; one empty one of none."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
