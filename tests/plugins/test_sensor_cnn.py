"""The networks of sensors: timm's interface over maps of height 1."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from kdzoo.zoo.loading import load_zoo


@pytest.mark.parametrize("name", ["sensor_cnn", "sensor_cnn_small"])
def test_networks_of_sensors_have_the_interface_of_timm(name: str) -> None:
    load_zoo()
    model: Any = timm.create_model(name, num_classes=5, in_chans=6).eval()
    inputs = torch.randn(3, 6, 1, 50)
    last, features = model.forward_intermediates(inputs)
    assert torch.equal(model.forward_head(last), model(inputs))
    widths = [entry["num_chs"] for entry in model.feature_info]
    assert [tuple(feature.shape) for feature in features] == [
        (3, width, 1, side) for width, side in zip(widths, (50, 25, 13), strict=True)
    ]
