"""What a plugin that offers executors may use."""

from kdzoo.contract.execution import Executor, Pending, Resources, Worker
from kdzoo.errors import ExecutorError, LostError

__all__ = ["Executor", "ExecutorError", "LostError", "Pending", "Resources", "Worker"]
