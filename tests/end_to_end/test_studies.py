"""`kdzoo study` as a user types it: killed at random moments it goes on, to the ranking of an unbroken one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdzoo.recipe.bundled import recipes_root

STUDY = """\
version: 1
name: killed
recipe: {recipe}
seeds: {seeds}
algorithms: [kd, dkd]
vary: {{train.epochs: [4], data.train_limit: [320], train.checkpoint_seconds: [0], trackers: [[]], device: [cpu]}}
"""
PATIENCE_S = 300


class Study:
    """The command in a folder of its own, its processes in a group of their own."""

    def __init__(self, place: Path, seeds: int) -> None:
        self.out = place / "out"
        self.file = place / "study.yaml"
        place.mkdir()
        self.file.write_text(STUDY.format(recipe=recipes_root() / "digits" / "kd.yaml", seeds=seeds))

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "kdzoo", "study", str(self.file), "--out", str(self.out), "--workers", "2"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, start_new_session=True, **pipes)

    def finish(self) -> str:
        process = self.start()
        said, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        return said

    def stored(self) -> dict[str, int]:
        """The stages that are stored, with when each was first written."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.out.glob(".store/stage/*/result.json")}

    def checkpoints(self) -> list[Path]:
        return list(self.out.glob(".store/unfinished/*/checkpoints/[0-9]*"))

    def ranking(self) -> Any:
        content = json.loads((self.out / "killed" / "study" / "study.json").read_text())
        accuracies = [
            [(run["seed"], run["top1_percent"], run["control_top1_percent"]) for run in arm["runs"]]
            for arm in content["arms"]
        ]
        return [(row["label"], row["rank"], row["mean"]) for row in content["ranking"]], accuracies


def until_progress(study: Study, process: subprocess.Popen[str], wait: float) -> None:
    """Wait until something is saved or stored that was not before, and a moment longer."""
    stored, saved = study.stored().keys(), set(study.checkpoints())
    deadline = time.monotonic() + PATIENCE_S
    while study.stored().keys() == stored and set(study.checkpoints()) <= saved:
        if process.poll() is not None:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(wait)


def kill_and_go_on(study: Study, kills: int, seed: int) -> int:
    """Kill the whole group so often; return how many of the kills came before the end. No stage is trained twice."""
    chance = random.Random(seed)
    landed = 0
    for _ in range(kills):
        process = study.start()
        until_progress(study, process, chance.random() * 0.5)
        landed += process.poll() is None
        before = study.stored()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        after = study.stored()
        assert before.items() <= after.items(), "a stored stage was written again"
    return landed


@pytest.mark.costly(90)
def test_a_study_killed_three_times_ranks_as_an_unbroken_one(tmp_path: Path) -> None:
    whole, killed = Study(tmp_path / "whole", 1), Study(tmp_path / "killed", 1)
    said = whole.finish()
    assert "study folder: " in said
    assert kill_and_go_on(killed, 3, 1) >= 2
    before = killed.stored()
    killed.finish()
    assert killed.ranking() == whole.ranking()
    assert killed.stored().keys() == whole.stored().keys()
    assert before.items() <= killed.stored().items()
    assert not list(killed.out.glob(".store/unfinished/*"))


@pytest.mark.slow
def test_a_study_killed_twenty_times_ranks_as_an_unbroken_one(tmp_path: Path) -> None:
    whole, killed = Study(tmp_path / "whole", 3), Study(tmp_path / "killed", 3)
    whole.finish()
    assert kill_and_go_on(killed, 20, 2) >= 12
    killed.finish()
    assert killed.ranking() == whole.ranking()
    assert killed.stored().keys() == whole.stored().keys()


@pytest.mark.slow
def test_ctrl_c_stops_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    study = Study(tmp_path / "stopped", 1)
    process = study.start()
    until_progress(study, process, 0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert errors.splitlines()[-1].endswith("runs done; state saved, the same command goes on from there")
    before = study.stored()
    study.finish()
    assert before.items() <= study.stored().items()
