"""The examples and notebooks of the documentation run, and are under version control as they are written."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(DOCS))

from notebook_pages import executed, markdown, read  # noqa: E402


@pytest.mark.costly(15)
def test_the_training_loop_of_ones_own_distils(capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("own_loop", DOCS / "examples" / "own_loop.py")
    own_loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own_loop)
    with torch.random.fork_rng():
        own_loop.main()
    printed = re.findall(r"(?m)^(.+?) +([0-9.]+) %$", capsys.readouterr().out)
    reached = {name: float(percent) for name, percent in printed}
    assert list(reached) == ["teacher", "student alone", "student distilled"]
    assert reached["teacher"] > 95
    assert min(reached.values()) > 85


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


#: A study starts processes and trains several students.
LONG = ("compare",)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else pytest.mark.costly(30), id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_and_its_page_shows_what_it_says(path):
    page = markdown(executed(path), path.name)
    assert page.startswith("# ")
    outputs = re.findall(r'(?s)<div class="notebook-output">\n(.*?)\n\n', page)
    assert any("<table" in output for output in outputs), "no table is shown"
    assert "\x1b" not in page, "progress has a terminal's codes"
    assert "Traceback" not in page
