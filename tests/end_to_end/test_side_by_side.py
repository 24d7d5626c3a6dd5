"""Independent stages in processes of their own: the same bits as one after another, stopped and resumed together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

RECIPE = """\
version: 1
name: side-by-side
algorithm: {{name: mt_average}}
models:
  teachers:
    - {{name: digits_cnn_tiny}}
    - {{name: digits_cnn_tiny, args: {{drop_rate: 0.1}}}}
  student: {{name: digits_cnn_tiny}}
data: {{name: digits, batch_size: 64, validation: 100}}
train: {{epochs: 10, checkpoint_seconds: 0}}
control: false
trackers: []
threads: 1
jobs: {jobs}
"""
TIMEOUT_S = 150


def command(place: Path, jobs: int) -> list[str]:
    recipe = place / f"{jobs}.yaml"
    recipe.write_text(RECIPE.format(jobs=jobs))
    return [sys.executable, "-m", "kdzoo", "run", str(recipe), "--out", str(place / f"out{jobs}")]


def end(arguments: Sequence[str]) -> str:
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def lasting(place: Path, jobs: int) -> dict[str, bytes]:
    (folder,) = (place / f"out{jobs}" / "side-by-side").glob("0001-*")
    return {name: (folder / name).read_bytes() for name in ("student.safetensors", "metrics.jsonl")}


@pytest.mark.slow
def test_stages_side_by_side_stop_together_and_go_on_to_the_bits_of_one_after_another(tmp_path: Path) -> None:
    assert "side by side" not in end(command(tmp_path, 1))
    arguments = command(tmp_path, 2)
    running = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "out2" / "side-by-side" / "0001-seed0" / "checkpoints"
    deadline = time.monotonic() + TIMEOUT_S
    while not all(list((checkpoints / f"teacher_{i}").glob("[0-9]*/state.json")) for i in (0, 1)):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGTERM)
    said = running.communicate(timeout=TIMEOUT_S)[1]
    assert running.returncode == 143
    assert "teacher_0: training, 2 side by side" in said
    assert said.splitlines()[-1] == (
        "stopped in stages teacher_0, teacher_1; state saved, the same command goes on from there"
    )
    assert not list((tmp_path / "out2" / ".store" / "stage").glob("*")), "stopped too late to test anything"
    went_on = end(arguments)
    assert "resuming" in went_on
    assert "teacher_1: taken from the store" in went_on  # where its worker put it
    assert lasting(tmp_path, 1) == lasting(tmp_path, 2)
