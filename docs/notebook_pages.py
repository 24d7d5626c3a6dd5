"""Make a page of each notebook in docs/notebooks/. They are kept without outputs, and run for the site."""

from __future__ import annotations

import base64
import html
import re
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parent / "notebooks"

#: Seconds that one cell may take.
CELL_S = 300
#: Longer output is folded.
FOLDED_FROM = 12


def notebook_pages(execute: bool) -> dict[str, str]:
    """The page of each notebook by its path below docs/; with its outputs, if it is to be run for them."""
    pages = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = executed(path) if execute else read(path)
        pages[f"notebooks/{path.stem}.md"] = markdown(notebook, path.name)
    return pages


def read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)


def executed(path: Path) -> Any:
    """The notebook with its outputs, run in a folder of its own; raises CellExecutionError where a cell fails."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory(prefix="kdzoo-notebook-") as folder:
        client = NotebookClient(
            read(path),
            timeout=CELL_S,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        return client.execute()


def markdown(notebook: Any, file: str) -> str:
    """A notebook as Markdown: its code in fences, and what it printed or showed below."""
    title, *cells = notebook.cells
    parts = [title.source, f"[This page as a notebook]({file}); it is run each time the site is built."]
    for cell in cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += filter(None, map(_shown, cell.outputs))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _shown(output: Any) -> str:
    """What one output is on a page."""
    if output.output_type == "stream" and output.name == "stderr":
        return ""  # of libraries, about the machine that built the site
    if output.output_type == "stream":
        lines = output.text.rstrip().count("\n") + 1
        text = _text(output.text)
        return text if lines <= FOLDED_FROM else f"<details><summary>It prints {lines} lines</summary>{text}</details>"
    content = output.get("data", {})
    if "text/html" in content:
        return f'<div class="notebook-output">\n{_fragment(content["text/html"])}\n</div>'
    if "image/png" in content:
        image = "".join(content["image/png"].split())
        base64.b64decode(image, validate=True)
        return f'<img alt="What the cell drew" src="data:image/png;base64,{image}">'
    return _text(content.get("text/plain", ""))


def _text(text: str) -> str:
    return f"<pre><code>{html.escape(text.rstrip(), quote=False)}</code></pre>" if text.strip() else ""


def _fragment(text: str) -> str:
    """HTML that Markdown leaves alone: without empty lines, which would end it, and without a style of its own."""
    text = re.sub(r"(?s)<style.*?</style>", "", text)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
