"""The terminal: text without control characters, the progress of a run, and being asked to stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdzoo.errors import CONTROL


def say(text: object = "", end: str = "\n") -> None:
    """Print a text to standard output."""
    print(printable(str(text)), end=end)


def warn(text: object) -> None:
    """Print a text to standard error."""
    print(printable(str(text)), file=sys.stderr)


def printable(text: str) -> str:
    """Escape what a terminal would take for a command; lines and tabs stay."""
    return CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def width() -> int | None:
    """Return the columns of the terminal that standard output is; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Turn SIGINT and SIGTERM into a flag; a second one stops at once, its state the last checkpoint."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            os._exit(128 + number)
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


BAR = 8  # columns of the bar
TIME = 8  # columns of the time that is left, and of the gaps
TERMS = 3  # that are shown of several


class Display:
    """The progress of a run on standard error: a live bar and a line a stage on a terminal, else a line an epoch.

    ``silent`` shows nothing: of several processes only the first speaks.
    """

    def __init__(self, silent: bool = False) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, quiet=silent)
        self.live: Any = None
        self.task: Any = None
        self._means: Mapping[str, float] = {}  # of the last epoch

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.console.quiet:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=BAR),
                TextColumn("{task.fields[text]}", markup=False),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = self.task = None

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str, state: str) -> None:
        """Say what happens to a stage."""
        self._forget_task()
        self.note(f"{name}: {state}")

    def progress(self, progress: Any) -> None:
        """Show a training step, or the means of an epoch at its end."""
        if self.live is None:
            if progress.end_of_epoch:
                values = "  ".join(f"{name} {value:.4g}" for name, value in progress.values.items())
                self.note(f"  {progress.stage} epoch {progress.epoch + 1}/{progress.epochs}  {values}")
            return
        if self.task is None:
            self._means = {}
            self.task = self.live.add_task(printable(progress.stage), total=progress.steps, text="")
        if progress.end_of_epoch:
            self._means = progress.values
            if progress.epoch + 1 == progress.epochs:
                self._forget_task()
                self.note(f"  {progress.stage}: {', '.join([counted(progress.epochs), *_said(self._means)])}")
            return
        known = {name: value for name, value in self._means.items() if name.startswith("validation_")}
        parts = [f"epoch {progress.epoch + 1}/{progress.epochs}", *_said({**progress.values, **known})]
        parts += [f"{progress.samples_per_s:.0f} samples/s"]
        parts += [f"{name} {share:.0%}" for name, share in progress.shares.items() if share >= 0.005]
        room = self.console.width - len(progress.stage) - BAR - TIME
        while len(text := "  ".join(parts)) > room and len(parts) > 1:
            parts.pop()
        self.live.update(self.task, completed=progress.step, text=text)

    def _forget_task(self) -> None:
        if self.live is not None and self.task is not None:
            self.live.remove_task(self.task)
            self.task = None


def counted(epochs: int) -> str:
    """Say how many epochs there were."""
    return f"{epochs} epoch{'s' if epochs != 1 else ''}"


def _said(values: Mapping[str, float]) -> list[str]:
    """The loss, or its terms where the loss itself is not there, and the accuracy on the validation split."""
    terms = {name: value for name, value in values.items() if not name.startswith(("validation_", "grad_norm"))}
    losses = {"loss": terms["loss"]} if "loss" in terms else dict(list(terms.items())[:TERMS])
    texts = [f"{name} {value:.3g}" for name, value in losses.items()]
    if "validation_top1_percent" in values:
        texts.insert(1, f"validation {values['validation_top1_percent']:.2f} %")
    return texts
