"""Anybody's own images as arrays in .npz or .npy files."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from kdzoo.api.data import ArraySplit, DataError, DataSource, DataSplits, OfferOptions
from kdzoo_vision.standard_sets import check_header, load_array


class ArrayFiles(OfferOptions):
    """A split in two .npy files."""

    images: str = Field(description="File of the images, uint8 (N, H, W) or (N, H, W, C).")
    labels: str = Field(description="File of the labels, whole numbers (N,).")


SplitFiles = str | ArrayFiles


class Arrays(DataSource):
    """Splits from files below the data root, each an .npz with two arrays or a pair of .npy files."""

    name = "arrays"
    description = "your own .npz or .npy files"

    class Options(OfferOptions):
        train: SplitFiles = Field("train.npz", description="Training split: an .npz, or images and labels as .npy.")
        test: SplitFiles = Field("test.npz", description="Test split, read once at the end.")
        validation: SplitFiles | None = Field(None, description="Validation split; null: a share of train.")
        images_key: str = Field("images", description="Name of the images in an .npz.")
        labels_key: str = Field("labels", description="Name of the labels in an .npz.")
        classes: tuple[str, ...] | None = Field(None, description="Names of the classes; null: 0, 1, 2 ...")
        mean: tuple[float, ...] | None = Field(None, description="A channel, of pixels in [0, 1]; null: train's own.")
        std: tuple[float, ...] | None = Field(None, description="A channel, of pixels in [0, 1]; null: train's own.")

    def load(self, root: Path) -> DataSplits:
        """Return the splits; the test file is looked for at once, but read when it is asked for. Raises DataError."""
        options: Any = self.options
        for files in filter(None, (options.train, options.test, options.validation)):
            self._paths(root, files)
        train = self._split(root, options.train)
        classes = options.classes or self._numbered(train)
        channels = train.images.shape[3] if train.images.ndim == 4 else 1
        own_mean, own_std = moments(train.images) if None in (options.mean, options.std) else ((), ())
        return DataSplits(
            train=train,
            test=lambda: self._split(root, options.test),
            validation=None if options.validation is None else self._split(root, options.validation),
            classes=classes,
            channels=channels,
            size=train.images.shape[1:3],
            mean=options.mean or own_mean,
            std=options.std or own_std,
            source="own arrays",
        )

    def _numbered(self, train: ArraySplit) -> tuple[str, ...]:
        """Return the classes 0 to the largest label; there cannot be more of them than samples."""
        count, samples = int(train.targets.max(initial=0)) + 1, len(train.targets)
        if count > max(samples, 2):
            raise DataError(
                f"data set 'arrays', split train: labels go up to {count - 1}, which makes {count} classes of "
                f"{samples} samples; labels below {samples} would be right, or data.options.classes that names them"
            )
        return tuple(map(str, range(count)))

    def _paths(self, root: Path, files: SplitFiles) -> list[Path]:
        """The files of a split, which must be there and below the root."""
        paths = []
        for name in [files] if isinstance(files, str) else [files.images, files.labels]:
            try:
                path = (root / name).resolve()
            except (OSError, ValueError) as error:
                raise DataError(f"data set 'arrays': '{name}' is no path: {error}") from error
            if not path.is_relative_to(root.resolve()):
                raise DataError(f"data set 'arrays': {name} lies outside of the data root '{root}'; set data.root")
            if not os.path.isfile(path):
                raise DataError(f"data set 'arrays': no file '{name}' below '{root}'; set data.root or data.options")
            wanted = ".npz" if isinstance(files, str) else ".npy"
            if path.suffix != wanted:
                raise DataError(
                    f"data set 'arrays': {name}: {wanted} would be right; a split is one .npz, or images and labels as "
                    "two .npy"
                )
            paths.append(path)
        return paths

    def _split(self, root: Path, files: SplitFiles) -> ArraySplit:
        options: Any = self.options
        paths = self._paths(root, files)
        if len(paths) == 2:
            images, labels = map(load_array, paths)
        else:
            images, labels = load_pair(paths[0], options.images_key, options.labels_key)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
            raise DataError(
                f"{paths[0]}: images are {images.dtype} {images.shape}; uint8 (N, H, W) or (N, H, W, C) would be right"
            )
        if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
            raise DataError(
                f"{paths[0]}: images of shape {images.shape} look like (N, C, H, W); (N, H, W, C) would be right"
            )
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise DataError(f"{paths[-1]}: labels are {labels.dtype} {labels.shape}; whole numbers (N,) would be right")
        return ArraySplit(images, labels)


def load_pair(path: Path, *keys: str) -> list[np.ndarray]:
    """Read arrays out of an .npz without running code in it; raise DataError naming file and key otherwise."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file.files]
            if missing:
                raise DataError(f"{path}: holds no '{missing[0]}', but {', '.join(file.files) or 'nothing'}")
            for key in keys:
                name = key if key in file.zip.namelist() else f"{key}.npy"
                with file.zip.open(name) as stored:
                    check_header(f"{path}: '{key}'", stored, file.zip.getinfo(name).file_size)
            return [file[key] for key in keys]
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as plain arrays: {error}") from error


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, of pixels in [0, 1], rounded to 4 digits; std at least 0.0001.

    Shapes: uint8 (N, H, W) or (N, H, W, C) -> (C,) and (C,). Counted by value, so exact and without a float copy.
    """
    channels = images[..., None] if images.ndim == 3 else images
    values = np.arange(256) / 255
    mean, std = [], []
    for c in range(channels.shape[3]):
        share = np.bincount(channels[..., c].reshape(-1), minlength=256) / channels[..., c].size
        mean.append(float(share @ values))
        std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)))
    return tuple(round(m, 4) for m in mean), tuple(max(round(s, 4), 1e-4) for s in std)
