"""Public data sets that fit in memory, from a prepared copy of plain arrays or through torchvision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from pydantic import Field

from kdzoo.api.data import ArraySplit, DataError, DataSource, DataSplits, OfferOptions
from kdzoo_vision.renderings import with_edges

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class StandardSet(DataSource):
    """A data set of fixed splits; what a subclass says of it is checked against what is found.

    A prepared copy is a folder ``<root>/<name>`` with uint8 arrays train_images.npy, train_labels.npy,
    test_images.npy, test_labels.npy and a meta.json that lists the ``classes``. Without one torchvision reads its own
    files below ``<root>``, after it has checked their published hashes.
    """

    torchvision_name: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]  # (H, W, C)
    count: ClassVar[int]  # of classes
    mean: ClassVar[tuple[float, ...]]  # of the training images, a channel
    std: ClassVar[tuple[float, ...]]
    source: ClassVar[str]
    licence: ClassVar[str]

    class Options(OfferOptions):
        download: bool = Field(False, description="Let torchvision fetch the data set when it is not there.")
        edges: bool = Field(False, description="Add what Sobel's operator makes of each image as a second modality.")

    def load(self, root: Path) -> DataSplits:
        """Return the splits; the test arrays are read when they are asked for. Raises DataError."""
        folder = root / self.name
        if folder.is_dir() and any((folder / f"{name}.npy").exists() for name in ARRAYS):
            classes = self._prepared_classes(folder)
            splits = {which: lambda which=which: self._prepared(folder, which) for which in ("train", "test")}
        else:
            sets = {which: self._from_torchvision(root, which) for which in ("train", "test")}
            classes = tuple(sets["train"].classes)
            splits = {which: lambda which=which: self._arrays(sets[which]) for which in ("train", "test")}
        height, width, channels = self.shape
        found = DataSplits(
            train=splits["train"](),
            test=splits["test"],
            classes=classes,
            channels=channels,
            size=(height, width),
            mean=self.mean,
            std=self.std,
            source=self.source,
            licence=self.licence,
        )
        options: Any = self.options
        return with_edges(found) if options.edges else found

    def _prepared_classes(self, folder: Path) -> tuple[str, ...]:
        missing = [f"{name}.npy" for name in ARRAYS if not (folder / f"{name}.npy").is_file()]
        missing += [] if (folder / "meta.json").is_file() else ["meta.json"]
        if missing:
            raise DataError(f"data set '{self.name}': the prepared copy {folder} lacks {', '.join(missing)}")
        try:
            classes = json.loads((folder / "meta.json").read_text())["classes"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / 'meta.json'}: no JSON object with a list 'classes'") from error
        if not isinstance(classes, list) or len(classes) != self.count:
            raise DataError(f"{folder / 'meta.json'}: 'classes' must list the {self.count} classes of '{self.name}'")
        return tuple(map(str, classes))

    def _prepared(self, folder: Path, which: str) -> ArraySplit:
        arrays = [load_array(folder / f"{which}_{kind}.npy") for kind in ("images", "labels")]
        return ArraySplit(arrays[0], arrays[1])

    def _from_torchvision(self, root: Path, which: str) -> Any:
        from torchvision import datasets

        options: Any = self.options
        try:
            return getattr(datasets, self.torchvision_name)(root, train=which == "train", download=options.download)
        except (RuntimeError, OSError) as error:  # not there, damaged, or no network to fetch it
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"data set '{self.name}': not found below '{root}' ({first}). Set data.options.download: true to let "
                "torchvision fetch it, or data.root or $KDZOO_DATA to the folder that holds torchvision's files or "
                f"{self.name}/train_images.npy"
            ) from error

    def _arrays(self, dataset: Any) -> ArraySplit:
        return ArraySplit(np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64))


def load_array(path: Path) -> np.ndarray:
    """Read a .npy file without running code in it; raise DataError naming the file when that cannot be done."""
    try:
        with path.open("rb") as file:
            check_header(str(path), file, path.stat().st_size)
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as a plain array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is an archive of arrays, not one array")
    return array


def check_header(where: str, file: IO[bytes], size: int) -> None:
    """Raise DataError where an array's header promises more numbers than its ``size`` in bytes holds.

    numpy would make room for all of them first. What is no .npy file is left to numpy, which says so.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError:
        return
    promised = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and promised > size:
        raise DataError(f"{where}: its header promises {dtype} {shape}, {promised:,} bytes; it has {size:,} bytes")


class Cifar10(StandardSet):
    """60,000 colour images of 10 kinds of things."""

    name = "cifar10"
    description = "50,000 + 10,000 colour images, 32 x 32, 10 classes"
    torchvision_name = "CIFAR10"
    shape, count = (32, 32, 3), 10
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    source = "A. Krizhevsky (2009), https://www.cs.toronto.edu/~kriz/cifar.html"
    licence = "none stated"


class Cifar100(StandardSet):
    """60,000 colour images of 100 kinds of things."""

    name = "cifar100"
    description = "50,000 + 10,000 colour images, 32 x 32, 100 classes"
    torchvision_name = "CIFAR100"
    shape, count = (32, 32, 3), 100
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    source = "A. Krizhevsky (2009), https://www.cs.toronto.edu/~kriz/cifar.html"
    licence = "none stated"


class FashionMnist(StandardSet):
    """70,000 grey images of clothing."""

    name = "fashion_mnist"
    description = "60,000 + 10,000 grey images of clothing, 28 x 28, 10 classes"
    torchvision_name = "FashionMNIST"
    shape, count = (28, 28, 1), 10
    mean, std = (0.2860,), (0.3530,)
    source = "Zalando SE (2017), https://github.com/zalandoresearch/fashion-mnist"
    licence = "MIT"


class Mnist(StandardSet):
    """70,000 grey images of handwritten digits."""

    name = "mnist"
    description = "60,000 + 10,000 grey images of handwritten digits, 28 x 28"
    torchvision_name = "MNIST"
    shape, count = (28, 28, 1), 10
    mean, std = (0.1307,), (0.3081,)
    source = "Y. LeCun, C. Cortes, C. Burges (1998), https://yann.lecun.org/exdb/mnist/"
    licence = "CC BY-SA 3.0"
