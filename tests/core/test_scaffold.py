"""Scaffolds run as they are, are refused under names that would not, and never replace a file."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import kdzoo
from kdzoo.api import Needs
from kdzoo.errors import OutputError, RecipeError, UnknownName
from kdzoo.plan.resolve import resolve
from kdzoo.recipe.bundled import recipes_root
from kdzoo.recipe.reading import LoadedRecipe, load_recipe
from kdzoo.testing import checks
from kdzoo.testing.scaffold import write_algorithm, write_recipe
from kdzoo.zoo import catalogue as catalogues
from kdzoo.zoo.loading import load_zoo

ROOT = Path(kdzoo.__file__).resolve().parent.parent
RECIPES = recipes_root()


def refusal(error: type[Exception], act: Any) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


# --- a recipe -------------------------------------------------------------------------------------


def written(name: str, algorithm: str, where: Path, bundled: Path = RECIPES) -> LoadedRecipe:
    path = write_recipe(name, algorithm, where, bundled)
    assert path == where / f"{name}.yaml"
    assert f"Run: kdzoo run {name}.yaml" in path.read_text()
    loaded = load_recipe(path)
    resolve(loaded, load_zoo())
    return loaded


def test_a_recipe_is_the_quickstart_under_a_new_name(tmp_path: Path) -> None:
    recipe = written("mine", "", tmp_path).recipe
    quickstart = load_recipe(RECIPES / "quickstart.yaml").recipe
    assert recipe == quickstart.model_copy(update={"name": "mine", "expected": None})
    assert "expected" not in (tmp_path / "mine.yaml").read_text()


@pytest.mark.parametrize("name", sorted(load_zoo().algorithms))
def test_a_recipe_for_each_algorithm_resolves_with_a_bundled_one_and_without(name: str, tmp_path: Path) -> None:
    for bundled in (RECIPES, tmp_path / "nothing"):
        place = tmp_path / bundled.name
        place.mkdir()
        recipe = written("mine", name, place, bundled).recipe
        assert (recipe.name, recipe.algorithm.name) == ("mine", name)


def test_a_recipe_names_as_many_models_as_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needy = type("Needy", (load_zoo().algorithm("kd"),), {"name": "needy"})
    needy.needs = Needs(teachers=(2, None), assistants=1, peers=(1, 3))
    monkeypatch.setattr(catalogues, "catalogue", lambda: crowded)
    crowded = load_zoo().with_algorithm(needy)
    path = write_recipe("mine", "needy", tmp_path, tmp_path / "nothing")
    models = resolve(load_recipe(path), crowded).recipe.models
    assert [len(group) for group in (models.all_teachers, models.assistants, models.peers)] == [2, 1, 1]


@pytest.mark.parametrize("name", ["1", "1e3", "null", "true", "12_3", "0x1", "2020-01-01", "no", "a.b-c_d", "9" * 64])
def test_a_name_stays_text_whatever_yaml_might_take_it_for(name: str, tmp_path: Path) -> None:
    assert written(name, "", tmp_path).recipe.name == name


def test_a_name_with_the_ending_of_a_recipe_gets_no_second_one(tmp_path: Path) -> None:
    path = write_recipe("mine.yaml", "", tmp_path, RECIPES)
    assert (path.name, load_recipe(path).recipe.name) == ("mine.yaml", "mine")


@pytest.mark.parametrize("name", ["", "Mine", "a/b", "..", "-a", "a b", "a" * 65, "ä"])
def test_a_name_that_no_recipe_may_have_is_refused(name: str, tmp_path: Path) -> None:
    assert refusal(RecipeError, lambda: write_recipe(name, "", tmp_path, RECIPES)) == (
        f"new recipe: '{name}' cannot name a recipe; use lower-case letters, digits, '_', '.', '-'"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_for_an_unknown_algorithm_is_refused(tmp_path: Path) -> None:
    text = refusal(UnknownName, lambda: write_recipe("mine", "kdd", tmp_path, RECIPES))
    assert text.startswith("unknown algorithm 'kdd'; did you mean ")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    assert refusal(OutputError, lambda: write_recipe("mine", "", tmp_path, RECIPES)) == (
        f"{tmp_path / 'mine.yaml'}: exists already; nothing was written"
    )
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = refusal(OutputError, lambda: write_recipe("mine", "", tmp_path / "absent", RECIPES))
    assert text.startswith(f"{tmp_path / 'absent' / 'mine.yaml'}: cannot be written: No such file or directory")


# --- an algorithm ---------------------------------------------------------------------------------


def test_an_algorithm_comes_as_a_package_with_a_test_and_a_recipe(tmp_path: Path) -> None:
    files = write_algorithm("soft_match", tmp_path)
    root = tmp_path / "kdzoo-soft-match"
    assert files == [
        root / "pyproject.toml",
        root / "kdzoo_soft_match" / "__init__.py",
        root / "tests" / "test_soft_match.py",
        root / "soft_match.yaml",
    ]
    assert sorted(path for path in root.rglob("*") if path.is_file()) == sorted(files)
    project = tomllib.loads(files[0].read_text())
    assert project["project"]["name"] == "kdzoo-soft-match"
    assert project["project"]["entry-points"]["kdzoo"] == {"soft_match": "kdzoo_soft_match"}


def test_the_scaffold_s_recipe_resolves_with_its_algorithm(tmp_path: Path) -> None:
    _, module, _, recipe = write_algorithm("soft_match", tmp_path)
    spec = importlib.util.spec_from_file_location("kdzoo_soft_match", module)
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    plan = resolve(load_recipe(recipe), load_zoo().with_algorithm(package.SoftMatch))
    assert plan.algorithm.cls is package.SoftMatch


@pytest.mark.costly(20)
def test_the_scaffold_is_clean_and_passes_its_own_tests(tmp_path: Path) -> None:
    package = write_algorithm("soft_match", tmp_path)[0].parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (package, ROOT, ROOT / "plugins"))),
        "OMP_NUM_THREADS": "1",
        "KDZOO_PLUGINS": "none",
    }

    def ran(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=package, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    rules = str(ROOT / "pyproject.toml")
    ran("ruff", "check", "--config", rules, "--no-cache", ".")
    ran("ruff", "format", "--config", rules, "--no-cache", "--check", ".")
    # All of its checks pass too: tests/end_to_end/test_third_party_plugin.py has kdzoo test-plugin run them.
    told = ran("pytest", "-q", "-p", "no:cacheprovider", "-k", "by_hand or terms", "tests")
    assert f"3 passed, {1 + len(checks.ALL) - 3} deselected" in told


@pytest.mark.parametrize("name", ["", "Soft", "soft-match", "1st", "_a", "a_", "a__b", "a" * 41, "ä"])
def test_an_algorithm_s_name_is_lower_snake_case(name: str, tmp_path: Path) -> None:
    assert refusal(RecipeError, lambda: write_algorithm(name, tmp_path)) == (
        f"new algorithm: '{name}' is not lower snake case, e.g. 'my_method'"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "true", "paper", "algorithm", "step_context", "field", "tensor", "task"])
def test_a_name_that_would_shadow_what_the_scaffold_uses_is_refused(name: str, tmp_path: Path) -> None:
    assert refusal(RecipeError, lambda: write_algorithm(name, tmp_path)) == (
        f"new algorithm: '{name}' is a name that the scaffold itself uses; choose another"
    )


@pytest.mark.parametrize("name", ["kd", "vision"])
def test_a_name_that_is_installed_already_is_refused(name: str, tmp_path: Path) -> None:
    assert refusal(RecipeError, lambda: write_algorithm(name, tmp_path)) == (
        f"new algorithm: '{name}' is taken by an installed algorithm or plugin; choose another"
    )


@pytest.mark.parametrize("name", ["options", "losses", "x1", "hookimpl"])
def test_words_of_the_scaffold_make_working_modules(name: str, tmp_path: Path) -> None:
    module = write_algorithm(name, tmp_path)[1]
    content: dict[str, Any] = {"__name__": "scaffold"}
    exec(compile(module.read_text(), module, "exec"), content)
    registered: list[type] = []
    content["register_algorithms"](registered.append)
    assert [cls.name for cls in registered] == [name]


@pytest.mark.parametrize("name", ["class", "lambda", "import", "match"])
def test_a_word_of_python_s_own_is_refused(name: str, tmp_path: Path) -> None:
    assert refusal(RecipeError, lambda: write_algorithm(name, tmp_path)) == (
        f"new algorithm: '{name}' is a word of Python's own; choose another"
    )


@pytest.mark.parametrize("name", ["json", "torch", "pytest", "kdzoo"])
def test_the_name_of_an_installed_module_is_refused(name: str, tmp_path: Path) -> None:
    assert refusal(RecipeError, lambda: write_algorithm(name, tmp_path)) == (
        f"new algorithm: '{name}' is the name of an installed Python module; choose another"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_algorithm_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    precious = tmp_path / "kdzoo-mine" / "mine.yaml"
    precious.parent.mkdir()
    precious.write_text("precious")
    assert refusal(OutputError, lambda: write_algorithm("mine", tmp_path)) == (
        f"{precious}: exists already; nothing was written"
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [precious]
    assert precious.read_text() == "precious"
