"""The key of a stage: the hash of everything that decides its bits."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

import kdzoo
from kdzoo.models.network import registering_module

#: Raise when stored stages of older versions must not be reused.
STAGE_FORMAT = 1

#: What of the core decides no bit of a result: how it is told, how it is tested, and the command line.
INDECISIVE = ("report", "study", "testing", "checks.py", "cli.py", "__main__.py", "recipes")


def source_hash(cls: type) -> str:
    """Hash of all that an algorithm may be written in: the packages of its class and bases, up to the contract."""
    ours = [base for base in cls.__mro__ if base.__module__.split(".")[0] not in ("torch", "builtins", "kdzoo")]
    return _packages_hash(Path(inspect.getsourcefile(base) or "") for base in ours)


def model_hash(name: str) -> str | None:
    """The same of a plugin's model; None for timm's own, which the environment holds."""
    module = registering_module(name)
    return None if module is None else _packages_hash([Path(inspect.getsourcefile(sys.modules[module]) or "")])


def _packages_hash(sources: Iterable[Path]) -> str:
    files: set[Path] = set()
    for source in sources:
        package = (source.parent / "__init__.py").exists()
        files |= set(source.parent.rglob("*.py")) if package else {source}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files) if path.is_file())).hexdigest()


def core_hash() -> str:
    """Hash the source of the whole core but for what decides no bit of a result."""
    root = Path(kdzoo.__file__).parent
    files = [path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] not in INDECISIVE]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
