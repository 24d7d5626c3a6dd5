"""Hashes, seeds and names that every part of kdzoo shares. Nothing here imports torch.

Shape letters, one legend for the whole project: N samples, K classes, D embedding,
C channels, H height, W width, L tokens. ``NCHW`` is a batch of maps.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


#: What may name an algorithm, a model, a recipe, ...
NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"


def stable_hash(value: Any) -> str:
    """Hash JSON-able content; the same in every process and for any key order (64 hex digits)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*parts: int | str) -> int:
    """Derive an independent 63-bit seed from any parts, e.g. ``derive_seed(0, "order", epoch)``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
