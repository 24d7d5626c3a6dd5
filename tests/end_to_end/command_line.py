"""Run kdzoo as its user does: real processes that can be killed, with exit codes, output and files on disk.

Importing torch takes seconds, so most processes are forked from a server that has imported everything once: each is
a process of its own all the same, with a session, arguments and environment of its own, and ends as the command ends.
``cold`` starts a fresh interpreter instead.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdzoo
from kdzoo.report import charts
from kdzoo.zoo import survey
from kdzoo.zoo.cards import body_of
from kdzoo.zoo.loading import load_zoo

ROOT = Path(kdzoo.__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
TEST_PATH = [str(ROOT), str(ROOT / "plugins")]

#: A run that takes longer than this hangs.
TIMEOUT_S = 150

processes: Any = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "pytest",
        "torch",
        "timm",
        "timm.optim",
        "timm.scheduler",
        "torch.distributed",
        "torch.utils.tensorboard",
        "torch.utils.flop_counter",
        "torch._dynamo",
        "safetensors.torch",
        "rich.progress",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
        "kdzoo.cli",
        "kdzoo.run.runner",
        "kdzoo.report.writing",
        "kdzoo.testing.checks",
        "kdzoo.plan.schema",
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``code`` is negative when a signal ended it."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Running:
    """A command that runs in a session of its own."""

    def __init__(self, pid: int, wait: Callable[[float], int | None], place: Path) -> None:
        self.pid, self._wait, self._place = pid, wait, place

    @property
    def alive(self) -> bool:
        return self._wait(0) is None

    @property
    def err(self) -> str:
        return (self._place / "err").read_text()

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.pid, number)

    def kill(self) -> Ended:
        """SIGKILL it and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self, timeout: float = TIMEOUT_S) -> Ended:
        code = self._wait(timeout)
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._wait(10)
            raise AssertionError(f"still running after {timeout} s\n{self.err}")
        return Ended(code, (self._place / "out").read_text(), self.err)


@dataclass(frozen=True)
class Trained:
    """A finished, unbroken run of the tiny recipe, to compare with and to take the teacher from; not to be changed."""

    folder: Path
    said: Ended


class CommandLine:
    """A folder to work in and commands to run in it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._count = 0
        self._running: list[Running] = []

    def __call__(self, *arguments: Any, **settings: Any) -> Ended:
        """Run ``kdzoo`` with ``arguments`` to its end; settings as for ``start``."""
        return self.start(*arguments, **settings).wait()

    def start(
        self,
        *arguments: Any,
        fault: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pictures: bool = False,
    ) -> Running:
        """Start ``kdzoo``.

        ``fault`` names a function of faults.py that is called first, to break something. Without ``pictures`` the
        report's charts are left out: they would take most of the time of a run as small as these.
        """
        log = self._log()
        folder = cwd or self.place
        settings = ([*map(str, arguments)], str(folder), dict(env or {}), str(log), fault, pictures)
        process = processes.Process(target=forked, args=settings)
        process.start()

        def wait(timeout: float) -> int | None:
            process.join(timeout)
            return process.exitcode

        return self._noted(Running(process.pid, wait, log))

    def cold(self, *arguments: Any, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ended:
        """Run ``python -m kdzoo`` in a fresh interpreter to its end."""
        return self.shell(sys.executable, "-m", "kdzoo", *arguments, env=env, cwd=cwd).wait()

    def shell(self, *command: Any, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Running:
        """Start any command in the environment that kdzoo is started in."""
        log = self._log()
        with (log / "out").open("wb") as out, (log / "err").open("wb") as err:
            process = subprocess.Popen(
                [*map(str, command)],
                cwd=cwd or self.place,
                env={**os.environ, **base_environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

        def wait(timeout: float) -> int | None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
            return process.returncode

        return self._noted(Running(process.pid, wait, log))

    def recipe(self, changes: Mapping[str, Any] | None = None, name: str = "tiny") -> Path:
        """Write a recipe of seconds, with changes to it, and return its path."""
        path = self.place / f"{name}.yaml"
        path.write_text(json.dumps(merged(TINY | {"name": name}, changes or {}), indent=1))  # JSON is YAML
        return path

    def end(self) -> None:
        """Kill what a test left running."""
        for running in self._running:
            if running.alive:
                running.kill()

    def _log(self) -> Path:
        self._count += 1
        log = self.place / ".logs" / str(self._count)
        log.mkdir(parents=True)
        for name in ("out", "err"):
            (log / name).touch()
        return log

    def _noted(self, running: Running) -> Running:
        self._running.append(running)
        return running


#: The recipe that most tests run: a teacher, no control, a student, about 26 steps an epoch.
TINY: dict[str, Any] = {
    "version": 1,
    "name": "tiny",
    "algorithm": {"name": "kd"},
    "models": {"teacher": {"name": "digits_cnn_small"}, "student": {"name": "digits_cnn_tiny"}},
    "data": {"name": "digits", "batch_size": 32, "validation": 100},
    "train": {"epochs": 2},
    "control": False,
    "trackers": [],
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid over it, section by section."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def base_environment() -> dict[str, str]:
    """What every process is started with, whatever the tests themselves were started with."""
    paths = [*TEST_PATH, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in paths)),
        "KDZOO_PLUGINS": "",
        "KDZOO_DEBUG": "",
    }


def forked(
    arguments: list[str], place: str, environment: dict[str, str], log: str, fault: str | None, pictures: bool
) -> None:
    """Become the command: what a forked process runs."""
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{log}/{name}", os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(base_environment() | environment)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.chdir(place)
    sys.argv = ["kdzoo", *arguments]
    if not pictures:
        charts.render = lambda *arguments: ""
    # A survey starts an interpreter, which takes seconds; tests of it use ``cold``.
    survey.survey = lambda found, only, fatal: (body_of(load_zoo()), {})
    if fault is not None:
        getattr(importlib.import_module("faults"), fault)()
    from kdzoo.cli import main

    main()


# --- looking at what a run left ----------------------------------------------------------------


def run_folder(out: Path, name: str = "tiny") -> Path:
    """The newest run folder of a recipe."""
    return max(path for path in (out / name).iterdir() if path.name[:4].isdecimal())


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def lasting(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must be the same after any number of kills."""
    content = results(folder)
    timeless: dict[str, Any] = {}
    for role in ("teacher", "control", "student"):
        entry = content[role]
        timeless[role] = entry and {k: v for k, v in entry.items() if k != "latency_ms"}
    timeless["stages"] = [{k: v for k, v in stage.items() if k != "seconds"} for stage in content["stages"]]
    timeless["warnings"] = content["warnings"]
    return {
        "student": (folder / "student.safetensors").read_bytes(),
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        "results": timeless,
    }


def stock(out: Path, finished: Path, *stages: str) -> Path:
    """Put stored stages of a finished run into the store of ``out``, so that they need not be trained again."""
    keys = {stage["name"]: stage["key"] for stage in results(finished)["stages"]}
    store = finished.parent.parent / ".store" / "stage"
    for stage in stages:
        (place,) = store.glob(f"{keys[stage]}*")
        shutil.copytree(place, out / ".store" / "stage" / place.name)
    return out


def until(condition: Callable[[], Any], what: str, timeout: float = 60) -> Any:
    """Wait for a condition and return its value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {timeout} s for {what}"
        time.sleep(0.005)
    return value


def newest_step(folder: Path, stage: str) -> int:
    """The optimizer step of the newest checkpoint of a stage; 0 before the first."""
    try:
        places = sorted((folder / "checkpoints" / stage).glob("[0-9]*/state.json"))
        return json.loads(places[-1].read_text())["step"] if places else 0
    except (OSError, ValueError):  # pruned while we looked
        return 0


@contextlib.contextmanager
def flipped_bit(path: Path) -> Iterator[None]:
    """One bit of a file is wrong inside."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    try:
        yield
    finally:
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
