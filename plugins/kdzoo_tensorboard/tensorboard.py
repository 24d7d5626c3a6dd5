"""TensorBoard event files, one sub-run per stage."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdzoo.api.export import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """Writes scalars below ``<folder>/tensorboard/<stage>``; see them with ``tensorboard --logdir runs``.

    A resumed run adds a file to each stage it continues; steps logged twice are drawn once.
    """

    name = "tensorboard"
    description = "TensorBoard event files, one sub-run per stage"

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.writers: dict[str, SummaryWriter] = {}

    def start(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        assert self.folder is not None, "log before start"
        if stage not in self.writers:
            from torch.utils.tensorboard import SummaryWriter  # its import takes two seconds

            _silence_writer_threads()
            self.writers[stage] = SummaryWriter(self.folder / stage, purge_step=step)
        for name, value in values.items():
            self.writers[stage].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()


@functools.cache
def _silence_writer_threads() -> None:
    """Show no traceback of a thread that could not write a file: it keeps its error, and the next call raises it."""
    usual = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            usual(arguments)

    threading.excepthook = hook
