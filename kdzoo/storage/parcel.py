"""A folder as bytes, for machines that share no files: checked by hash where it arrives, then renamed into place.

The bytes are a line that names the format, the header's size in bytes (8 bytes, little endian), the header, and the
content of each file in the header's order. The header is sealed JSON with the sha256 and the size of each file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

from kdzoo.errors import CorruptError, plain
from kdzoo.storage.atomic import check_room, rename_new, sync_folder, write_through, writing
from kdzoo.storage.owner import TEMPORARY, discarded, sweep, temporary_in
from kdzoo.storage.sealed import Files, reading, sealed_bytes, unsealed_manifest

FORMAT = b"kdzoo parcel 1\n"
SIZE_BYTES = 8


def pack(folder: Path, leave_out: Callable[[str], bool] = lambda name: False) -> bytes:
    """Return the files below ``folder`` as bytes; equal folders give equal bytes.

    Links, empty folders, what is half written and what ``leave_out`` says of relative names stay behind. Raise
    CorruptError where a file cannot be read.
    """
    if not folder.is_dir():
        raise CorruptError(f"{folder}: no such folder to send")
    files: Files = {}
    contents = io.BytesIO()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        half_written = any(TEMPORARY.fullmatch(part) for part in name.parts)
        if path.is_symlink() or not path.is_file() or half_written or leave_out(name.as_posix()):
            continue
        with reading(path):
            data = path.read_bytes()
        files[name.as_posix()] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        contents.write(data)
    header = sealed_bytes({"files": files})
    return b"".join((FORMAT, len(header).to_bytes(SIZE_BYTES, "little"), header, contents.getbuffer()))


def unpack(content: bytes, place: Path, check: Callable[[Path], None] = lambda folder: None) -> bool:
    """Make the folder ``place`` of what ``pack`` returned; False where it was there already, which stays as it is.

    Every file is compared with its hash before anything is written, and ``check`` may refuse the unpacked folder. So
    ``place`` is there as a whole or not at all. Raise CorruptError for damaged content and for a file that would lie
    outside ``place``, OutputError where it cannot be written.
    """
    files = _files_of(content, f"{place}: the folder that arrived for it")
    parent = place.parent
    with writing(place, len(content)):
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        check_room(parent, len(content))
        temporary = temporary_in(parent)
        temporary.mkdir()
    with discarded(temporary):
        with writing(place, len(content)):
            for name, data in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                write_through(temporary / name, data)
            for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
                sync_folder(folder)
        check(temporary)
        with writing(place, len(content)):
            return rename_new(temporary, place)


def _files_of(content: bytes, origin: str) -> dict[str, memoryview]:
    """Each file's content by its relative name, compared with its hash."""
    start = len(FORMAT) + SIZE_BYTES
    if content[: len(FORMAT)] != FORMAT:
        raise CorruptError(f"{origin}: damaged: it begins with {plain(repr(bytes(content[:16])))}, not with {FORMAT!r}")
    end = start + int.from_bytes(content[len(FORMAT) : start], "little")
    header = unsealed_manifest(bytes(content[start:end]), origin)
    files: dict[str, memoryview] = {}
    for name, record in header["files"].items():
        inside_a_file = any(folder.as_posix() in header["files"] for folder in Path(name).parents)
        if Path(name).as_posix() != name or not Path(name).parts or inside_a_file or record is None:
            raise CorruptError(f"{origin}: damaged: '{plain(name)}' is no name of a file in a folder")
        size = record.get("size")
        if type(size) is not int or not 0 <= size <= len(content) - end:
            raise CorruptError(f"{origin}: damaged: {plain(name)}: {len(content) - end} bytes instead of {size}")
        files[name] = memoryview(content)[end : end + size]
        end += size
        if hashlib.sha256(files[name]).hexdigest() != record["sha256"]:
            raise CorruptError(f"{origin}: damaged: {plain(name)}: its sha256 is not the recorded one")
    if end != len(content):
        raise CorruptError(f"{origin}: damaged: {len(content) - end} bytes follow its last file")
    return files
