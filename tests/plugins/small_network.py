"""A small network with all that an export has to get right, and inputs for it."""

from __future__ import annotations

import torch
from torch import nn


def tiny(seed=0):
    """Convolution, BatchNorm with statistics of its own, residual sum, pooling, classifier; in eval mode."""

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.again, self.classifier = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, inputs):
            features = self.norm(self.conv(inputs)).relu()
            return self.classifier((features + self.again(features)).relu().mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Tiny()
        nn.init.uniform_(model.norm.running_var, 0.5, 2)
        nn.init.normal_(model.norm.running_mean)
    return model.eval()


def images(samples, seed=1):
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
