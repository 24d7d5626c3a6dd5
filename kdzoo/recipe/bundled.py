"""The recipes that come with kdzoo, found by their names."""

from __future__ import annotations

import os
from pathlib import Path

from kdzoo.errors import UnknownName, nearest, shown

#: The folder of studies among the bundled recipes.
STUDIES = "studies"


def recipes_root() -> Path:
    """Where the bundled recipes are: in the package when it is installed, next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next((p for p in (package / "recipes", package.parent / "recipes") if p.is_dir()), package / "recipes")


def bundled_recipes() -> list[Path]:
    """The files of the bundled recipes; studies, which are below recipes/studies, are none."""
    root = recipes_root()
    return sorted(path for path in root.rglob("*.yaml") if path.relative_to(root).parts[0] != STUDIES)


def find_recipe(path: Path) -> Path:
    """Return a path as given, or a bundled recipe by its path below recipes/, with or without .yaml."""
    if os.path.exists(path):
        return path
    parts = path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts
    for candidate in (recipes_root().joinpath(*parts), recipes_root().joinpath(*parts).with_suffix(".yaml")):
        if os.path.isfile(candidate):
            return candidate
    return path


def known_recipe(path: Path) -> Path:
    """As ``find_recipe``; UnknownName for a name without .yaml that is neither. Of a file, load_recipe says so."""
    found = find_recipe(path)
    if os.path.exists(found) or path.suffix in (".yaml", ".yml"):
        return found
    known = [str(each.relative_to(recipes_root()).with_suffix("")) for each in bundled_recipes()]
    here = f"digits/{path.name}"  # of recipes with one name, that which needs no data from elsewhere
    close = nearest(here if here in known else str(path), known)
    raise UnknownName(
        f"recipe {shown(str(path))}: no file and no bundled recipe{close or ';'} `kdzoo list recipes` names those"
    )
