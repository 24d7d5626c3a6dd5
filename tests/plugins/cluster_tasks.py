"""What the tasks of the tests of executors do; workers import this module by its name."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from kdzoo.errors import DataError, Interrupted

#: A cluster of this machine starts a worker in a moment, and in minutes where many others run.
PATIENCE_S = 300


def work(worker: Any, task: str, content: bytes = b"") -> Any:
    print(f"{task} speaks")
    if task == "bad data":
        raise DataError("no such file")
    if task == "bug":
        raise ZeroDivisionError("a bug")
    if task == "exits":
        sys.exit("bye")
    if task == "killed":
        worker.tell({"step": 1})
        time.sleep(2.5)  # so that what it says arrives
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "long":
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            worker.tell({"step": 3})
            if worker.stop():
                raise Interrupted("saved", 128 + worker.stop())
            time.sleep(0.02)
        raise AssertionError("nobody stopped this")
    begun = time.time()
    time.sleep(0.2)
    return task, len(content), os.environ.get("SRUN_CPUS_PER_TASK", ""), begun, time.time()
