"""Whether the splits of a data set have the right form: shapes, types, labels, images that can be decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kdzoo.contract.classification import NO_LABEL
from kdzoo.contract.extension_points import ArraySplit, FileSplit, Split, TokenSplit
from kdzoo.data.augmentation import Augment
from kdzoo.data.digests import samples_of
from kdzoo.data.file_records import FileRecords
from kdzoo.data.images import Decoder
from kdzoo.data.inputs import Inputs, TokenIds
from kdzoo.errors import DataError

#: Threads that decode images; decoders release the interpreter, so they run side by side.
DECODING_THREADS = 8
#: Images that cannot be read are named up to this number.
NAMED = 5


@dataclass(frozen=True)
class FormCheck:
    """Checks the splits of one data set; every problem is a DataError that says what would be right."""

    title: str
    classes: tuple[str, ...]
    inputs: Inputs
    augment: Augment
    decoder: Decoder | None = None  # of encoded images

    @property
    def augmented(self) -> bool:
        return self.augment != "none"

    def header(self, modalities: Mapping[str, tuple[int, int]]) -> None:
        """Check classes, channels, size and normalisation."""
        inputs, channels, size = self.inputs, self.inputs.channels, self.inputs.size
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise DataError(f"{self.title}: needs at least 2 classes of different names, got {list(self.classes)}")
        if inputs.kind == "text" and (channels != 1 or size[1] != 1):
            raise DataError(f"{self.title}: text with {channels} channels of size {size}; 1 of (L, 1) would be right")
        if channels < 1 or len(size) != 2 or min(size) < 1:
            raise DataError(f"{self.title}: {channels} channels of size {size} are no images")
        for name, (first, last) in modalities.items():
            if not 0 <= first < last <= channels:
                raise DataError(
                    f"{self.title}: modality '{name}' has the channels {first}..{last - 1}; there are {channels}"
                )
        lengths = {len(inputs.mean), len(inputs.std)}
        finite = np.isfinite([*inputs.mean, *inputs.std]).all()
        if lengths != {channels} or not finite or min(inputs.std) <= 0:
            raise DataError(
                f"{self.title}: mean {inputs.mean} and std {inputs.std} must be {channels} finite numbers each, "
                "one a channel, and std above 0"
            )
        if inputs.kind == "text" and self.augmented:
            named = f"'{self.augment}'" if isinstance(self.augment, str) else "a mapping of operations"
            raise DataError(f"{self.title}: data.augment: {named} is for images; none is right for text")
        self._operations(inputs)

    def _operations(self, inputs: Inputs) -> None:
        """Check that timm's operations can show the images."""
        if isinstance(self.augment, str) or inputs.kind != "image":
            return
        colours = self.augment.auto_augment is not None or self.augment.color_jitter > 0
        fit = (1, 3) if colours or self.decoder is None else (1, 3, 4)
        if inputs.channels not in fit:
            raise DataError(
                f"{self.title}: data.augment: timm's operations are for images of {' or '.join(map(str, fit))} "
                f"channels, and these have {inputs.channels}; none, flip or crop_flip would be right"
            )

    def split(self, split: Split, name: str, unlabelled: bool = False) -> None:
        """Check a split's shape, type and targets; with ``unlabelled``, samples may have no label."""
        where = f"{self.title}, split {name}"
        if isinstance(split, TokenSplit) != isinstance(self.inputs, TokenIds):
            raise DataError(f"{where}: text has TokenSplits and DataSplits.tokens; images have neither")
        samples = samples_of(split)
        if samples == 0:
            raise DataError(f"{where}: has no samples")
        if isinstance(split, TokenSplit):
            self._ids(where, split)
        if isinstance(split, ArraySplit):
            self._array(where, split, samples)
        if isinstance(split, FileSplit) and self.decoder is None:
            raise DataError(
                f"{where}: encoded images, but another split has arrays or text; one kind in all splits would be right"
            )
        targets = np.asarray(split.targets)
        if targets.shape != (samples,) or targets.dtype.kind not in "iu":
            raise DataError(f"{where}: targets are {targets.dtype} {targets.shape}; int64 {(samples,)} would be right")
        low, high = int(targets.min()), int(targets.max())
        if low < (NO_LABEL if unlabelled else 0) or high >= len(self.classes):
            no_label = f" and {NO_LABEL} for no label" if unlabelled else ""
            lie = f"targets lie in {low}..{high}; 0..{len(self.classes) - 1}{no_label}"
            raise DataError(f"{where}: {lie} would be right")

    def _array(self, where: str, split: ArraySplit, samples: int) -> None:
        wanted = (samples, *self.inputs.size, self.inputs.channels)
        grey = self.inputs.channels == 1 and split.images.shape == wanted[:3]
        dtype = np.dtype(self.inputs.stored_dtype)
        if split.images.dtype != dtype or (split.images.shape != wanted and not grey):
            raise DataError(
                f"{where}: images are {split.images.dtype} {split.images.shape}; {dtype} {wanted} would be right"
            )
        if split.images.dtype == np.float32 and self.augmented:
            raise DataError(f"{where}: measurements in float32 are no pixels; data.augment: none would be right")
        if split.images.dtype == np.float32 and not np.isfinite(split.images).all():
            raise DataError(f"{where}: some measurements are not finite")

    def _ids(self, where: str, split: TokenSplit) -> None:
        assert isinstance(self.inputs, TokenIds)
        vocab_size, pad = self.inputs.vocab_size, self.inputs.fill
        ids = np.asarray(split.ids)
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or ids.shape[1] < 1:
            raise DataError(f"{where}: ids are {ids.dtype} {ids.shape}; int (N, L) would be right")
        if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            raise DataError(f"{where}: ids lie in {ids.min()}..{ids.max()}; 0..{vocab_size - 1} would be right")
        real = ids != pad
        wrong = np.flatnonzero(~real[:, 0] | (real[:, 1:] & ~real[:, :-1]).any(axis=1))
        if len(wrong):
            raise DataError(
                f"{where}: row {int(wrong[0])} is empty or is filled up before its end with {pad}; tokens "
                "first, then only fill, would be right"
            )

    def images(self, split: Split, records: FileRecords) -> int:
        """Decode every image of a split that is read file by file; return how many were decoded.

        What ``records`` know to be readable is not decoded again. Raises DataError that names the first ones that
        cannot be read.
        """
        if not isinstance(split, FileSplit):
            return 0
        decoder = self.decoder
        assert decoder is not None, "checked with the form of the split"
        unknown = records.unread(split, decoder.rules)

        def decoded(i: int) -> str | None:
            image = read_sample(split, i, decoder)
            if isinstance(image, str):
                return image
            records.mark_readable(split, i, decoder.rules)
            return None

        problems = [problem for problem in in_threads(decoded, unknown) if problem is not None]
        records.save()
        if problems:
            more = [f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
            raise DataError("\n  ".join([*problems[:NAMED], *more]))
        return len(unknown)


def read_sample(
    split: FileSplit, i: int, decoder: Decoder, show: Callable[[Decoder, bytes, str], np.ndarray] | None = None
) -> np.ndarray | str:
    """Return one image of a file split, uint8 (H, W, C), or in words why there is none.

    ``show`` makes pixels with the decoder of the content and the name; None: they are as evaluation sees it.
    """
    name = split.names[i]
    try:
        content = split.content(i)
    except DataError as error:
        return str(error)
    except Exception as error:  # a plugin's source; whatever it raises is about this sample, and is reported
        return f"{name}: cannot be read: {type(error).__name__}: {error}"
    if not isinstance(content, bytes):
        return f"{name}: its content is {type(content).__name__}; the bytes of an image file would be right"
    try:
        return decoder.pixels(content, name) if show is None else show(decoder, content, name)
    except DataError as error:
        return str(error)
    except Exception as error:  # an operation of augmentation that fails on this image
        return f"{name}: cannot be augmented: {type(error).__name__}: {error}"


def in_threads(check: Callable[[int], str | None], rows: Sequence[int]) -> Iterator[str | None]:
    """Yield what ``check`` says of each row, in order."""
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        yield from pool.map(check, rows)
