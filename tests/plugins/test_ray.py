"""Ray's executor: what needs no Ray, and, marked slow, Ray on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cluster_tasks import PATIENCE_S, work

from kdzoo.contract.execution import Resources
from kdzoo.contract.failure import Failure
from kdzoo.errors import DataError, ExecutorError, Interrupted, LostError
from kdzoo_ray import ray_executor, ray_work
from kdzoo_ray.ray_executor import RayExecutor

HERE = Path(__file__).parent


def needs_ray() -> None:
    """Skip a test where the library is missing, without importing it: it reads its settings when it is imported."""
    if find_spec("ray") is None:
        pytest.skip("the extra ray is not installed")


def problem_of(address: str, tmp_path: Path) -> str:
    with pytest.raises(ExecutorError) as error:
        RayExecutor(address, None, tmp_path).open()
    return str(error.value)


def test_a_missing_library_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_executor, "find_spec", lambda name: None)
    assert problem_of("", tmp_path) == 'ray: the library ray is not installed; pip install "kdzoo[ray]"'


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray seems to be there, and nothing says which cluster to join."""
    monkeypatch.setattr(ray_executor, "find_spec", lambda name: object())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("address", ["head", "head:", ":10001", "ray://head:10001", "head:10001/x", "a b:1"])
def test_what_is_no_address_is_refused(installed, tmp_path, address):
    assert problem_of(address, tmp_path) == (
        f"ray: 'ray://{address}' is no address of a cluster; write ray://host:port, with the port of Ray Client "
        "(usually 10001), or ray for this machine alone"
    )


def test_a_cluster_that_is_not_there_is_named_at_once(installed, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        begin = time.monotonic()
        assert problem_of(address, tmp_path) == (
            f"ray: no cluster at ray://{address}: Connection refused; the port has to be that of its Ray Client server "
            "(usually 10001), and where it asks for a token, RAY_AUTH_TOKEN has to hold it"
        )
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert problem_of("", tmp_path) == (
            f"ray: no cluster at {address}: Connection refused; RAY_ADDRESS names it; it is right in a job of a "
            "cluster alone"
        )
        assert time.monotonic() - begin < ray_executor.PATIENCE_S
    assert problem_of("host.invalid:99999", tmp_path).startswith("ray: no cluster at ray://host.invalid:99999: ")


class DirectBoard:
    """A board in this process: what is asked of it is answered at once, through futures as from an actor."""

    def __init__(self) -> None:
        self.board = ray_work.Board()
        self.exchange = self

    def remote(self, *arguments: Any) -> DirectBoard:
        self.arguments = arguments
        return self

    def future(self) -> Future[int]:
        answer: Future[int] = Future()
        answer.set_result(self.board.exchange(*self.arguments))
        return answer


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> DirectBoard:
    needs_ray()
    monkeypatch.setattr(ray_work, "BEAT_S", 0.02)
    return DirectBoard()


def test_a_task_says_how_far_it_is_and_stops_when_it_is_asked_to(board):
    def stopped(worker: Any) -> str:
        print("one\ntwo", end="")
        worker.tell({"step": 3})
        deadline = time.monotonic() + PATIENCE_S
        while board.board._news.get("key", ({}, ""))[0] != {"step": 3}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        board.board.ask_to_stop(15)
        while not worker.stop():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"stopped by {worker.stop()}"

    assert ray_work.work("key", board, stopped) == ("stopped by 15", "one\ntwo")
    assert board.board.news()["key"] == ({"step": 3}, "one\ntwo")
    assert board.board.news() == {}, "only what is new is sent"
    value, log = ray_work.work("key", board, stopped)
    assert (value.kind, value.exit_code, log) == ("Interrupted", 143, ""), "it does not even begin"


def test_a_task_that_leaves_is_a_failure_and_only_the_last_lines_of_its_output_are_kept(board):
    def leaves(worker: Any) -> None:
        for line in range(200):
            print(line)
        sys.exit("bye")

    value, log = ray_work.work("key", board, leaves)
    assert isinstance(value, Failure)
    assert (value.kind, value.text) == ("SystemExit", "bye")
    assert log.split("\n") == [str(line) for line in range(200 - ray_work.LINES, 200)]


# --- Ray on this machine ----------------------------------------------------------------------


@pytest.mark.slow
def test_tasks_run_on_a_ray_of_this_machine(tmp_path, monkeypatch):
    needs_ray()
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    executor = RayExecutor("", 2, tmp_path)

    def submit(task: str, *more: Any, **resources: int) -> Any:
        return executor.submit(task, work, (task, *more), Resources(**resources))

    try:
        executor.open()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, "Ray's own handler would end the driver at once"
        assert executor.workers() == 2
        content = executor.put(b"x" * 10_000_000)
        fine = [submit("fine", content, threads=3) for _ in range(2)]
        bad, bug, exits, killed = map(submit, ("bad data", "bug", "exits", "killed"))
        assert [pending.result()[1] for pending in fine] == [10_000_000] * 2
        assert fine[0].log() == "fine speaks"
        with pytest.raises(DataError, match=r"^no such file$"):
            bad.result()
        with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
            bug.result()
        with pytest.raises(RuntimeError, match="SystemExit: bye"):
            exits.result()
        while not killed.done():
            killed.told()
            time.sleep(0.1)
        with pytest.raises(LostError, match=r"^killed: its worker is gone: WorkerCrashedError"):
            killed.result()
        assert (killed.told(), killed.log()) == ({"step": 1}, "killed speaks")
        with pytest.raises(ExecutorError, match=r"^ray: fine needs 1 GPU, and no machine has more than 0"):
            submit("fine", gpus=1)
        assert outside_listeners() == []
        long = [submit("long") for _ in range(3)]  # the third one has to wait
        while [pending.told() for pending in long].count({"step": 3}) < 2:
            time.sleep(0.1)
        assert long[2].told() == {}, "a task that waits for the board must not make room for another one"
        executor.ask_to_stop()
        for pending in long:
            with pytest.raises(Interrupted) as error:
                pending.result()
            assert error.value.exit_code == 143
    finally:
        executor.close()
        executor.close()
        assert signal.signal(signal.SIGTERM, handler) is signal.SIG_IGN


def outside_listeners() -> list[str]:
    """Addresses at which processes below this one can be reached from other machines."""
    lines, mine = [], own_sockets()
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "0000000000000000FFFF00000100007F")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, state, inode = (line.split()[index] for index in (1, 3, 9))
            if state == "0A" and not address.startswith(loopback) and inode in mine:
                lines.append(address)
    return lines


def own_sockets() -> set[str]:
    """The sockets of all processes below this one."""
    found, left = set(), [os.getpid()]
    while left:
        process = Path(f"/proc/{left.pop()}")
        try:
            left += [int(child) for path in process.glob("task/*/children") for child in path.read_text().split()]
            names = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:  # it has just ended
            continue
        found |= {name[8:-1] for name in names if name.startswith("socket:[")}
    assert len(found) > 10, "Ray's processes were not found"
    return found


DRIVER = """
    import sys, time
    from pathlib import Path
    from kdzoo.api.execution import Resources
    from kdzoo_ray.ray_executor import RayExecutor
    from cluster_tasks import work

    executor = RayExecutor("", 1, Path("."))
    executor.open()
    pending = executor.submit("long", work, ("long",), Resources())
    while not pending.told():
        time.sleep(0.1)
    import ray
    print(ray.nodes()[0]["NodeManagerPort"], flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_no_ray_behind(tmp_path):
    needs_ray()
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", textwrap.dedent(DRIVER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment) as driver:
        assert driver.stdout is not None
        port = int(driver.stdout.readline())
        driver.kill()
    deadline = time.monotonic() + PATIENCE_S
    while answers(port):
        assert time.monotonic() < deadline, "its raylet goes on"
        time.sleep(0.5)


def answers(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0
