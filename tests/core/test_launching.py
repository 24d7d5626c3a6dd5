"""Processes of one run are started, heard and ended together; here they are interpreters that import nothing."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

from kdzoo.errors import NeedsError
from kdzoo.recipe.reading import parse_recipe
from kdzoo.run import launching
from kdzoo.run.launching import check_not_started, check_processes, orphaned, run_processes

START = """
import json, os, pathlib, signal, sys, time
rank, place = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
def until(name):
    end = time.monotonic() + 20
    while not (place / name).exists() and time.monotonic() < end:
        time.sleep(0.005)
def fail(code, text):
    print(text, file=sys.stderr, flush=True)
    (place / f"failed {rank}").touch()
    os._exit(code)
"""


def launched(place: Path, program: str, count: int = 2) -> tuple[int, list[str]]:
    """The exit code of a program in several processes, and what was shown of them."""
    shown: list[str] = []
    command = [sys.executable, "-I", "-S", "-c", START + textwrap.dedent(program), str(place)]
    return run_processes(command, count, shown.append), shown


def test_each_process_knows_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program = '(place / str(rank)).write_text(json.dumps(dict(os.environ)))\nprint("heard" * rank)'
    assert launched(tmp_path, program, 3) == (0, [])
    settings = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [each["LOCAL_RANK"] for each in settings] == ["0", "1", "2"]
    for name, value in {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "KDZOO_LAUNCHER": str(os.getpid())}.items():
        assert {each[name] for each in settings} == {value}
    assert len({each["MASTER_PORT"] for each in settings}) == 1
    assert int(settings[0]["OMP_NUM_THREADS"]) >= 1, "torch's own default is all cores for each process"


def test_the_first_error_is_shown_and_ends_all(tmp_path: Path) -> None:
    program = """
        if rank == 1:
            fail(6, "error: a loss is nan")
        until("failed 1")
        fail(10, "error: another process ended")
    """
    assert launched(tmp_path, program) == (6, ["process 1: error: a loss is nan"])


def test_an_error_that_all_make_is_shown_once(tmp_path: Path) -> None:
    assert launched(tmp_path, 'fail(2, "error: the recipe")') == (2, [])


@pytest.mark.parametrize("deaf", [False, True])
def test_a_process_that_does_not_notice_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    monkeypatch.setattr(launching, "GRACE_S", 0.2)
    monkeypatch.setattr(launching, "MERCY_S", 0.2)
    program = f"""
        if {deaf}:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (place / str(rank)).touch()
        until("0")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        until("never")
    """
    silent = "process 1: ended by SIGKILL without a word; state up to the last checkpoint is saved, the same command "
    assert launched(tmp_path, program) == (137, [silent + "goes on"])


def test_a_signal_reaches_each_process_once(tmp_path: Path) -> None:
    program = """
        def stop(number, frame):
            with (place / f"stopped {rank}").open("a") as file:
                file.write(f"{number} ")
        signal.signal(signal.SIGINT, stop)
        (place / str(rank)).touch()
        until(str(1 - rank))
        if rank == 0:
            os.kill(os.getppid(), signal.SIGINT)
        until(f"stopped {rank}")
        time.sleep(0.1)
        os._exit(130)
    """
    assert launched(tmp_path, program) == (130, [])
    assert [(tmp_path / f"stopped {rank}").read_text() for rank in (0, 1)] == ["2 ", "2 "]


def test_a_process_notices_that_its_launcher_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDZOO_LAUNCHER", raising=False)
    assert not orphaned()
    monkeypatch.setenv("KDZOO_LAUNCHER", str(os.getppid()))
    assert not orphaned()
    monkeypatch.setenv("KDZOO_LAUNCHER", str(os.getpid()))
    assert orphaned()


TINY = b"""
version: 1
name: tiny
algorithm: {name: kd}
models: {teacher: {name: t}, student: {name: s}}
data: {name: d, batch_size: 32}
"""


@pytest.mark.parametrize(
    ("processes", "jobs", "text"),
    [
        (3, 1, "data.batch_size: 32 samples cannot be shared evenly by 3 processes"),
        (64, 1, "data.batch_size: 32 samples cannot be shared evenly by 64 processes"),
        (2, 2, "jobs: 2 workers cannot be combined with the 2 processes of a distributed run; set jobs: 1"),
    ],
)
def test_what_cannot_be_shared_is_refused(processes: int, jobs: int, text: str) -> None:
    recipe = parse_recipe(TINY + f"jobs: {jobs}".encode(), Path("tiny.yaml")).recipe
    check_processes(recipe, 1)
    with pytest.raises(NeedsError) as caught:
        check_processes(recipe, processes)
    assert str(caught.value) == text


def test_a_process_of_torchrun_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_not_started()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NeedsError) as caught:
        check_not_started()
    assert str(caught.value) == (
        "--processes: this is one of 2 processes that torchrun started (WORLD_SIZE is set); leave out --processes, or "
        "torchrun"
    )
