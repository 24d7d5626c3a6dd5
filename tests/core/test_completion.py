"""What the shell completes, quickly and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdzoo.cli import completion
from kdzoo.cli.completion import kinds, recipe_names, recipe_or_offered_names, study_names


def test_recipes_are_bundled_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for name in ("quiet.yaml", "quick.txt", "own/mine.yml"):
        (tmp_path / name).touch()
    assert recipe_names("qui") == ["quiet.yaml", "quickstart"]
    assert "digits/kd" in recipe_names("")
    assert recipe_names("own/") == ["own/mine.yml"]
    assert recipe_names(f"{tmp_path}/o") == []
    assert recipe_names(f"{tmp_path}/qu") == [f"{tmp_path}/quiet.yaml"]
    assert all(name.startswith("studies/") for name in study_names("s"))
    assert len(study_names("studies/")) >= 1
    assert kinds("tr") == ["trackers"]


def test_names_of_offered_things_come_from_the_catalogue_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cards:
        def offers(self) -> list[tuple[str, str]]:
            return [("algorithm", "dkd"), ("tracker", "digits"), ("data set", "digits")]

    monkeypatch.setattr("kdzoo.zoo.catalogue.remembered", Cards)
    assert recipe_or_offered_names("dk") == ["dkd"]
    assert recipe_or_offered_names("digits") == [*recipe_names("digits"), "digits"]
    monkeypatch.setattr("kdzoo.zoo.catalogue.remembered", lambda: None)  # nothing is loaded for it
    assert recipe_or_offered_names("dk") == []
    assert completion.KINDS[0] == "algorithms"


def test_the_command_line_answers_a_shell_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['kdzoo']\n"
        "from kdzoo.cli import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'timm') if name in sys.modules], file=sys.stderr)"
    )
    asked = {"_KDZOO_COMPLETE": "complete_bash", "COMP_WORDS": "kdzoo run quicks", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **asked}
    )
    assert (done.stdout.split(), done.stderr.strip()) == (["quickstart"], "[]")
