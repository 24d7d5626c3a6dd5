"""Processes side by side: results in order, one failure for all, an order to stop, and a death that is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kdzoo
from kdzoo.errors import DataError, DistributedError, Interrupted
from kdzoo.run.workers import Workers

Stop = Callable[[], int]

#: A worker imports torch before it begins, which takes minutes where many other processes run.
PATIENCE_S = 300


def begin(word: str, place: str, stop: Stop) -> Callable[[Any], Any]:
    """What the tasks of these tests ask for; ``place`` is where they leave traces."""

    def work(task: str) -> Any:
        (Path(place) / f"{task}-began").touch()
        if task == "bad data":
            raise DataError("no such file")
        if task == "bug":
            raise ZeroDivisionError("a bug")
        if task == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if task.startswith("long"):
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                if stop():
                    (Path(place) / f"{task}-saved").touch()
                    raise Interrupted("stopped", 128 + stop())
                time.sleep(0.05)
            raise AssertionError("nobody stopped this")
        return word + task

    return work


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    made = Workers(2, begin, ("task ", str(tmp_path)))
    yield made
    made.close()


def never() -> int:
    return 0


def test_results_come_in_the_order_of_the_tasks(workers: Workers) -> None:
    assert workers.run(["a", "b", "c"], never) == ["task a", "task b", "task c"]
    assert workers.run(["d"], never) == ["task d"]


def test_a_failure_keeps_its_kind_and_stops_the_others(workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no such file$"):
        workers.run(["long 1", "bad data"], never)
    assert (tmp_path / "long 1-saved").exists()


def test_a_bug_comes_with_its_traceback(workers: Workers) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        workers.run(["bug", "a"], never)


def test_an_order_to_stop_reaches_every_worker_and_ends_what_waits(workers: Workers, tmp_path: Path) -> None:
    def stop() -> int:
        return signal.SIGTERM if len(list(tmp_path.glob("*-began"))) == 2 else 0

    assert workers.run(["long 1", "long 2", "long 3"], stop) is None
    assert len(list(tmp_path.glob("*-saved"))) >= 2


def test_workers_do_not_outlive_who_asked(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_workers import begin\n"
        "from kdzoo.run.workers import Workers\n"
        "Workers(2, begin, ('', sys.argv[3])).run(['long 1', 'a'], lambda: 0)\n"
    )
    file = tmp_path / "script.py"
    file.write_text(f"if __name__ == '__main__':\n{textwrap.indent(script, '    ')}")
    root = Path(kdzoo.__file__).parent.parent
    arguments = [sys.executable, str(file), str(root), str(Path(__file__).parent), str(tmp_path)]
    asking = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    while len(list(tmp_path.glob("*-began"))) < 2:
        assert time.monotonic() < deadline
        assert asking.poll() is None, "it ended before its workers began"
        time.sleep(0.02)
    asking.kill()
    asking.communicate()  # ends when the last process that could write there is gone
    assert (tmp_path / "long 1-saved").exists()


def test_a_killed_worker_is_no_success(workers: Workers) -> None:
    with pytest.raises(DistributedError) as caught:
        workers.run(["killed", "a"], never)
    assert str(caught.value) == (
        "a worker process died, or was killed (out of memory?); what was saved stays, the same command goes on"
    )
