"""What the shell completes: recipes, studies, names of offered things, kinds. Neither torch nor a plugin is imported.

Where a function returns nothing, the shell completes names of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

#: What `kdzoo list` lists.
KINDS = ("algorithms", "models", "datasets", "exporters", "quantizers", "trackers", "executors", "recipes")


def recipe_names(incomplete: str) -> list[str]:
    """Names of bundled recipes, and recipe files in the folder that is being typed."""
    from kdzoo.recipe.bundled import bundled_recipes, recipes_root

    names = [str(path.relative_to(recipes_root()).with_suffix("")) for path in bundled_recipes()]
    return [name for name in (*yaml_files(incomplete), *names) if name.startswith(incomplete)]


def study_names(incomplete: str) -> list[str]:
    """As ``recipe_names``, with the bundled studies in place of the recipes."""
    from kdzoo.recipe.bundled import STUDIES, recipes_root

    names = sorted(f"{STUDIES}/{path.stem}" for path in (recipes_root() / STUDIES).glob("*.yaml"))
    return [name for name in (*yaml_files(incomplete), *names) if name.startswith(incomplete)]


def recipe_or_offered_names(incomplete: str) -> list[str]:
    """As ``recipe_names``, and the names of everything that the plugins offer, once the catalogue was made."""
    from kdzoo.zoo.catalogue import remembered

    zoo = remembered()
    names = sorted({name for _, name in zoo.offers()}) if zoo is not None else []
    return [*recipe_names(incomplete), *(name for name in names if name.startswith(incomplete))]


def kinds(incomplete: str) -> list[str]:
    """What `kdzoo list` lists."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def yaml_files(incomplete: str) -> Iterator[str]:
    """Yield the recipe files in the folder of a path that is being typed, as it would be typed."""
    folder, _, _ = incomplete.rpartition("/")
    place = Path(f"{folder}/" if incomplete.startswith("/") else folder or ".")
    if place.is_dir():
        for path in sorted(place.glob("*.y*ml")):
            yield f"{folder}/{path.name}" if "/" in incomplete else path.name
