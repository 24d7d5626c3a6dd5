"""Files that survive a kill, a full disk and a flipped bit: atomic writes, checkpoints, the store of results.

A file is written to a temporary one in the same folder, flushed to the disk, read back, hashed and only then put
in its place. What is read back later is first compared with its recorded sha256, because neither safetensors nor
JSON notices a flipped bit. JSON written here may hold NaN and Infinity as Python spells them; ``json`` reads them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import kdzoo
from kdzoo.errors import CorruptError, OutputError
from kdzoo.types import stable_hash

if TYPE_CHECKING:
    from torch import Tensor

#: Raise when files of this version can no longer be read by older ones.
SCHEMA_VERSION = 1

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TEMPORARY = re.compile(r"\.kdzoo-(\w+)-(\w+)-(\w+)-(\d+)-(\d+)-\d+\.tmp")
ENTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

Files = dict[str, dict[str, Any]]  # relative name -> {"sha256": hex, "size": bytes}
Warn = Callable[[str], None]


def warn_in_python(text: str) -> None:
    """Where warnings go that nobody asked for: loud, so that none is lost."""
    warnings.warn(text, stacklevel=3)


# --- who wrote it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one of the same number by its start time and boot."""

    host: str
    boot: str  # of the kernel; empty where there is no /proc
    namespace: str  # of process numbers; containers have their own
    pid: int
    started: int  # clock ticks after boot; 0 where there is no /proc

    @staticmethod
    def me() -> Owner:
        return _owner(os.getpid())

    @property
    def tag(self) -> tuple[str, str, str, int, int]:
        """The same, short enough for a file name."""
        host, boot = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in (self.host, self.boot))
        return host, boot, self.namespace, self.pid, self.started

    def fate(self) -> Literal["alive", "dead", "hidden", "remote"]:
        """Whether the process runs; hidden: in another container of this machine; remote: on another machine."""
        return _fate(self.tag)


@functools.lru_cache(maxsize=2)
def _owner(pid: int) -> Owner:
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return Owner(socket.gethostname(), "", "0", pid, 0)
    namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    return Owner(socket.gethostname(), boot.read_text().strip(), namespace, pid, _started(pid) or 0)


def _started(pid: int) -> int | None:
    """When a process was started, in clock ticks after boot; None when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _runs(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return _started(pid) in (started, None)  # another user's, perhaps hidden from us
    return _started(pid) == started if started else True


def _fate(tag: tuple[str, str, str, int, int]) -> Literal["alive", "dead", "hidden", "remote"]:
    mine = Owner.me()
    host, boot, namespace, pid, started = tag
    if mine.boot and boot == mine.tag[1]:
        if namespace != mine.namespace:
            return "hidden"
        return "alive" if _runs(pid, started) else "dead"
    if host != mine.tag[0]:
        return "remote"
    if mine.boot:
        return "dead"  # this machine was started anew since
    return "alive" if _runs(pid, started) else "dead"


_serial = itertools.count()


def temporary_in(folder: Path) -> Path:
    """A name for a temporary file or folder that tells whose it is."""
    tag = "-".join(str(part) for part in Owner.me().tag)
    return folder / f".kdzoo-{tag}-{next(_serial)}.tmp"


def sweep(folder: Path, exclusive: bool = False) -> int:
    """Remove what dead processes left half-written; return how many. ``exclusive``: the caller owns the folder."""
    swept = 0
    if not folder.is_dir():
        return swept
    for path in list(folder.iterdir()):
        match = TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        host, boot, namespace, pid, started = match.groups()
        fate = _fate((host, boot, namespace, int(pid), int(started)))
        if fate == "dead" or (exclusive and fate != "alive"):
            discard(path)
            swept += 1
    return swept


def discard(path: Path) -> None:
    """Remove a temporary file or folder as well as it goes; what stays is swept at the next start."""
    # Another process may be sweeping too, so that parts of it may be gone already.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def discarded(temporary: Path) -> Iterator[None]:
    """A temporary file or folder is gone after this, unless it was renamed into its place."""
    try:
        yield
    finally:
        discard(temporary)


# --- writing ----------------------------------------------------------------------------------


def write_bytes(path: Path, data: bytes) -> str:
    """Replace ``path`` by ``data``, wholly or not at all; return the sha256. Raise OutputError if that fails."""
    temporary = temporary_in(path.parent)
    with writing(path, len(data)), discarded(temporary):
        _check_room(path.parent, len(data))
        sha256 = _write_through(temporary, data)
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


def write_sealed(path: Path, content: Mapping[str, Any]) -> str:
    """Replace ``path`` by JSON that carries its own hash and the version of its format."""
    return write_bytes(path, _sealed_bytes(content))


def append_line(path: Path, line: str) -> None:
    """Append one line in one write, so that a kill leaves at most the last line torn."""
    data = line.encode() + b"\n"
    with writing(path, len(data)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def probe_writable(folder: Path) -> None:
    """Create ``folder`` and write, sync and rename a file in it; raise OutputError if it cannot be done."""
    temporary = temporary_in(folder)
    target = temporary_in(folder)
    with writing(folder, 1), discarded(temporary), discarded(target):
        folder.mkdir(parents=True, exist_ok=True)
        _write_through(temporary, b"x")
        os.replace(temporary, target)
        target.unlink()
        sync_folder(folder)


def json_bytes(content: Any) -> bytes:
    """What ``write_json`` writes."""
    return (json.dumps(content, indent=1) + "\n").encode()


def _sealed_bytes(content: Mapping[str, Any]) -> bytes:
    plain = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, "kdzoo": kdzoo.__version__, **content}))
    return json_bytes({**plain, "seal": stable_hash(plain)})


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


def _write_through(path: Path, data: bytes) -> str:
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


def _check_room(folder: Path, size: int) -> None:
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


# --- reading ----------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    """Hash a file without holding it in memory (64 hex digits)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


# --- checkpoints ------------------------------------------------------------------------------


class Checkpoints:
    """The last two states of one stage of one run: ``<folder>/<sequence>/`` with tensors, state and manifest.

    One process writes at a time (the run folder's lock sees to it). The newest is the one with the highest sequence
    number in its manifest, whatever names and clocks say. ``expected``: there must be one, so that lost files are
    an error and never a fresh start.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str = "",
        *,
        warn: Warn = warn_in_python,
        expected: bool = False,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.run_id = folder, run_id
        self._warn, self._expected, self._begun = warn, expected, begun
        self._damaged: set[Path] = set()
        sweep(folder)

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> int:
        """Store a state and return its sequence number; older ones go once it has been read back.

        ``state`` may nest dicts, lists, tuples, strings, numbers, booleans and None; all of them come back as they
        were, NaN and infinities too. Raise OutputError when it cannot be written; the last good one stays.
        """
        contents = {"tensors.safetensors": tensor_bytes(tensors, {}), "state.json": json_bytes(_encode(state))}
        size = sum(len(data) for data in contents.values())
        with writing(self.folder, size):
            self.folder.mkdir(exist_ok=True)
            _check_room(self.folder, size)
            sequence = 1 + max([0, *self._numbers()])
        files = {n: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for n, data in contents.items()}
        contents["manifest.json"] = _sealed_bytes({"run_id": self.run_id, "sequence": sequence, "files": files})
        temporary, place = temporary_in(self.folder), self._place(sequence)
        with writing(place, size, "the checkpoint before it is unchanged"), discarded(temporary):
            temporary.mkdir()
            for name, data in contents.items():
                _write_through(temporary / name, data)
            sync_folder(temporary)
            os.rename(temporary, place)
            sync_folder(self.folder)
        write_sealed(self.folder / "latest.json", {"run_id": self.run_id, "sequence": sequence})
        self._begun()
        self._expected = True
        self._prune()
        return sequence

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and state of the newest checkpoint that verifies, or None if none was ever saved.

        A damaged one is passed over with a warning. Raise CorruptError, naming each damaged part, if none is left.
        """
        from safetensors.torch import load

        found, problems = self._scan()
        latest, problem = self._latest()
        if problem:
            problems.append(problem)
        known = [0, *(sequence for sequence, _, _ in found)]
        if latest not in known and not (problems and self._place(latest).exists()):
            problems.append(f"{self.folder}: checkpoint {latest} is missing")
        for sequence, place, files in found:
            try:
                contents = {name: read_recorded(place / name, files, name) for name in files}
                tensors, state = load(contents["tensors.safetensors"]), _decode(json.loads(contents["state.json"]))
            except CorruptError as error:
                problems.append(str(error))
                self._damaged.add(place)
                continue
            if problems:
                self._warn(
                    f"{self.folder}: checkpoint {sequence} is used, because others are not as saved{listed(problems)}"
                )
            return tensors, state
        if problems or self._expected:
            raise CorruptError(
                f"{self.folder}: no checkpoint can be used{listed(problems or ['all of them are gone'])}\n"
                "put the files back, or start a new run with --new"
            )
        return None

    def _scan(self) -> tuple[list[tuple[int, Path, Files]], list[str]]:
        """Checkpoints, newest first by the number in their manifests, and what is wrong with the rest."""
        found: list[tuple[int, Path, Files]] = []
        problems = []
        for place in self._places():
            try:
                manifest = read_sealed(place / "manifest.json")
                if manifest["run_id"] != self.run_id:
                    raise CorruptError(f"{place}: belongs to run '{manifest['run_id']}', not to '{self.run_id}'")
            except CorruptError as error:
                problems.append(str(error))
                self._damaged.add(place)
            else:
                found.append((manifest["sequence"], place, manifest["files"]))
        return sorted(found, key=lambda entry: entry[0], reverse=True), problems

    def _places(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and ENTRY.fullmatch(path.name))

    def _numbers(self) -> list[int]:
        """Every number in use, damaged ones too, so that none is given twice."""
        named = [int(path.name) for path in self._places() if path.name.isdecimal()]
        return [self._latest()[0], *(sequence for sequence, _, _ in self._scan()[0]), *named]

    def _latest(self) -> tuple[int, str]:
        """The newest number that was saved, 0 for none, and what is wrong with the note of it."""
        path = self.folder / "latest.json"
        try:
            return (read_sealed(path)["sequence"], "") if path.exists() else (0, "")
        except CorruptError as error:
            return 0, str(error)

    def _place(self, sequence: int) -> Path:
        return self.folder / f"{sequence:08d}"

    def _prune(self) -> None:
        keep = [place for _, place, _ in self._scan()[0] if place not in self._damaged][:2]
        for place in self._places():
            if place not in keep:
                # Renamed first, so that one half removed is never taken for a damaged one.
                temporary = temporary_in(self.folder)
                with writing(place, 0, "older checkpoints could not be removed"):
                    os.rename(place, temporary)
                discard(temporary)
        self._damaged.clear()


def listed(problems: list[str]) -> str:
    """Lines of an error, indented below its first."""
    return "".join(f"\n  {problem}" for problem in problems)


def _encode(value: Any) -> Any:
    """Make JSON that tells tuples from lists and numbers from text in keys."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _encode(item) for key, item in value.items()}
        return {"__pairs__": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tuple__" in value:
        return tuple(_decode(item) for item in value["__tuple__"])
    if "__pairs__" in value:
        return {_decode(key): _decode(item) for key, item in value["__pairs__"]}
    return {key: _decode(item) for key, item in value.items()}


# --- results, by what they were made from -----------------------------------------------------


class Store:
    """Results under the hash of all that determines them: ``<root>/<kind>/<key>/``, written once, then only read.

    Several processes may publish one key at a time, on several machines: each writes a folder of its own and
    renames it into place; one wins, the others take its result. No lock is involved.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def find(self, kind: str, key: str) -> Path | None:
        """Return the folder of a result after checking each of its files, or None; raise CorruptError if damaged."""
        place = self._place(kind, key)
        if not place.exists():
            return None
        try:
            manifest = read_sealed(place / "manifest.json")
            if (manifest["kind"], manifest["key"]) != (kind, key):
                raise CorruptError(f"{place}: holds {manifest['kind']} {manifest['key']}")
            problems = differences(place, manifest["files"])
        except CorruptError as error:
            problems = [str(error)]
        if problems:
            raise CorruptError(f"stored {kind}: damaged{listed(problems)}\ndelete {place} and run again")
        return place

    def publish(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill an empty folder and store it under ``key``; return its place.

        When another process was first, its result is returned and ours dropped.
        """
        place = self._place(kind, key)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            sweep(place.parent)
            temporary = temporary_in(place.parent)
            temporary.mkdir()
        with discarded(temporary):
            write(temporary)
            with writing(place):
                files = record_files(temporary)
            write_sealed(temporary / "manifest.json", {"kind": kind, "key": key, "files": files})
            with writing(place):
                for folder in (path for path in temporary.rglob("*") if path.is_dir()):
                    sync_folder(folder)
                rename_new(temporary, place)
        found = self.find(kind, key)
        assert found is not None
        return found

    def _place(self, kind: str, key: str) -> Path:
        for name in (kind, key):
            if not ENTRY.fullmatch(name):
                raise ValueError(f"a kind or key of the store must be a plain name, got {name!r}")
        return self.root / kind / key
