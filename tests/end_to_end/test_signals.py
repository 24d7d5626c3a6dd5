"""A signal ends a run at the next step, with its state on disk; the same command goes on to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from command_line import CommandLine, Running, Trained, lasting, newest_step, results, run_folder, stock, until

SEED = int(os.environ.get("KDZOO_TEST_SEED", "11"))
STEPS = 28
SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


def said(running: Running, text: str) -> None:
    until(lambda: text in running.err, f"'{text}'")


def begun(cli: CommandLine, trained: Trained, fault: str) -> tuple[list[str], Running]:
    """Start the tiny recipe with its teacher in the store; return the command and the process."""
    out = stock(cli.place / "out", trained.folder, "teacher")
    command = ["run", str(cli.recipe()), "--out", str(out)]
    return command, cli.start(*command, fault=fault)


@SIGNALS
def test_a_signal_stops_within_a_step_and_the_run_goes_on(
    cli: CommandLine, trained: Trained, number: int, code: int
) -> None:
    command, running = begun(cli, trained, "slow_steps")
    said(running, "student: training")
    time.sleep(random.Random(SEED + number).uniform(0.1, 0.4))  # of the 1.2 seconds that its 56 steps take
    running.signal(number)
    asked = time.monotonic()
    ended = running.wait(20)
    assert ended.code == code, ended
    assert time.monotonic() - asked < 5
    folder = run_folder(cli.place / "out")
    step = newest_step(folder, "student")
    assert 0 < step < 2 * STEPS
    assert step % STEPS, "stopped at the end of an epoch, where it would have saved anyhow"
    last = ended.err.splitlines()[-1]
    assert last == f"stopped in stage 'student' at step {step}; state saved, the same command goes on from there"
    assert status(folder) == "running"
    ended = cli(*command)
    assert ended.code == 0, ended
    assert f"stage 'student' resumed at step {step}" in ended.err
    assert lasting(run_folder(cli.place / "out")) == lasting(trained.folder)


@SIGNALS
def test_a_signal_after_training_never_ends_as_if_nothing_was(
    cli: CommandLine, trained: Trained, number: int, code: int
) -> None:
    _, running = begun(cli, trained, "slow_delivery")
    said(running, "measuring")
    running.signal(number)
    ended = running.wait(30)
    assert ended.code == code, ended
    folder = run_folder(cli.place / "out")
    assert ended.err.splitlines()[-1] == f"the run had finished when it was asked to stop: {folder}"
    assert status(folder) == "finished"
    assert results(folder)["student"]["top1_percent"] == results(trained.folder)["student"]["top1_percent"]


def test_a_signal_before_training_leaves_a_run_that_can_be_resumed(cli: CommandLine, trained: Trained) -> None:
    command, running = begun(cli, trained, "slow_data")
    said(running, "opening")
    running.signal(signal.SIGTERM)
    ended = running.wait(30)
    assert ended.code == 143, ended
    assert "training" not in ended.err
    assert ended.err.splitlines()[-1].startswith("stopped before stage 'teacher'; state saved")
    ended = cli(*command, "--resume")
    assert ended.code == 0, ended
    assert lasting(run_folder(cli.place / "out")) == lasting(trained.folder)


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGINT, 130), (signal.SIGINT, signal.SIGTERM, 143)],
)
def test_a_second_signal_stops_at_once_and_leaves_the_last_checkpoint(
    cli: CommandLine, trained: Trained, first: int, second: int, code: int
) -> None:
    command, running = begun(cli, trained, "endless_step")
    said(running, "endless")
    folder = run_folder(cli.place / "out")
    before = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    assert newest_step(folder, "student") == STEPS
    running.signal(first)
    time.sleep(0.3)
    assert running.alive, "the first signal waits for the step to end"
    running.signal(second)
    asked = time.monotonic()
    ended = running.wait(20)
    assert time.monotonic() - asked < 2
    assert ended.code == code, ended
    assert before == {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    ended = cli(*command)
    assert ended.code == 0, ended
    assert f"stage 'student' resumed at step {STEPS}" in ended.err
    assert lasting(run_folder(cli.place / "out")) == lasting(trained.folder)
