"""What it takes to repeat a run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from kdzoo import version
from kdzoo.recipe.reading import recipe_hash
from kdzoo.run.builder import Builder


def provenance(build: Builder) -> dict[str, Any]:
    """Return versions, hardware, plugins, data, seed and commit."""
    recipe, data = build.recipe, build.data
    return {
        "environment": build.environment,
        "plugins": build.plan.provenance,
        "recipe_hash": recipe_hash(recipe),
        "seed": recipe.seed,
        "commit": commit_of_source(),
        "processes": build.ranks.world,
        "data": {
            "name": recipe.data.name,
            "fingerprint": data.fingerprint,
            "splits": data.split_sizes,
            "classes": list(data.classes),
            "source": data.source,
            "licence": data.licence,
            "preprocessing": None if data.preprocessing is None else data.preprocessing.record(),
        },
    }


def commit_of_source() -> str | None:
    """The commit of the checkout this package runs from, marked when it has changes; None when installed."""
    root = Path(version.__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit or None
