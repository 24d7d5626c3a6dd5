"""What a plugin that offers executors may use."""

from kdzoo.contract.execution import Executor, Pending, Resources, Worker
from kdzoo.contract.failure import Failure
from kdzoo.contract.waiting import WaitingTasks
from kdzoo.errors import ExecutorError, LostError
from kdzoo.processes.local import LocalExecutor

__all__ = [
    "Executor",
    "ExecutorError",
    "Failure",
    "LocalExecutor",
    "LostError",
    "Pending",
    "Resources",
    "WaitingTasks",
    "Worker",
]
