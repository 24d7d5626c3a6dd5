"""Some files of a folder that are written together, with a sealed manifest of their own.

The manifest first records, as pending, what the files will be; a kill in between leaves each of them as it was or as it
is to be, and either verifies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from kdzoo.errors import CorruptError
from kdzoo.storage.atomic import probe_writable, replace_files
from kdzoo.storage.sealed import Files, differences, read_manifest, read_recorded, write_sealed

#: What records the other files.
MANIFEST = "manifest.json"


def write_together(folder: Path, files: Mapping[str, bytes], of: str) -> None:
    """Write files into a folder, which may exist, and record them; ``of`` says what they belong to.

    Files that are there already and do not verify are replaced, and no other file is recorded. Raise OutputError when
    the folder cannot be written.
    """
    probe_writable(folder)
    try:
        before = recorded(folder, of)
    except CorruptError:
        before = {}
    after: Files = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
    }
    write_sealed(folder / MANIFEST, {"of": of, "files": before, "pending": after})
    replace_files(folder, files)
    write_sealed(folder / MANIFEST, {"of": of, "files": after})


def read_together(folder: Path, name: str, of: str) -> bytes:
    """Return a file that ``write_together`` wrote; CorruptError where it is missing, damaged or of something else."""
    return read_recorded(folder / name, recorded(folder, of), name)


def recorded(folder: Path, of: str) -> Files:
    """What is recorded of the files on disk."""
    content = read_manifest(folder / MANIFEST, of=str)
    if content["of"] != of:
        raise CorruptError(f"{folder / MANIFEST}: of {content['of']}, not of {of}")
    done = {name: record for name, record in content["pending"].items() if not differences(folder, {name: record})}
    return content["files"] | done
