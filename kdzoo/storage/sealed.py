"""Files that are compared with their recorded sha256 before they are used.

Neither safetensors nor JSON notices a flipped bit. JSON written here may hold NaN and Infinity as Python spells
them; ``json`` reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdzoo
from kdzoo.errors import CorruptError
from kdzoo.types import stable_hash

if TYPE_CHECKING:
    from torch import Tensor
from kdzoo.storage.atomic import json_bytes, sha256_file, write_bytes
from kdzoo.storage.owner import TEMPORARY

#: Raise when files of this version can no longer be read by older ones.
SCHEMA_VERSION = 1

Files = dict[str, dict[str, Any]]  # relative name -> {"sha256": hex, "size": bytes}


def write_sealed(path: Path, content: Mapping[str, Any]) -> str:
    """Replace ``path`` by JSON that carries its own hash and the version of its format."""
    return write_bytes(path, sealed_bytes(content))


def sealed_bytes(content: Mapping[str, Any]) -> bytes:
    plain = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, "kdzoo": kdzoo.__version__, **content}))
    return json_bytes({**plain, "seal": stable_hash(plain)})


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file on the CPU after comparing it with ``sha256``, or with the manifest beside it."""
    from safetensors.torch import load

    files = read_sealed(path.parent / "manifest.json")["files"] if sha256 is None else {path.name: {"sha256": sha256}}
    return load(read_recorded(path, files, path.name))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what ``write_sealed`` wrote; raise CorruptError if it is missing, damaged or of a newer kdzoo."""
    with _reading(path):
        data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise CorruptError(f"{path}: damaged: not JSON") from None
    if not isinstance(content, dict):
        raise CorruptError(f"{path}: damaged: not a JSON object")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CorruptError(
            f"{path}: made by a newer kdzoo ({content.get('kdzoo')}, format {version}); "
            f"this is {kdzoo.__version__} and reads formats up to {SCHEMA_VERSION}: update kdzoo"
        )
    if content.pop("seal", None) != stable_hash(content):
        raise CorruptError(f"{path}: damaged: its content does not match its seal")
    return content


def differences(folder: Path, files: Files) -> list[str]:
    """One line for each of ``files`` below ``folder`` that is missing or not as recorded."""
    problems = []
    for name, record in files.items():
        path = folder / name
        try:
            with _reading(path):
                _check(path, record, sha256_file(path))
        except CorruptError as error:
            problems.append(str(error))
    return problems


def record_files(folder: Path, leave_out: Callable[[str], bool] = lambda name: False) -> Files:
    """Hash every file below ``folder`` and flush it to the disk; ``leave_out`` is asked with relative names."""
    files: Files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.is_symlink() or TEMPORARY.fullmatch(path.name) or leave_out(name):
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
    with _reading(path):
        data = path.read_bytes()
        _check(path, files[name], hashlib.sha256(data).hexdigest())
    return data


def _check(path: Path, record: Mapping[str, Any], sha256: str) -> None:
    size = path.stat().st_size
    if size != record.get("size", size):
        raise CorruptError(f"{path}: damaged: {size} bytes instead of {record['size']}")
    if sha256 != record["sha256"]:
        raise CorruptError(f"{path}: damaged: its sha256 is not the recorded one")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CorruptError(f"{path}: missing") from None
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read: {error.strerror or error}") from error


def listed(problems: list[str]) -> str:
    """Lines of an error, indented below its first."""
    return "".join(f"\n  {problem}" for problem in problems)
