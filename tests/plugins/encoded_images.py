"""Encoded images for tests of data sources, and what a source makes of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdzoo.api.data import DataError, DataSource, DataSplits
from kdzoo.data.data_set import DataSet, open_data
from kdzoo.recipe.sections import DataRecipe


def encoded(seed: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """An image of noise, 8 x 8."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))
    out = io.BytesIO()
    image.convert(mode).save(out, kind)
    return out.getvalue()


def load(cls: type[DataSource], root: Path, **options: Any) -> DataSplits:
    return cls(cls.Options(**options)).load(root)


def refusal(cls: type[DataSource], root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(cls, root, **options)
    return str(caught.value)


def opened(cls: type[DataSource], root: Path, validation: int = 0, **options: Any) -> DataSet:
    """The data set of a source, as a run opens it."""
    recipe = DataRecipe(name=cls.name, root=str(root), validation=validation, preprocessing={"size": 8})
    return open_data(cls(cls.Options(**options)), recipe, 0)


def targets_of(splits: DataSplits) -> tuple[list[int], list[int]]:
    return splits.train.targets.tolist(), splits.test().targets.tolist()
