"""Where a study runs, as the command line says it: ``local``, ``ray``, ``ray://host:port``, ``slurm`` ..."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kdzoo.contract.execution import Executor
from kdzoo.processes.local import LocalExecutor
from kdzoo.zoo.offered import Zoo


@contextlib.contextmanager
def opened_executor(on: str, workers: int | None, folder: Path, zoo: Zoo) -> Iterator[Executor]:
    """Open the executor that ``on`` names, with an address after ``://``, and close it in the end.

    ``folder`` is for its logs. Raises UnknownName for one that no plugin offers, ExecutorError if it cannot be used.
    """
    name, _, address = on.partition("://")
    cls = LocalExecutor if name == LocalExecutor.name else zoo.executor(name)
    executor = cls(address, workers, folder)
    try:
        executor.open()
        yield executor
    finally:
        executor.close()
