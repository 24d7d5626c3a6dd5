"""Handwritten digits, 8 x 8 grey, inside the package: the data set for a first run and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from kdzoo.api.data import ArraySplit, DataSource, DataSplits, OfferOptions
from kdzoo_vision.renderings import with_edges

FILE = Path(__file__).with_name("digits.npz")


class Digits(DataSource):
    """1797 digits by 43 people; 1000 to train and 797 to test, drawn once, stratified, and written down in the file."""

    name = "digits"
    description = "1797 handwritten digits, 8 x 8 grey, in the package"

    class Options(OfferOptions):
        edges: bool = Field(False, description="Add what Sobel's operator makes of each image as a second modality.")

    def load(self, root: Path) -> DataSplits:
        with np.load(FILE, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        train = ArraySplit(arrays["train_images"], arrays["train_targets"])
        test = ArraySplit(arrays["test_images"], arrays["test_targets"])
        splits = DataSplits(
            train=train,
            test=lambda: test,
            classes=tuple("0123456789"),
            channels=1,
            size=(8, 8),
            mean=(0.3057,),  # of the 1000 training images
            std=(0.3760,),
            source="E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, doi 10.24432/C50P49",
            licence="CC BY 4.0",
        )
        options: Any = self.options
        return with_edges(splits) if options.edges else splits
