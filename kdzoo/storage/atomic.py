"""Atomic writes: a file is replaced wholly or not at all.

A file is written to a temporary one in the same folder, flushed to the disk, read back, hashed and only then put
in its place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdzoo.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor
from kdzoo.storage.owner import discard, discarded, sweep, temporary_in

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(
    path: Path, data: bytes, commit: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
) -> str:
    """Replace ``path`` by ``data``, wholly or not at all; return the sha256. Raise OutputError if that fails.

    The moment in which the file is replaced is inside ``commit()``, which may refuse it.
    """
    temporary = temporary_in(path.parent)
    with writing(path, len(data)), discarded(temporary):
        check_room(path.parent, len(data))
        sha256 = write_through(temporary, data)
        with commit():
            os.replace(temporary, path)
    with writing(path, 0, "written, but it may not survive a power cut"):
        sync_folder(path.parent)
    return sha256


def write_text(path: Path, text: str) -> str:
    """Replace ``path`` by ``text`` as UTF-8, like ``write_bytes``."""
    return write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> str:
    """Replace ``path`` by ``content`` as JSON, like ``write_bytes``; floats are written in full."""
    return write_bytes(path, json_bytes(content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Replace ``path`` by a safetensors file, like ``write_bytes``; equal content gives equal bytes."""
    return write_bytes(path, tensor_bytes(tensors, metadata or {}))


def replace_files(
    folder: Path,
    files: Mapping[str, bytes | None],
    commit: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Write files below ``folder`` like ``write_bytes``, one after the other, and remove those that are None."""
    for name, data in files.items():
        path = folder / name
        if data is None:
            with commit(), writing(path):
                path.unlink(missing_ok=True)
            continue
        with commit(), writing(path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data, commit)


def remove_folder(
    folder: Path, commit: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
) -> Path | None:
    """Remove a folder if it exists; renamed first, so that one half removed is never taken for a damaged one.

    Return what is left where files in it cannot be deleted.
    """
    temporary = temporary_in(folder.parent)
    with writing(folder, 0, "it could not be removed"), commit():
        if folder.exists():
            os.rename(folder, temporary)
    discard(temporary)
    return temporary if temporary.exists() else None


def append_line(path: Path, line: str, durable: bool = False) -> None:
    """Append one line in one write, so that a kill leaves at most the last line torn; ``durable``: flush it to disk."""
    data = line.encode() + b"\n"
    with writing(path, len(data)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def probe_writable(folder: Path) -> None:
    """Create ``folder`` and write, sync and rename a file in it; raise OutputError if it cannot be done.

    What dead processes left half-written in it is removed.
    """
    temporary = temporary_in(folder)
    target = temporary_in(folder)
    with writing(folder, 1), discarded(temporary), discarded(target):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        write_through(temporary, b"x")
        os.replace(temporary, target)
        target.unlink()
        sync_folder(folder)


def json_bytes(content: Any) -> bytes:
    """What ``write_json`` writes."""
    return (json.dumps(content, indent=1) + "\n").encode()


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """What ``write_tensors`` writes."""
    from safetensors.torch import save  # imports torch, which no command needs that only looks at a run

    data = save(save_ready(tensors), dict(metadata) or None)
    if len(metadata) < 2:
        return data
    # safetensors writes the metadata in an order that changes from process to process.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def save_ready(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: on the CPU, contiguous, none sharing memory with another."""
    ready: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        ready[key] = value
    return ready


def write_through(path: Path, data: bytes | memoryview) -> str:
    """Create ``path``, flush it to the disk and read it back; return its sha256."""
    sha256 = hashlib.sha256(data).hexdigest()
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that the disk is read, not the cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if sha256_file(path) != sha256:
        raise OSError(errno.EIO, "what was read back is not what was written")
    return sha256


def rename_new(folder: Path, place: Path) -> bool:
    """Put a folder in its place for good; False when one is there already, which stays as it is."""
    try:
        os.rename(folder, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    sync_folder(place.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network ones cannot sync a folder at all
            raise
    finally:
        os.close(descriptor)


def check_room(folder: Path, size: int) -> None:
    if size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def writing(path: Path, size: int = 0, state: str = "what was there before is unchanged") -> Iterator[None]:
    """Turn what the system refuses into an OutputError that says how much room ``size`` bytes need."""
    try:
        yield
    except OSError as error:
        text = f"{path}: cannot be written: {error.strerror or error}"
        if error.errno in FULL:
            text += f" ({_mib(size, math.ceil)} MiB needed, {_mib(_free(path), math.floor)} MiB free)"
        remedy = "make room, or choose another folder" if error.errno in FULL else "choose a folder that can be written"
        raise OutputError(f"{text}; {state}; {remedy}") from error


def _mib(size: float, rounded: Callable[[float], int]) -> str:
    return f"{rounded(size / 2**20 * 10) / 10:.1f}"


def _free(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def sha256_file(path: Path) -> str:
    """Hash a file without holding it in memory (64 hex digits)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
