"""The wheel, built and installed without a network, holds all that is needed and nothing else, and works anywhere."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import kdzoo

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLUGINS = sorted(path.name for path in (ROOT / "plugins").glob("kdzoo_*") if (path / "__init__.py").is_file())
DIST_INFO = f"kdzoo-{kdzoo.__version__}.dist-info"

#: What may lie in a package: code, cards, recipes, the report's templates, the digits and their licence.
SUFFIXES = {".py", ".md", ".yaml", ".css", ".j2", ".js", ".npz", ".txt"}
#: What the report is written from.
TEMPLATES = [f"kdzoo/report/templates/{name}" for name in ("report.html.j2", "README.md.j2", "report.css")]


def ran(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, its tests and whatever else lies about included."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("kdzoo", "plugins", "recipes", "tests/core", "docs/decisions"):
        shutil.copytree(ROOT / folder, copy / folder)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    (copy / "runs").mkdir()
    (copy / "runs" / "left_over.py").touch()
    ran(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", copy / "built", copy, cwd=copy)
    (built,) = (copy / "built").iterdir()
    return built


def test_it_is_named_after_the_version_and_runs_everywhere(wheel: Path) -> None:
    assert wheel.name == f"kdzoo-{kdzoo.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 1_000_000


def below(folder: Path, name: str) -> set[str]:
    """Files of a folder as they are called under another name."""
    found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {f"{name}/{path.relative_to(folder).as_posix()}" for path in found}


def test_it_holds_the_packages_the_recipes_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {f"{DIST_INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    expected = below(ROOT / "kdzoo", "kdzoo") | below(ROOT / "recipes", "kdzoo/recipes") | about
    for plugin in PLUGINS:
        expected |= below(ROOT / "plugins" / plugin, plugin)
    assert names == expected
    assert {Path(name).suffix for name in names - about} <= SUFFIXES
    assert not [name for name in names if "test_" in Path(name).name]
    for needed in (*TEMPLATES, "kdzoo_vision/digits.npz", "kdzoo/recipes/quickstart.yaml"):
        assert needed in names


def test_every_plugin_is_packed_and_has_an_entry_point(wheel: Path) -> None:
    entry_points = zipfile.ZipFile(wheel).read(f"{DIST_INFO}/entry_points.txt").decode().splitlines()
    listed = entry_points[entry_points.index("[kdzoo]") + 1 :]
    assert sorted(filter(None, listed)) == [f"{name.removeprefix('kdzoo_')} = {name}" for name in PLUGINS]
    assert PLUGINS, "the plugins were not found"
    assert "kdzoo = kdzoo.cli:main" in entry_points


def test_its_metadata_are_those_of_the_project(wheel: Path) -> None:
    told = email.message_from_string(zipfile.ZipFile(wheel).read(f"{DIST_INFO}/METADATA").decode())
    assert (told["Name"], told["Version"]) == ("kdzoo", kdzoo.__version__)
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == PROJECT["requires-python"]
    required = [line for line in told.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert sorted(line.replace(" ", "") for line in required) == sorted(PROJECT["dependencies"])
    assert (ROOT / "README.md").read_text().strip() == str(told.get_payload()).strip()
    assert len(str(told.get_payload())) > 1000


@dataclass
class Installed:
    """The wheel in a folder of its own, and an empty folder to run it from."""

    site: Path
    place: Path

    def __call__(self, *arguments: str) -> str:
        return ran(self.site / "bin" / "kdzoo", *arguments, cwd=self.place, PYTHONPATH=str(self.site), KDZOO_PLUGINS="")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    site, place = (tmp_path_factory.mktemp(name) for name in ("site", "empty"))
    pip: tuple[str | Path, ...] = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    ran(*pip, "--target", site, wheel, cwd=place)
    return Installed(site, place)


def test_it_runs_its_own_files_and_loads_every_plugin(installed: Installed) -> None:
    script = (
        "import json, kdzoo, kdzoo_vision; from kdzoo.zoo.loading import load_zoo; z = load_zoo(); "
        "statuses = [plugin.status for plugin in z.plugins]; "
        "print(json.dumps([kdzoo.__file__, kdzoo_vision.__file__, statuses, sorted(z.algorithms)]))"
    )
    told = ran(sys.executable, "-c", script, cwd=installed.place, PYTHONPATH=str(installed.site))
    core, plugin, statuses, algorithms = json.loads(told)
    assert Path(core).is_relative_to(installed.site)
    assert Path(plugin).is_relative_to(installed.site)
    assert statuses == ["ok"] * len(PLUGINS)
    cards = {path.stem for path in (ROOT / "recipes" / "digits").glob("*.yaml")}
    assert set(algorithms) == cards


@pytest.mark.costly(20)
def test_it_lists_algorithms_and_finds_its_recipes(installed: Installed) -> None:
    assert any(line.startswith("kd ") for line in installed("list").splitlines())
    rows = json.loads(installed("list", "recipes", "--json"))
    assert {f"recipes/{row['name']}" for row in rows} == {
        name for name in below(ROOT / "recipes", "recipes") if not name.startswith("recipes/studies/")
    }
    assert all(Path(row["path"]).is_relative_to(installed.site) for row in rows)


@pytest.mark.costly(20)
def test_a_new_recipe_is_written_and_checked_anywhere(installed: Installed) -> None:
    assert installed("new", "recipe", "mine") == "mine.yaml\n"
    assert [path.name for path in installed.place.iterdir()] == ["mine.yaml"]
    told = installed("check", "mine.yaml")
    assert told.startswith("data      digits: 10 classes, train 900, validation 100")
    assert "forward   task " in told
