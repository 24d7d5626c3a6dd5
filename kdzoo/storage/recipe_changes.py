"""Which fields of two recipes differ, for the error that refuses to resume a run with another recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdzoo.errors import ResumeError, plain, shown
from kdzoo.storage.sealed import listed


def check_same_recipe(root: Path, record: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Raise ResumeError with the fields that differ, where a run's ``record`` is not of this ``recipe``.

    What is exported may differ: files are made after all training, from stages that do not depend on them.
    """
    if record["recipe_hash"] == recipe["recipe_hash"] or differs_in_exports_alone(record, recipe):
        return
    before, after = _but_exports(record), _but_exports(recipe)
    differing = diff_fields(before, after) or ["no field, but kdzoo's format of recipes"]
    raise ResumeError(
        f"{root}: begun with another recipe, so it cannot be resumed{listed(differing)}\n"
        "undo the change, or start a new run with --new"
    )


def differs_in_exports_alone(record: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether two recipes, each below "recipe", are the same but for what is exported."""
    return record["recipe"] != recipe["recipe"] and _but_exports(record) == _but_exports(recipe)


def _but_exports(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record["recipe"], "export": None}


def diff_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line a field that differs, e.g. ``train.optimizer.lr 0.1 -> 0.2``."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    for empty, other in ((before, after), (after, before)):  # where one side has nothing, the other's leaves say it all
        for path in [
            path for path, value in empty.items() if not value and any(p.startswith(f"{path}.") for p in other)
        ]:
            del empty[path]
    return [
        f"{plain(path, 200)} {_side(before, path)} -> {_side(after, path)}"
        for path in dict.fromkeys([*before, *after])
        if path not in before or path not in after or before[path] != after[path]
    ]


def _side(leaves: Mapping[str, Any], path: str) -> str:
    return shown(leaves[path]) if path in leaves else "(absent)"


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    pairs = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    if not pairs:
        yield path, data
    for key, value in pairs:
        yield from _leaves(value, f"{path}.{key}".lstrip("."))
