"""What a thing must be before the zoo takes it up. Each check raises PluginError that says what would be right."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from kdzoo.contract.declared import Needs, Paper
from kdzoo.contract.execution import Executor
from kdzoo.contract.extension_points import DataSource, Exporter, ModelFamily, OfferOptions, Quantizer, Tracker
from kdzoo.errors import PluginError, plain, shown
from kdzoo.types import NAME

RUNGS = ("losses", "step", "stages")

#: Members of an algorithm that 0.2.0 renamed: under the old name nobody would ask for them.
RENAMED = {"exhibits": "report_items", "adopt": "load_start", "arithmetic": "quantizer"}


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise PluginError(message)


def _subclass(thing: Any, base: type) -> str:
    """Check that ``thing`` is a subclass that can be instantiated; return what to call it in errors."""
    label = plain(getattr(thing, "__qualname__", None) or repr(thing))
    proper = isinstance(thing, type) and issubclass(thing, base) and thing is not base
    _require(proper, f"{label} is no subclass of {base.__name__}")
    missing = ", ".join(sorted(getattr(thing, "__abstractmethods__", ())))
    _require(not inspect.isabstract(thing), f"{label} does not define {missing}")
    _name(label, getattr(thing, "name", None))
    return label


def _name(label: str, name: Any) -> None:
    right = "a name is 1 to 64 of a-z, 0-9, '_', '.' and '-', the first a letter or digit"
    _require(isinstance(name, str) and re.fullmatch(NAME, name), f"{label}: name is {shown(name)}; {right}")


def _options(label: str, options: Any, base: type[BaseModel]) -> None:
    proper = isinstance(options, type) and issubclass(options, base)
    _require(proper, f"{label}: Options is no subclass of {base.__name__}")
    options.model_rebuild()  # raises where an annotation cannot be resolved
    for name, field in options.model_fields.items():
        _require(field.description, f"{label}: option '{name}' has no description; give Field(description=...)")


def check_algorithm(thing: Any) -> None:
    """Check an algorithm's class: names, paper, needs, weights, options, and that it overrides a rung."""
    from kdzoo.contract.algorithm import (  # torch is behind it; listing plugins does not need it
        Algorithm,
        AlgorithmOptions,
    )

    label = _subclass(thing, Algorithm)
    for old, new in RENAMED.items():
        _require(not hasattr(thing, old), f"{label}: '{old}' is called '{new}' since kdzoo 0.2.0; rename it")
    paper, needs = getattr(thing, "paper", None), thing.needs
    _require(isinstance(paper, Paper), f"{label}: paper is {shown(paper)}; it is a Paper(title, authors, year, url)")
    _require(isinstance(needs, Needs), f"{label}: needs is {shown(needs)}; it is a Needs(...)")
    weights = thing.default_weights
    _require(isinstance(weights, Mapping), f"{label}: default_weights is {shown(weights)}; it maps terms to numbers")
    for term, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        proper = number and math.isfinite(weight) and weight >= 0
        _require(proper, f"{label}: default_weights['{term}'] is {shown(weight)}; it is a finite number, 0 or more")
    functions = thing.loss_functions
    proper = isinstance(functions, tuple) and all(map(_is_loss, functions))
    _require(proper, f"{label}: loss_functions is {shown(functions)}; it is a tuple of functions named ..._loss")
    aliases = thing.also_known_as
    proper = isinstance(aliases, tuple) and all(isinstance(alias, str) for alias in aliases)
    _require(proper, f"{label}: also_known_as is {shown(aliases)}; it is a tuple of texts")
    _options(label, thing.Options, AlgorithmOptions)
    options = ", ".join(thing.Options.model_fields) or "none"
    known = thing.delegate is None or thing.delegate in thing.Options.model_fields
    _require(known, f"{label}: delegate is {shown(thing.delegate)}; it is None or one of its options: {options}")
    overrides = any(
        inspect.getattr_static(thing, rung) is not inspect.getattr_static(Algorithm, rung) for rung in RUNGS
    )
    _require(overrides, f"{label} overrides none of {', '.join(RUNGS)}")


def _is_loss(function: Any) -> bool:
    """Whether it is a function at the top of a module, under its own name."""
    name = getattr(function, "__name__", "")
    at_top = inspect.isfunction(function) and name == function.__qualname__
    return at_top and re.fullmatch(r"[a-z]\w*_loss", name) is not None


def check_family(thing: Any) -> None:
    """Check a family of models."""
    _require(isinstance(thing, ModelFamily), f"{plain(repr(thing))} is no ModelFamily")
    _name("ModelFamily", thing.name)
    proper = isinstance(thing.models, tuple) and len(thing.models) > 0
    _require(proper, f"ModelFamily '{thing.name}': models is {shown(thing.models)}; it is a tuple of names")
    for model in thing.models:
        _name(f"ModelFamily '{thing.name}'", model)


def check_dataset(thing: Any) -> None:
    """Check a data set's class."""
    _options(_subclass(thing, DataSource), thing.Options, OfferOptions)


def check_exporter(thing: Any) -> None:
    """Check an export format's class."""
    label = _subclass(thing, Exporter)
    _options(label, thing.Options, OfferOptions)
    suffix, further = getattr(thing, "suffix", None), thing.further_suffixes
    _require(_is_suffix(suffix), f"{label}: suffix is {shown(suffix)}; it is like '.onnx'")
    proper = (
        isinstance(further, tuple) and all(map(_is_suffix, further)) and len({suffix, *further}) == 1 + len(further)
    )
    _require(proper, f"{label}: further_suffixes is {shown(further)}; it is a tuple of further ones, like ('.bin',)")


def _is_suffix(suffix: Any) -> bool:
    return isinstance(suffix, str) and re.fullmatch(r"(\.[a-z0-9_]+)+", suffix) is not None


def check_quantizer(thing: Any) -> None:
    """Check a quantizer's class."""
    _options(_subclass(thing, Quantizer), thing.Options, OfferOptions)


def check_tracker(thing: Any) -> None:
    """Check a tracker's class."""
    _options(_subclass(thing, Tracker), thing.Options, OfferOptions)


def check_executor(thing: Any) -> None:
    """Check an executor's class."""
    label = _subclass(thing, Executor)
    shares = getattr(thing, "shares_files", None)
    _require(isinstance(shares, bool), f"{label}: shares_files is {shown(shares)}; it is true or false")
