"""The key of a stage: the hash of everything that decides its bits."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdzoo import version
from kdzoo.errors import KdzooError, PluginError
from kdzoo.models.network import registering_module

#: Raise when stored stages of older versions must not be reused.
STAGE_FORMAT = 1

#: What of the core decides no bit of a result: report, tests and command line.
INDECISIVE = (
    *("processes", "report", "study", "testing", "checks", "terminal", "cli", "python", "losses"),
    *("__main__", "recipes"),
)


def source_hash(cls: type) -> str:
    """Hash the source of an algorithm: the whole packages of its class and its bases, up to the contract.

    Raises PluginError where there is no source file.
    """
    known = {"torch", "kdzoo", *sys.stdlib_module_names}
    ours = [base for base in cls.__mro__ if base.__module__.split(".")[0] not in known]
    return _packages_hash({f"class {base.__module__}.{base.__qualname__}": base for base in ours})


def model_hash(name: str) -> str | None:
    """Hash the source of a plugin's model; None for timm's own, as the environment holds timm's version."""
    module = registering_module(name)
    return None if module is None else _packages_hash({f"module {module}": sys.modules[module]})


def core_hash() -> str:
    """Hash the source of the core without what decides no bit of a result.

    It is read once in a process: what runs is what was imported, and not what an edit, an update or a change of branch
    makes of the files while a run goes on. Raises KdzooError where the source of a module that runs is missing: a key
    that leaves it out would be wrong.
    """
    return core_hash_of(Path(version.__file__).parent)


@functools.cache
def core_hash_of(root: Path) -> str:
    """Hash the source of the core that is in a folder; see ``core_hash``."""
    sources = {_module_name(path, root): path for path in root.rglob("*.py")}
    sources = {name: path for name, path in sources.items() if name.split(".")[0] not in INDECISIVE}
    running = {name.partition(".")[2] for name in sys.modules if name.split(".")[0] == "kdzoo"}
    missing = sorted(name for name in running - sources.keys() if name.split(".")[0] not in INDECISIVE)
    if missing:
        raise KdzooError(
            f"{root}: the source of {', '.join(f'kdzoo.{name}'.rstrip('.') for name in missing[:3])} is missing, and "
            "results are stored under the hash of the source; install kdzoo as plain files, and leave them alone "
            "during a run"
        )
    return _hash(sources)


def _packages_hash(objects: Mapping[str, Any]) -> str:
    """Hash every file of the topmost packages in which objects are written; of a single module, that module."""
    files: dict[str, Path] = {}
    for title, written in objects.items():
        source = _source(title, written)
        top = source.parent
        while (top.parent / "__init__.py").exists():
            top = top.parent
        inside = top.rglob("*.py") if (top / "__init__.py").exists() else [source]
        files |= {_module_name(path, top.parent): path for path in inside}
    return _hash(files)


def _source(title: str, written: Any) -> Path:
    try:
        source = inspect.getsourcefile(written)
    except TypeError:  # built in, or made while the program runs
        source = None
    if source is None or not Path(source).is_file():
        raise PluginError(
            f"{title}: has no source file, and results are stored under the hash of the source; install the plugin as "
            "plain files"
        )
    return Path(source)


def _module_name(path: Path, root: Path) -> str:
    """The dotted name of a file below ``root``; of a package that of its folder."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def _hash(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
