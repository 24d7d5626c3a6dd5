"""Processes of this machine: what they return, how they fail, die, stop and speak, and that they never outlive us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kdzoo
from kdzoo.contract.execution import Resources, Worker
from kdzoo.errors import DataError, ExecutorError, Interrupted, LostError
from kdzoo.processes import local
from kdzoo.processes.local import LocalExecutor

#: A process starts in a moment, and in minutes where many others run.
PATIENCE_S = 300


def work(worker: Worker, task: str, place: str) -> Any:
    """What the tasks of these tests do; ``place`` is where they leave traces."""
    (Path(place) / f"{task}-began-{os.getpid()}").touch()
    print(f"{task} speaks")
    if task == "bad data":
        raise DataError("no such file")
    if task == "bug":
        raise ZeroDivisionError("a bug")
    if task == "exits":
        sys.exit("bye")
    if task == "killed":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if task.startswith("long"):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            worker.tell({"step": 3})
            if worker.stop():
                (Path(place) / f"{task}-saved").touch()
                raise Interrupted(f"{task} stopped", 128 + worker.stop())
            time.sleep(0.02)
        raise AssertionError("nobody stopped this")
    return f"task {task}"


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    made = LocalExecutor("", 2, tmp_path)
    made.open()
    yield made
    made.close()


def submit(executor: LocalExecutor, place: Path, *tasks: str, threads: int = 1) -> list[local.Call]:
    return [executor.submit(task, work, (task, str(place)), Resources(threads)) for task in tasks]


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pids(place: Path) -> set[str]:
    return {path.name.rpartition("-")[2] for path in place.glob("*-began-*")}


def test_each_task_gets_its_answer_from_one_of_two_processes(executor: LocalExecutor, tmp_path: Path) -> None:
    calls = submit(executor, tmp_path, "a", "b", "c", "d")
    assert [call.result() for call in calls] == ["task a", "task b", "task c", "task d"]
    assert all(call.done() for call in calls)
    assert "a speaks" in calls[0].log()
    assert "b speaks" not in calls[0].log()
    assert 1 <= len(pids(tmp_path)) <= 2
    assert executor.workers() == 2


def test_a_failure_keeps_its_kind_and_leaves_the_others(executor: LocalExecutor, tmp_path: Path) -> None:
    bad, bug, exits, good = submit(executor, tmp_path, "bad data", "bug", "exits", "a")
    with pytest.raises(DataError, match=r"^no such file$"):
        bad.result()
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        bug.result()
    with pytest.raises(RuntimeError, match="SystemExit: bye"):
        exits.result()
    assert good.result() == "task a"
    assert "bug speaks" in bug.log()


def test_a_killed_worker_loses_its_own_task_only(executor: LocalExecutor, tmp_path: Path) -> None:
    killed, *others = submit(executor, tmp_path, "killed", "a", "b")
    with pytest.raises(LostError) as caught:
        killed.result()
    assert str(caught.value) == (
        "task 'killed': its worker process was ended by SIGKILL (out of memory?); what was saved stays"
    )
    assert "killed speaks" in killed.log()
    assert [call.result() for call in others] == ["task a", "task b"]


def test_an_order_to_stop_reaches_every_worker_and_ends_what_waits(executor: LocalExecutor, tmp_path: Path) -> None:
    calls = submit(executor, tmp_path, "long 1", "long 2", "long 3")
    until(lambda: all(call.told() for call in calls[:2]))
    assert calls[0].told() == {"step": 3}
    executor.ask_to_stop()
    for call in calls:
        with pytest.raises(Interrupted) as caught:
            call.result()
        assert caught.value.exit_code == 128 + signal.SIGTERM
    assert sorted(path.name for path in tmp_path.glob("*-saved")) == ["long 1-saved", "long 2-saved"]


def test_closing_stops_what_runs(tmp_path: Path) -> None:
    executor = LocalExecutor("", 1, tmp_path)
    executor.open()
    (call,) = submit(executor, tmp_path, "long 1")
    until(call.told)
    executor.close()
    executor.close()
    assert (tmp_path / "long 1-saved").exists()


def test_tasks_share_the_cores_by_their_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "cores", lambda: 2)
    executor = LocalExecutor("", None, tmp_path)
    assert executor.workers() == 2
    executor.open()
    first, second = submit(executor, tmp_path, "long 1", "long 2", threads=2)
    until(first.told)
    assert not second.told()
    executor.ask_to_stop()
    with pytest.raises(Interrupted, match=r"^task 'long 2': stopped before it began$"):
        second.result()
    executor.close()


def test_what_cannot_travel_is_an_error_of_its_task(executor: LocalExecutor, tmp_path: Path) -> None:
    call = executor.submit("lambda", lambda worker: 1, (), Resources())
    with pytest.raises(RuntimeError, match="<lambda>"):
        call.result()
    (good,) = submit(executor, tmp_path, "a")
    assert good.result() == "task a"


def test_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=r"^local: takes no address, got 'host:1'; write --on local$"):
        LocalExecutor("host:1", None, tmp_path).open()


def test_workers_do_not_outlive_who_asked(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\n"
        "from test_local_executor import submit\n"
        "from kdzoo.processes.local import LocalExecutor\n"
        "executor = LocalExecutor('', 2, Path(sys.argv[3]))\n"
        "executor.open()\n"
        "calls = submit(executor, Path(sys.argv[3]), 'long 1', 'a')\n"
        "calls[0].result()\n"
    )
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script))  # without the guard that multiprocessing asks of scripts
    root = Path(kdzoo.__file__).parent.parent
    arguments = [sys.executable, str(file), str(root), str(Path(__file__).parent), str(tmp_path)]
    asking = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    until(lambda: len(list(tmp_path.glob("*-began-*"))) == 2 or asking.poll() is not None)
    assert asking.poll() is None, "it ended before its workers began"
    asking.kill()
    asking.communicate()
    until((tmp_path / "long 1-saved").exists)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids(tmp_path)))
