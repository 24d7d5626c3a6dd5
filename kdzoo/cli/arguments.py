"""Arguments and options that several commands take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from kdzoo.cli.completion import recipe_names


def possible_path(value: Any) -> Any:
    """Refuse a path that no file can have; of several, the first such one."""
    from kdzoo.errors import KdzooError, plain

    for path in value if isinstance(value, list) else [] if value is None else [value]:
        longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
        if longest > 255:
            raise KdzooError(f"{plain(str(path), 100)}: a file's name has at most 255 bytes, got {longest}")
    return value


RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        callback=possible_path,
        autocompletion=recipe_names,
        help="A recipe file, or the name of a bundled one.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", callback=possible_path, help="Where runs and the store go.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", callback=possible_path, help="A run folder.")]


def all_overrides(override: list[str] | None, device: str | None = None, seed: int | None = None) -> list[str]:
    overrides = list(override or [])
    if device is not None:
        overrides.append(f"device={device}")
    if seed is not None:
        overrides.append(f"seed={seed}")
    return overrides
