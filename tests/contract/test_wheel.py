"""What a user of the built wheel has: the command, the plugins, the recipes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "kdzoo"
    ignored = shutil.ignore_patterns(".*", "runs", "data", "site", "dist", "tests", "docs", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_all_that_a_run_reads_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("kdzoo/report.css", "kdzoo/recipes/quickstart.yaml", "kdzoo_vision/digits.npz"):
        assert needed in names
    families = {path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").exists()}
    assert families <= {name.split("/")[0] for name in names}
    tops = {name.split("/")[0] for name in names}
    assert tops - families == {"kdzoo", next(top for top in tops if top.endswith(".dist-info"))}


def test_a_recipe_can_be_written_and_checked_from_the_installed_wheel(wheel, tmp_path):
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)

    def kdzoo(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        command = [sys.executable, "-m", "kdzoo", *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "quickstart.yaml" in kdzoo("list", "recipes")
    assert kdzoo("new", "recipe", "mine").strip() == "mine.yaml"
    assert "forward" in kdzoo("check", "mine.yaml")
