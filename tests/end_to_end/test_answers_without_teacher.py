"""`kdzoo teacher answer`, killed and given again, and runs of the answers where the teacher is not."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import CommandLine, results, run_folder, until

VIEWS = 16
RECIPE = {
    "data": {"augment": "crop_flip"},
    "train": {"epochs": VIEWS, "steps_per_epoch": 1},
    "cache": {"views": VIEWS, "keep": {"top_k": 3}},
    "control": False,
}


def recorded(folder: Path) -> int:
    """How many files of a folder are in its manifest."""
    manifest = folder / "manifest.json"
    return len(json.loads(manifest.read_text())["files"]) if manifest.exists() else 0


def test_answers_are_written_over_a_kill_and_teach_on_their_own(cli: CommandLine) -> None:
    path, folder = cli.recipe(RECIPE), cli.place / "answers"
    asked = ("teacher", "answer", path, "--out", folder, "--runs", "there")
    running = cli.start(*asked)
    until(lambda: recorded(folder) > 4 or not running.alive, "some answers")
    assert running.kill().code == -9
    before = recorded(folder)
    assert 4 < before < 2 * VIEWS, "the kill came in the middle"
    here = (path, "-o", f"models.teacher.weights=answers:{folder}")
    ended = cli(*asked)
    assert ended.code == 0, ended
    assert "teacher: taken from the store" in ended.err
    assert ended.out == f"answers: {folder}; a run reads them with models.teacher.weights: answers:{folder}\n"
    assert recorded(folder) == 2 * VIEWS + 1
    assert not list((cli.place / "there").glob(".answers*"))

    ended = cli("run", *here, "--out", "here")
    assert ended.code == 0, ended
    done = results(run_folder(cli.place / "here"))
    assert [stage["name"] for stage in done["stages"]] == ["teacher", "student"]
    assert done["teacher"]["top1_percent"] is not None
    assert not list((cli.place / "here" / ".store").glob("teacher_outputs/*"))
