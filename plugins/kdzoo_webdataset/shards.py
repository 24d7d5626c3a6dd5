"""Tar shards: their names, and where in them each sample is."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdzoo.api.data import DataError

#: A larger member is neither an image nor a label.
MOST_BYTES = 2**30
#: Names that one pattern may stand for.
MOST_SHARDS = 100_000
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Member:
    """A file inside of a shard: where its bytes begin, and how many there are."""

    shard: str
    offset: int
    size: int

    def read(self, name: str) -> bytes:
        """Return its bytes; raise DataError, which begins with ``name``, where they cannot be read."""
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error}") from error
        if len(content) < self.size:
            raise DataError(f"{name}: {self.shard} ends in the middle of it")
        return content


@dataclass(frozen=True)
class Sample:
    """The members of one key, by their extension."""

    key: str
    shard: str
    members: Mapping[str, Member]

    @property
    def name(self) -> str:
        return f"{self.shard}: {self.key}"


def expand(pattern: str) -> Iterator[str]:
    """Yield the names that braces stand for: ``{000..009}`` a range, ``{a,b}`` a choice."""
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    before, inside, after = pattern[: found.start()], found[1], pattern[found.end() :]
    span = RANGE.fullmatch(inside)
    choices: Sequence[str] = inside.split(",")
    if span:
        first, last = span.groups()
        if not int(first) <= int(last) < int(first) + MOST_SHARDS:
            raise DataError(f"'{pattern}': {{{inside}}} is no range of at most {MOST_SHARDS:,} numbers")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    for choice in choices:
        yield from expand(f"{before}{choice}{after}")


def find(folder: str, patterns: Sequence[str]) -> list[str]:
    """Return the shards below a folder that patterns name, in order; DataError for one that is not there."""
    found: list[str] = []
    for pattern in patterns:
        for name in expand(pattern):
            path = os.path.join(folder, name)
            some = sorted(glob.glob(path)) if glob.has_magic(name) else [path] if os.path.isfile(path) else []
            if not some:
                raise DataError(
                    f"data set 'webdataset': no shard '{name}' below '{folder}'; set data.options or data.root"
                )
            found += some
    twice = sorted({path for path in found if found.count(path) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise DataError(f"data set 'webdataset': {twice[0]} is named twice")
    return found


def samples(shard: str) -> list[Sample]:
    """Return the samples of one shard, in its order; files of one name but for the extension are one sample.

    The extension begins at the first dot of the name, as in webdataset. Hidden files are not looked at. Raises
    DataError where the shard is damaged, or holds one name twice.
    """
    found: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for entry in archive:
                folder, name = os.path.split(entry.name)
                key, _, extension = name.partition(".")
                if not entry.isfile() or name.startswith(".") or not extension:
                    continue
                if entry.issparse() or entry.size > MOST_BYTES:
                    raise DataError(f"{shard}: {entry.name}: is a sparse file, or larger than {MOST_BYTES:,} bytes")
                members = found.setdefault(os.path.join(folder, key), {})
                if extension.lower() in members:
                    raise DataError(f"{shard}: {entry.name}: is there twice; each key and extension belongs in once")
                members[extension.lower()] = Member(shard, entry.offset_data, entry.size)
            with open(shard, "rb") as file:  # tarfile takes a damaged header for the end
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"no header of a file at byte {archive.offset:,}")
    except (OSError, tarfile.TarError, ValueError) as error:
        hint = (
            "; a compressed shard must be unpacked to .tar"
            if shard.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst"))
            else ""
        )
        raise DataError(f"{shard}: cannot be read as a tar file: {error}{hint}") from error
    if not found:
        raise DataError(f"{shard}: holds no samples")
    return [Sample(key, shard, members) for key, members in found.items()]
