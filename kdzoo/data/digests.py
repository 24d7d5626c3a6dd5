"""Hashes of samples, by which equal samples and changed data are known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from kdzoo.contract.extension_points import ArraySplit, FileSplit, Split, TokenSplit
from kdzoo.data.file_records import FileRecords, files_hashed


def samples_of(split: Split) -> int:
    """Return how many samples a split has."""
    if isinstance(split, FileSplit):
        return len(split.names)
    return len(split.images if isinstance(split, ArraySplit) else split.ids)


def digests(split: Split, pad: int = 0, records: FileRecords | None = None) -> list[str]:
    """Hash the content of each sample; of text without its fill, ``pad``.

    Files that ``records`` know are not read again, but for a few.
    """
    if isinstance(split, TokenSplit):
        ids = np.asarray(split.ids).astype("<i4")
        rows = [row[:length].tobytes() for row, length in zip(ids, (ids != pad).sum(axis=1), strict=True)]
        return [hashlib.blake2b(row, digest_size=16).hexdigest() for row in rows]
    if isinstance(split, ArraySplit):
        images = np.ascontiguousarray(split.images)
        return [hashlib.blake2b(image.data, digest_size=16).hexdigest() for image in images]
    if records is not None and split.files:
        return records.digests(split)
    return files_hashed(split, range(len(split.names)))


def split_hash(samples: Sequence[str], targets: np.ndarray) -> str:
    """Hash a whole split: each sample's digest and target, in order."""
    digest = hashlib.sha256("".join(samples).encode())
    digest.update(np.asarray(targets).astype("<i8").tobytes())
    return digest.hexdigest()
