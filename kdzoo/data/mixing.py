"""Mixup and CutMix: two training samples become one, as a function of (seed, step).

A step draws one share and, for CutMix, one box. Each sample meets its neighbour in the batch, whose order is random
anyway; so a process, or a part of a batch, finds both among its own samples.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from kdzoo.contract.step import Batch, Mixed
from kdzoo.recipe.image_sections import AugmentRecipe
from kdzoo.types import derive_seed


def mixed(batch: Batch, settings: AugmentRecipe, seed: int, epoch: int, step: int) -> Batch:
    """Return a batch whose images and labels are mixed; ``step`` counts from the epoch's first."""
    draw = np.random.Generator(np.random.Philox(derive_seed(seed, "mix", epoch, step)))
    cut = settings.cutmix > 0 and (settings.mixup == 0 or draw.random() < 0.5)
    alpha = settings.cutmix if cut else settings.mixup
    share = float(draw.beta(alpha, alpha))
    images, rows = batch.inputs, torch.arange(len(batch.index), device=batch.index.device)
    other = (rows ^ 1).clamp_(max=len(rows) - 1)  # of an odd number, the last one meets itself
    if cut:
        top, bottom, left, right = box(images.shape[2], images.shape[3], share, draw)
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
        shown = images.clone()
        shown[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    else:
        shown = images * share + images[other] * (1 - share)
    shares = torch.full((len(rows),), share, device=images.device)
    return replace(batch, inputs=shown, mixed=Mixed(batch.targets[other], shares))


def box(height: int, width: int, share: float, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw CutMix's box of about 1 - ``share`` of the area, cut off at the border: (top, bottom, left, right)."""
    side = math.sqrt(1 - share)
    tall, wide = int(height * side), int(width * side)
    y, x = int(draw.integers(height)), int(draw.integers(width))
    top, left = max(0, y - tall // 2), max(0, x - wide // 2)
    return top, min(height, y + (tall + 1) // 2), left, min(width, x + (wide + 1) // 2)
