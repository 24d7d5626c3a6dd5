"""Opening a recipe: its plan, and a warning about each plugin that misbehaved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdzoo.terminal import warn


def resolve(recipe: Path, overrides: list[str]) -> tuple[Any, Any, Any]:
    from kdzoo.plan.opening import open_recipe

    loaded, plan, zoo = open_recipe(recipe, overrides)
    warn_of_plugins(zoo)
    return loaded, plan, zoo


def warn_of_plugins(zoo: Any) -> None:
    for plugin in zoo.plugins:
        who = f"{plugin.name} ({plugin.distribution} {plugin.version})"
        if plugin.status == "broken":
            warn(f"warning: plugin {who} failed to load: {plugin.cause}")
        if plugin.changed:
            text = f"warning: plugin {who} changed {plugin.changed} while it was loaded; kdzoo gave that back"
            warn(text)
