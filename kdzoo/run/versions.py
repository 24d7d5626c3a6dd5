"""What a task was made with: versions and code that have to be the same where it is done."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping
from importlib.metadata import version

import torch

from kdzoo.errors import ExecutorError
from kdzoo.run.keys import core_hash
from kdzoo.version import __version__
from kdzoo.zoo.offered import Zoo


def versions(zoo: Zoo) -> dict[str, str]:
    """Return versions by name: kdzoo with a hash of its source, Python, torch, timm, and what offers plugins."""
    plugins = {plugin.distribution: plugin.version for plugin in zoo.plugins if plugin.status == "ok"}
    return {
        "kdzoo": __version__,
        "kdzoo's source": core_hash()[:12],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        **{f"plugin {name}": number for name, number in sorted(plugins.items()) if name != "kdzoo"},
    }


def check_versions(theirs: Mapping[str, str], zoo: Zoo) -> None:
    """Raise ExecutorError in a worker that has other versions than ``theirs``, of the process that made the task."""
    mine = versions(zoo)
    different = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
    if different:
        pairs = [f"{name} {mine.get(name, 'missing')} instead of {theirs.get(name, 'none')}" for name in different]
        raise ExecutorError(
            f"the worker on {socket.gethostname()} has {', '.join(pairs)}; install the same versions on every machine"
        )


def differing(theirs: Mapping[str, object], mine: Mapping[str, object]) -> str:
    """Say in which of their entries two environments differ."""
    pairs = [
        f"{name} {mine.get(name)!r} instead of {theirs.get(name)!r}"
        for name in {**theirs, **mine}
        if theirs.get(name) != mine.get(name)
    ]
    return ", ".join(pairs)
