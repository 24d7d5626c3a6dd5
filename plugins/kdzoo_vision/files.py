"""Image files below a folder: which there are, and their bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdzoo.api.data import DataError

#: What is read, by the name's ending.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
#: A larger file is no image.
MOST_BYTES = 2**30


@dataclass(frozen=True)
class Files:
    """The image files of one split; worker processes get a copy."""

    paths: tuple[str, ...]

    def content(self, i: int) -> bytes:
        """Return the bytes of file ``i``; raise DataError naming it when it cannot be read."""
        try:
            with open(self.paths[i], "rb") as file:
                if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                    raise DataError(f"{self.paths[i]}: {size:,} bytes are more than an image may have, {MOST_BYTES:,}")
                return file.read()
        except OSError as error:
            raise DataError(f"{self.paths[i]}: cannot be read: {error}") from error

    def digest(self, i: int) -> str:
        """Hash the bytes of file ``i``."""
        try:
            with open(self.paths[i], "rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
                if file.tell() == 0:
                    raise DataError(f"{self.paths[i]}: is empty")
                return found
        except OSError as error:
            raise DataError(f"{self.paths[i]}: cannot be read: {error}") from error


def real_path(path: Path) -> str:
    """Return where a path of the recipe leads; raise DataError for one that no file can have."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is no path: {error}") from error


def within(path: str, base: str) -> bool:
    """Whether a real path is a folder or lies in it."""
    return path == base or path.startswith(base.rstrip(os.sep) + os.sep)


def visible(folder: str) -> list[os.DirEntry[str]]:
    """Return what a folder holds, by name, without hidden files."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def check_link(entry: os.DirEntry[str], base: str) -> None:
    """Raise DataError for a link that leads nowhere, or out of ``base``."""
    if not entry.is_symlink():
        return
    try:
        real = os.path.realpath(entry.path, strict=True)
    except (OSError, RuntimeError) as error:  # nowhere, or in a circle
        raise DataError(f"{entry.path}: is a link to nothing") from error
    if not within(real, base):
        raise DataError(f"{entry.path}: leads to {real}, outside of {base}")


def image_file(entry: os.DirEntry[str], base: str) -> str:
    """Return the path of an image; raise DataError for anything else, by its name and kind."""
    check_link(entry, base)
    if not entry.name.lower().endswith(SUFFIXES) or not entry.is_file():  # a pipe would never end
        raise DataError(
            f"{entry.path}: is no image by its name; {', '.join(SUFFIXES)} are read, and hidden files passed over"
            if not entry.name.lower().endswith(SUFFIXES)
            else f"{entry.path}: is no regular file"
        )
    return entry.path


def images_below(folder: str, base: str) -> Iterator[str]:
    """Yield the images in a folder and in the folders below it, by name; raise DataError for any other file."""
    for entry in visible(folder):
        if not entry.is_dir():
            yield image_file(entry, base)
        elif entry.is_symlink():
            raise DataError(f"{entry.path}: is a link to a folder; a folder would be right")
        else:
            yield from images_below(entry.path, base)
