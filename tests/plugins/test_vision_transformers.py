"""Pairs of a convnet and a vision transformer: levels are paired by depth, tokens are maps, and the student learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdzoo.api import Algorithm
from kdzoo.testing import tiny as testing
from kdzoo.zoo.loading import load_zoo
from kdzoo_feature.fitnet import FitNet
from kdzoo_feature.review_kd import ReviewKD

VIT = {"name": "vit_tiny_patch16_224", "args": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}}
CNN = {"name": testing.TINY, "args": testing.TEACHER}
OPTIONS: dict[type[Algorithm], dict[str, Any]] = {FitNet: {"use_relu": False}, ReviewKD: {"warmup_epochs": 0}}


@pytest.mark.parametrize("cls", OPTIONS)
@pytest.mark.parametrize(("teacher", "student"), [(CNN, VIT), (VIT, CNN)], ids=["cnn_to_vit", "vit_to_cnn"])
def test_a_student_learns_the_maps_of_another_kind_of_network(
    cls: type[Algorithm], teacher: dict[str, Any], student: dict[str, Any], tmp_path: Path
) -> None:
    pair = {"models": {"teachers": [teacher], "student": student}}
    changes = {"train": {"epochs": 10, "optimizer": {"name": "adamw", "lr": 0.01}}}
    paired: type[Algorithm] = type(cls.__name__, (cls,), {"tiny_recipe": pair, "__module__": __name__})
    runner = testing.tiny_runner(paired, load_zoo(), tmp_path, changes, options=OPTIONS[cls])
    results = runner.run()
    assert results["pairing"]["student"][0].startswith("by depth: ")
    (term,) = set(cls.default_weights) - {"task"}
    rows = [row for row in runner.stages[-1].rows if row["split"] == "train"]
    assert rows[-1][term] < 0.95 * rows[0][term]
    assert results["student"]["top1_percent"] >= 0
