"""Tasks as Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdzoo.api.execution import Executor, ExecutorError, Failure, LostError, Pending, Resources, WaitingTasks

#: Seconds in which a cluster has to answer.
PATIENCE_S = 5.0

#: Seconds between two looks at what the tasks say.
POLL_S = 1.0

HOST_AND_PORT = r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}"

#: A cluster's port for Ray Client, unless it was started with another one.
CLIENT_PORT = 10001


class RayExecutor(Executor):
    """Runs each task as a Ray task. Files do not have to be shared: content travels as Ray objects.

    ``ray`` starts Ray on this machine, or joins the cluster that RAY_ADDRESS names, as in a job of a cluster;
    ``ray://host:port`` joins a cluster from outside, through Ray Client.
    """

    name = "ray"
    description = "Ray, on this machine or on a cluster at ray://host:port; files need not be shared"
    shares_files = False

    def __init__(self, address: str, workers: int | None, folder: Path) -> None:
        super().__init__(address, workers, folder)
        self._board: Any = None
        self._work: Any = None
        self._own = self._local = False  # whether we connected, and whether we started Ray
        self._largest: dict[str, float] = {}  # of each resource, what one machine has at most
        self._progress = _Progress()
        self.waiting = WaitingTasks(workers)
        self.stopping = False

    def open(self) -> None:
        if find_spec("ray") is None:
            raise ExecutorError('ray: the library ray is not installed; pip install "kdzoo[ray]"')
        address = _joined_address(self.address, os.environ.get("RAY_ADDRESS", ""))
        if re.fullmatch(f"(ray://)?{HOST_AND_PORT}", address):
            _check_answers(address)
        os.environ |= _settings(address)
        with _signals_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

            if not ray.is_initialized():
                self._own, self._local = True, not address
                try:
                    ray.init(**self._options(address))
                except Exception as error:  # Ray raises many kinds, and none of its own
                    raise _no_cluster(address, error) from error
            try:
                self._begin(ray)
            except ray.exceptions.RayError as error:
                self.close()
                raise _raised(error, f"the cluster at {address or 'this machine'}") from error

    def _options(self, address: str) -> dict[str, Any]:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address:
            return {"address": address, **quiet}
        count = self.asked_workers or len(os.sched_getaffinity(0))
        return {
            "address": "local",
            "num_cpus": count,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            **quiet,
        }

    def _begin(self, ray: Any) -> None:
        from kdzoo_ray import ray_work

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for kind in ("CPU", "GPU"):
            self._largest[kind] = max((float(found.get(kind, 0)) for found in machines), default=0.0)
        # It lives as long as this process: on the machine of the driver, not on one that may be lost.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._board = ray.remote(num_cpus=0, scheduling_strategy=here)(ray_work.Board).remote()
        ray.get(self._board.ask_to_stop.remote(0), timeout=60)  # it answers, so kdzoo is installed there
        self._work = ray.remote(max_retries=0, num_returns=1)(ray_work.work)

    def put(self, content: bytes) -> Any:
        import ray

        return ray.put(content)

    def submit(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], resources: Resources
    ) -> Pending:
        may_grow = self.asked_workers and not self._local
        if resources.gpus > self._largest["GPU"] and not may_grow:
            raise ExecutorError(
                f"ray: {name} needs {resources.gpus} GPU{'s' * (resources.gpus > 1)}, and no machine has more than "
                f"{self._largest['GPU']:g}; where a cluster grows on demand, say how far with --workers"
            )
        # A task with more threads than any machine has cores takes a whole machine; Ray would wait for a larger one.
        cores = min(resources.threads, int(self._largest["CPU"]) or resources.threads)
        if self._local and self.asked_workers:
            cores = 1  # so many tasks were asked for, whatever they need
        task = self._work.options(num_cpus=cores, num_gpus=resources.gpus, name=name)
        pending = RayPending(self, name, lambda key: task.remote(key, self._board, function, *arguments))
        self.waiting.add(pending)
        return pending

    def workers(self) -> int:
        import ray

        return self.asked_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def told(self, key: str) -> tuple[Mapping[str, Any], str]:
        """What a task said last, and the end of its output."""
        return self._progress.of(self._board, key)

    def ask_to_stop(self) -> None:
        self.stopping = True
        self.waiting.drop()
        if self._board is not None:
            self._board.ask_to_stop.remote(int(signal.SIGTERM))

    def close(self) -> None:
        if self._own:
            import ray

            with _signals_kept():
                ray.shutdown()
        self._board, self._own = None, False


#: Two tasks may have one name, as when one is tried again.
_numbers = itertools.count()


class RayPending(Pending):
    """A task that Ray has, or that waits until there is room."""

    def __init__(self, executor: RayExecutor, name: str, submit: Callable[[str], Any]) -> None:
        self.name, self._executor, self._submit = name, executor, submit
        self.key = f"{next(_numbers)} {name}"
        self._reference: Any = None
        self._ended = False
        self._outcome: tuple[Any, str] | None = None

    def start(self) -> None:
        self._reference = self._submit(self.key)

    def ended(self) -> bool:
        if self._reference is None:
            return self._executor.stopping
        if not self._ended:
            import ray

            self._ended = bool(ray.wait([self._reference], timeout=0, fetch_local=False)[0])
        return self._ended

    def done(self) -> bool:
        self._executor.waiting.start()
        return self.ended()

    def result(self) -> Any:
        while self._reference is None and not self.done():
            time.sleep(0.1)
        if self._outcome is None:
            self._outcome = (not_begun(), "") if self._reference is None else self._fetched()
        value, _ = self._outcome
        if isinstance(value, Failure):
            raise value.raised()
        return value

    def _fetched(self) -> Any:
        import ray

        try:
            return ray.get(self._reference)
        except (ray.exceptions.RayError, ConnectionError) as error:
            return Failure.of(_raised(error, self.name)), self.log()
        finally:
            self._ended = True

    def told(self) -> Mapping[str, Any]:
        return self._executor.told(self.key)[0]

    def log(self) -> str:
        return self._outcome[1] if self._outcome is not None else self._executor.told(self.key)[1]


class _Progress:
    """What the tasks say, asked for once a second and never waited for."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[Mapping[str, Any], str]] = {}
        self._asked: Any = None
        self._when = 0.0

    def of(self, board: Any, key: str) -> tuple[Mapping[str, Any], str]:
        import ray

        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
                self._told |= ray.get(self._asked)
            self._asked = None
        if board is not None and self._asked is None and time.monotonic() - self._when > POLL_S:
            self._asked, self._when = board.news.remote(), time.monotonic()
        return self._told.get(key, ({}, ""))


def not_begun() -> Failure:
    """The outcome of a task that was asked to stop before it began."""
    return Failure("Interrupted", "it was asked to stop before it began", "", 128 + int(signal.SIGTERM))


def _joined_address(address: str, environment: str) -> str:
    """Where Ray is to be joined; empty: it is to be started on this machine."""
    if not address:
        return environment if environment != "local" else ""
    if not re.fullmatch(HOST_AND_PORT, address):
        raise ExecutorError(
            f"ray: 'ray://{address}' is no address of a cluster; write ray://host:port, with the port of Ray Client "
            f"(usually {CLIENT_PORT}), or ray for this machine alone"
        )
    return f"ray://{address}"


def _settings(address: str) -> dict[str, str]:
    """What Ray reads of the environment, most of it when it is imported."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",  # it reports to its makers otherwise
        "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "2",  # of three tries
        "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "3",
        "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died or was killed",  # printed into the progress; LostError says it
    }
    if not address:  # a switch for systems whose firewalls ask; it keeps Ray from listening beyond this machine
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    elif "RAY_AUTH_MODE" not in os.environ and _has_token():  # as Ray itself does, but for Ray Client
        settings["RAY_AUTH_MODE"] = "token"
    return settings


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


def _check_answers(address: str) -> None:
    """Raise ExecutorError where nothing listens; Ray itself would go on trying."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S):
            pass
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ExecutorError:
    if not address:
        return ExecutorError(f"ray: Ray cannot start on this machine: {_first_line(error)}")
    remedy = "RAY_ADDRESS names it; it is right in a job of a cluster alone"
    if address.startswith("ray://"):
        remedy = (
            f"the port has to be that of its Ray Client server (usually {CLIENT_PORT}), and where it asks for a token, "
            "RAY_AUTH_TOKEN has to hold it"
        )
    return ExecutorError(f"ray: no cluster at {address}: {_first_line(error)}; {remedy}")


def _raised(error: Exception, name: str) -> ExecutorError:
    """The error of this project for one of Ray's."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.ActorDiedError):
        cause = getattr(error, "cause", None)
        return ExecutorError(
            f"ray: {name}: a worker cannot begin: {_first_line(cause if isinstance(cause, Exception) else error)}; "
            "install the same kdzoo, with the same plugins, on every machine of the cluster"
        )
    if isinstance(error, ConnectionError):
        return ExecutorError(f"ray: {name}: the connection to the cluster is lost: {_first_line(error)}")
    return LostError(f"{name}: its worker is gone: {type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts handlers of its own in place of those that stop a run and save it."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
