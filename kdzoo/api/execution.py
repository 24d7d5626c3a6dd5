"""What a plugin that offers executors may use."""

from kdzoo.contract.execution import Executor, Pending, Resources, Worker
from kdzoo.contract.failure import Failure
from kdzoo.errors import ExecutorError, LostError

__all__ = ["Executor", "ExecutorError", "Failure", "LostError", "Pending", "Resources", "Worker"]
