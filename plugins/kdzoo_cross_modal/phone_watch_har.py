"""Activities recorded by a phone and a watch at the same time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdzoo.api.data import ArraySplit, DataError, DataSource, DataSplits

FILE = "phone_watch_har.npz"
#: People held out for these splits; nobody is in two splits.
VALIDATION, TEST = ("s16", "s17", "s18"), ("s19", "s20", "s21", "s22", "s23")
KEYS = ("phone", "watch", "label", "subject", "classes")


class PhoneWatchHAR(DataSource):
    """Windows of one second of accelerometer and gyroscope, three axes each, of a phone and of a watch; 5 activities.

    Reads ``<root>/phone_watch_har/phone_watch_har.npz``: ``phone`` and ``watch`` (N, 6, 50), in the sensors' units at
    50 Hz, ``label`` (N,), ``subject`` (N,) and ``classes`` (5,). A window becomes a map of height 1 and width 50.
    """

    name = "phone_watch_har"
    description = "3568 paired windows of phone and watch sensors, 5 activities, split by person"

    def load(self, root: Path) -> DataSplits:
        """Return the splits by person; raises DataError."""
        path = root / self.name / FILE
        if not path.is_file():
            raise DataError(
                f"data set '{self.name}': no file {path}; make it of the published recordings (see the documentation), "
                f"or set data.root or $KDZOO_DATA to the folder that holds {self.name}/{FILE}"
            )
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in KEYS}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: must hold plain arrays {', '.join(KEYS)}: {error}") from error
        both = np.concatenate([arrays["phone"], arrays["watch"]], axis=1).astype(np.float32)
        images = np.ascontiguousarray(both.transpose(0, 2, 1)[:, None])  # (N, 1, 50, 12)
        person, targets = arrays["subject"], arrays["label"].astype(np.int64)

        def split(chosen: np.ndarray) -> ArraySplit:
            return ArraySplit(images[chosen], targets[chosen])

        test, validation = np.isin(person, TEST), np.isin(person, VALIDATION)
        train = split(~test & ~validation)
        return DataSplits(
            train=train,
            validation=split(validation),
            test=lambda: split(test),
            classes=tuple(map(str, arrays["classes"])),
            channels=12,
            size=(1, 50),
            mean=tuple(train.images.mean((0, 1, 2)).tolist()),
            std=tuple(train.images.std((0, 1, 2)).tolist()),
            modalities={"phone": (0, 6), "watch": (6, 12)},
            source="Matey-Sanz, Casteleyn, Granell (2023), doi 10.1016/j.dib.2023.109809; resampled to 50 Hz windows",
            licence="CC BY 4.0",
        )
