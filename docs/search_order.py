"""A hook of the build: decisions and recipes are many, and a search that finds one usually wants another page."""

from __future__ import annotations

from typing import Any

LESS_FOUND = ("decisions/", "recipes/")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> None:
    """Lower the weight of such a page in the search; its text stays as it is."""
    if page.file.src_uri.startswith(LESS_FOUND):
        page.meta["search"] = {"boost": 0.2}
