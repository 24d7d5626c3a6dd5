"""Another rendering of the same image, as a second modality: what is left of it when only its edges are drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kdzoo.api.data import ArraySplit, DataSplits


def edges(images: np.ndarray) -> np.ndarray:
    """Draw the strength of the brightness gradient, by the operator of Sobel and Feldman (1968).

    Shapes: uint8 (N, H, W) or (N, H, W, C) -> uint8 (N, H, W). The border counts as if it went on; a step from black
    to white is white.
    """
    grey = images.astype(np.float32) if images.ndim == 3 else images.astype(np.float32).mean(axis=3)
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth_rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth_columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across = smooth_rows[:, :, 2:] - smooth_rows[:, :, :-2]
    down = smooth_columns[:, 2:] - smooth_columns[:, :-2]
    return np.clip(np.hypot(across, down) / 4, 0, 255).round().astype(np.uint8)


def with_edges(splits: DataSplits) -> DataSplits:
    """Return the splits with the edges as a last channel: modalities ``image`` and ``edges``."""

    def both(split: Any) -> ArraySplit:
        assert isinstance(split, ArraySplit), "a set in memory"
        images = split.images[..., None] if split.images.ndim == 3 else split.images
        return replace(split, images=np.concatenate([images, edges(split.images)[..., None]], axis=3))

    train, test, validation, channels = both(splits.train), splits.test, splits.validation, splits.channels
    drawn = train.images[..., -1] / 255
    return replace(
        splits,
        train=train,
        test=lambda: both(test()),
        validation=None if validation is None else both(validation),
        channels=channels + 1,
        mean=(*splits.mean, round(float(drawn.mean()), 4)),
        std=(*splits.std, round(float(drawn.std()), 4)),
        modalities={"image": (0, channels), "edges": (channels, channels + 1)},
    )
