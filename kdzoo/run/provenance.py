"""What it takes to repeat a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import kdzoo


def commit_of_source() -> str | None:
    """The commit of the checkout this package runs from, marked when it has changes; None when installed."""
    root = Path(kdzoo.__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit or None
