"""kdzoo: a plugin-based zoo of knowledge-distillation algorithms.

``kdzoo.run`` runs a recipe, ``kdzoo.load`` opens a finished run, ``kdzoo.recipe`` makes a recipe, ``kdzoo.study``
compares many runs, and ``kdzoo.losses`` has the losses of all algorithms. Each is imported when it is first used, so
``import kdzoo`` imports neither torch nor any plugin.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdzoo.version import __version__

if TYPE_CHECKING:
    from kdzoo import losses
    from kdzoo.errors import KdzooError
    from kdzoo.python.recipes import Recipe, recipe
    from kdzoo.python.runs import Run, load, run
    from kdzoo.python.studies import Study, study

#: Where each name is defined.
_HOME = {
    "KdzooError": "kdzoo.errors",
    "Recipe": "kdzoo.python.recipes",
    "Run": "kdzoo.python.runs",
    "load": "kdzoo.python.runs",
    "recipe": "kdzoo.python.recipes",
    "run": "kdzoo.python.runs",
    "Study": "kdzoo.python.studies",
    "study": "kdzoo.python.studies",
}

__all__ = ["KdzooError", "Recipe", "Run", "Study", "__version__", "load", "losses", "recipe", "run", "study"]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("kdzoo.losses")
    if name not in _HOME:
        raise AttributeError(f"module 'kdzoo' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """``recipe``, ``run`` and ``study`` are packages below this one too. Importing one leaves the function in place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
