"""Files that are compared with their recorded sha256 before they are used.

Neither safetensors nor JSON notices a flipped bit. JSON written here may hold NaN and Infinity as Python spells
them; ``json`` reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdzoo.errors import CorruptError, plain
from kdzoo.types import stable_hash
from kdzoo.version import __version__

if TYPE_CHECKING:
    from torch import Tensor
from kdzoo.storage.atomic import json_bytes, sha256_file, write_bytes
from kdzoo.storage.json_reading import JsonError, parse_object, read_file
from kdzoo.storage.owner import TEMPORARY

#: Raise when files of this version can no longer be read by older ones.
SCHEMA_VERSION = 1

Files = dict[str, dict[str, Any]]  # relative name -> {"sha256": hex, "size": bytes}


def write_sealed(
    path: Path,
    content: Mapping[str, Any],
    commit: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> str:
    """Replace ``path`` by JSON that carries its own hash and the version of its format.

    ``commit`` as in ``write_bytes``.
    """
    return write_bytes(path, sealed_bytes(content), commit)


def sealed_bytes(content: Mapping[str, Any]) -> bytes:
    plain = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, "kdzoo": __version__, **content}))
    return _with_seal(plain)


def _with_seal(content: Mapping[str, Any]) -> bytes:
    return json_bytes({**content, "seal": stable_hash(content)})


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file on the CPU after comparing it with ``sha256``, or with the manifest beside it."""
    from safetensors.torch import load

    files = read_manifest(path.parent / "manifest.json")["files"] if sha256 is None else {path.name: {"sha256": sha256}}
    return load(read_recorded(path, files, path.name))


def read_sealed(path: Path, **fields: type) -> dict[str, Any]:
    """Read what ``write_sealed`` wrote; raise CorruptError if it is missing, damaged or of a newer kdzoo.

    ``fields`` are the names and types that the content must have: a seal says nothing about which file it belongs to.
    """
    with reading(path):
        data = read_file(path)
    return unsealed(data, str(path), **fields)


def unsealed(data: bytes, path: str, **fields: type) -> dict[str, Any]:
    """What ``read_sealed`` returns, of bytes that are at hand; ``path`` says in an error where they are from."""
    try:
        content = parse_object(data)
    except JsonError as error:
        raise CorruptError(f"{path}: damaged: {error}") from None
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CorruptError(
            f"{path}: made by a newer kdzoo ({content.get('kdzoo')}, format {version}); "
            f"this is {__version__} and reads formats up to {SCHEMA_VERSION}: update kdzoo"
        )
    seal = content.pop("seal", None)
    if seal != stable_hash(content):
        raise CorruptError(f"{path}: damaged: its content does not match its seal")
    if json_bytes({**content, "seal": seal}) != data:
        raise CorruptError(f"{path}: damaged: its spaces or its spelling are not as written")
    for name, kind in fields.items():
        if not isinstance(content.get(name), kind):
            raise CorruptError(f"{path}: damaged: it has no '{name}', so it is the content of another file")
    return content


def read_manifest(path: Path, **fields: type) -> dict[str, Any]:
    """Read a sealed file that records other files under ``files``; raise CorruptError like ``read_sealed``.

    ``pending`` is what files were to become when a process that changed them was killed; None is a removed file.
    """
    with reading(path):
        data = read_file(path)
    return unsealed_manifest(data, str(path), **fields)


def unsealed_manifest(data: bytes, path: str, **fields: type) -> dict[str, Any]:
    """What ``read_manifest`` returns, of bytes that are at hand; ``path`` says in an error where they are from."""
    content = {"pending": {}} | unsealed(data, path, files=dict, **fields)
    if not isinstance(content["pending"], dict):
        raise CorruptError(f"{path}: damaged: its 'pending' is no record of files")
    removed = [name for name, record in content["pending"].items() if record is None]
    for name, record in [*content["files"].items(), *content["pending"].items()]:
        inside = "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts
        is_record = isinstance(record, dict) and isinstance(record.get("sha256"), str)
        if not inside or not (is_record or (record is None and name in removed)):
            raise CorruptError(f"{path}: damaged: its record of '{plain(name)}' is not one of a file in this folder")
    return content


def differences(folder: Path, files: Files) -> list[str]:
    """One line for each of ``files`` below ``folder`` that is missing or not as recorded."""
    problems = []
    for name, record in files.items():
        path = folder / name
        try:
            with reading(path):
                _check_size(path, record)
                _check_hash(path, record, sha256_file(path))
        except CorruptError as error:
            problems.append(str(error))
    return problems


def record_files(folder: Path, leave_out: Callable[[str], bool] = lambda name: False) -> Files:
    """Hash every file below ``folder`` and flush it to the disk; ``leave_out`` is asked with relative names."""
    files: Files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.is_symlink() or TEMPORARY.fullmatch(path.name) or leave_out(name):
            continue
        files[name] = record_file(path)
    return files


def record_file(path: Path) -> dict[str, Any]:
    """Flush a file to the disk and return its sha256 and its size in bytes."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": sha256, "size": os.fstat(file.fileno()).st_size}


def read_recorded(path: Path, files: Files, name: str) -> bytes:
    """Read a file and return it only if its record in ``files``, under ``name``, confirms it."""
    if name not in files:
        raise CorruptError(f"{path}: not in its manifest")
    with reading(path):
        _check_size(path, files[name])
        data = path.read_bytes()
    _check_hash(path, files[name], hashlib.sha256(data).hexdigest())
    return data


def _check_size(path: Path, record: Mapping[str, Any]) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CorruptError(f"{path}: damaged: it is not a regular file")
    if found.st_size != record.get("size", found.st_size):
        raise CorruptError(f"{path}: damaged: {found.st_size} bytes instead of {record['size']}")


def _check_hash(path: Path, record: Mapping[str, Any], sha256: str) -> None:
    if sha256 != record["sha256"]:
        raise CorruptError(f"{path}: damaged: its sha256 is not the recorded one")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into a CorruptError."""
    try:
        yield
    except FileNotFoundError:
        raise CorruptError(f"{path}: missing") from None
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read: {error.strerror or error}") from error


def listed(problems: list[str]) -> str:
    """Lines of an error, indented below its first."""
    return "".join(f"\n  {problem}" for problem in problems)
