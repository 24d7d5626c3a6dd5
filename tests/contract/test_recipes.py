"""Every shipped recipe is valid, is what its comment says, and really runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdzoo.cli import _run
from kdzoo.recipe import load_recipe
from kdzoo.resolve import resolve
from kdzoo.zoo import load_zoo

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SHORT = ["train.epochs=1", "train.steps_per_epoch=2", "control=false", "export=[]"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes").with_suffix(""))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")  # one store, so that each teacher is trained once


def test_every_algorithm_has_a_digits_recipe():
    algorithms = load_zoo().algorithms
    assert len(algorithms) >= 11
    missing = [name for name in algorithms if not (ROOT / "recipes" / "digits" / f"{name}.yaml").is_file()]
    assert not missing


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_short_valid_and_says_how_to_run_it(path):
    text = path.read_text()
    assert 10 <= len(text.splitlines()) <= 40
    assert f"Run: kdzoo run recipes/{name_of(path)}.yaml" in text
    recipe = resolve(load_recipe(path), load_zoo()).recipe
    if recipe.expected is not None:
        assert (ROOT / "docs" / "results" / f"{recipe.name}.json").is_file(), "a result that was never measured"


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name == "digits"], ids=name_of)
def test_a_digits_recipe_runs(path, out):
    folder, results = _run(path, SHORT, out)
    assert results is not None
    assert 0 <= results["student"]["top1_percent"] <= 100
    assert json.loads((folder / "results.json").read_text())["student"] == results["student"]
    assert (folder / "report.html").stat().st_size > 10_000
