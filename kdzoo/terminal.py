"""The terminal: text in colour and without control characters, live lines, a run's progress, being asked to stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TextIO

from kdzoo.errors import CONTROL

if TYPE_CHECKING:
    from rich.console import Console

    from kdzoo.study.wanted import Overview

#: How what is said is coloured: a verdict by its tone, errors and warnings by their first word.
COLOURS = {"good": "32", "even": "33", "bad": "31", "error": "31", "warning": "33"}


def say(text: object = "", end: str = "\n", tone: str = "") -> None:
    """Print a text to standard output; on a terminal in the colour of ``tone``, one of COLOURS, if it has one."""
    print(painted(printable(str(text)), tone, sys.stdout), end=end)


def warn(text: object) -> None:
    """Print a text to standard error.

    On a terminal its lines are broken between words, and its first word is coloured if that is error or warning.
    """
    said = printable(str(text))
    if sys.stderr.isatty():
        said = folded(said, shutil.get_terminal_size().columns)
    first, colon, rest = said.partition(":")
    print(painted(first + colon, first, sys.stderr) + rest, file=sys.stderr)


def painted(text: str, tone: str, stream: TextIO) -> str:
    """Return a printable text in the colour of a tone, for a terminal; for a file, a pipe or without colour as it is.

    ``NO_COLOR`` (https://no-color.org), ``TERM=dumb`` and ``kdzoo --no-color`` ask for no colour.
    """
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in ("dumb", "unknown")
    if plain or tone not in COLOURS or not stream.isatty():
        return text
    return f"\x1b[{COLOURS[tone]}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Escape what a terminal would take for a command; lines and tabs stay."""
    return CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found[0]), text)


def folded(text: str, columns: int | None, hanging: int = 2) -> str:
    """Break lines longer than ``columns`` between words; what goes on is indented by ``hanging`` more."""
    if columns is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + hanging)
        lines += (
            textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
            if len(line) > columns
            else [line]
        )
    return "\n".join(lines)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def width() -> int | None:
    """Return the columns of the terminal that standard output is; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


# --- being asked to stop ------------------------------------------------------------------------------

_asked: list[int] = []  # signals that were caught
_screens: list[Screen] = []  # that are live


@contextlib.contextmanager
def stop_signals(exits: bool = True) -> Iterator[Callable[[], int]]:
    """Turn SIGINT and SIGTERM into a flag; a second one stops at once, its state the last checkpoint.

    That ends the process, or, without ``exits``, raises KeyboardInterrupt.
    """
    _asked.clear()

    def note(number: int, frame: Any) -> None:
        if _asked:
            for screen in _screens:
                screen.wipe()
            if not exits:
                raise KeyboardInterrupt
            os._exit(128 + number)
        _asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: _asked[0] if _asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


# --- what goes on ---------------------------------------------------------------------------------------

BAR = 8  # columns of a bar
BAR_FROM = 68  # columns of a line that has room for one
GAP = 2  # columns between two parts of a line
TERMS = 3  # that are shown of several
ECHO = 2  # columns of the ^C that a terminal writes where the cursor is
REFRESHES = 4  # of the live lines in a second
STOPPING = "stopping as soon as the state is saved; Ctrl-C again stops at once, the state is the last checkpoint"


@dataclass(frozen=True)
class Line:
    """A live line: what it is about, what there is to say, the most important first, and how far it is.

    ``share`` is done, 0 to 1; None shows no bar. Where the line is too long, the last parts are left out.
    """

    name: str
    parts: Sequence[str] = ()
    share: float | None = None
    seconds_left: float | None = None


class Screen:
    """Lines on standard error that change while work goes on, and lines that stay above them.

    Not a terminal, or a dumb one: only the lines that stay. ``silent`` shows nothing: of several processes only the
    first speaks. ``console`` takes the place of standard error. May be shown to from one thread.
    """

    def __init__(self, silent: bool = False, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True, quiet=silent, force_terminal=sys.stderr.isatty())
        self.lines: Sequence[Line] = ()
        self.head = ""
        self._live: Any = None
        self._height = 1  # of what is drawn
        self._over = False

    @property
    def live(self) -> bool:
        """Whether there are live lines; if not, say what matters with ``note``."""
        return self._live is not None

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.is_dumb_terminal and not self.console.quiet:
            from rich.live import Live

            self._live = Live(
                get_renderable=self._drawn, console=self.console, refresh_per_second=REFRESHES, transient=True
            )
            self._live.start()
            _screens.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self.show()
            self._live.stop()
            self._live = None
            _screens.remove(self)

    def note(self, text: str, tone: str = "") -> None:
        """Print a line that stays."""
        style = {"good": "green", "even": "yellow", "warning": "yellow", "bad": "red", "error": "red"}.get(tone)
        said = folded(printable(text), self.console.width if self.console.is_terminal else None)
        self.console.print(said, style=style, markup=False, highlight=False, soft_wrap=True)

    def show(self, lines: Sequence[Line] = (), head: str = "") -> None:
        """Replace the live lines, and the line above them; more than the terminal has rows for are counted."""
        self.lines, self.head = lines, head

    def wipe(self) -> None:
        """Erase the live lines for good and bring the cursor back; for a process that ends at once."""
        self._over = True
        time.sleep(0.1)  # for what is being drawn
        up = f"\x1b[{self._height - 1}A" if self._height > 1 else ""
        with contextlib.suppress(OSError, RuntimeError):  # what a signal came in the middle of
            self.console.file.write(f"\r{up}\x1b[J\x1b[?25h")
            self.console.file.flush()

    def _drawn(self) -> Any:
        from rich.text import Text

        while self._over:
            time.sleep(1)
        columns, rows = self.console.width - ECHO - 1, max(self.console.height - 2, 1)
        text = Text("\n", no_wrap=True, overflow="crop").join(
            [
                *([Text(shortened(printable(self.head), columns))] if self.head else []),
                *self._drawn_lines(columns, rows - bool(self.head) - bool(_asked)),
                *([Text(shortened(STOPPING, columns), style="yellow")] if _asked else []),
            ]
        )
        self._height = text.plain.count("\n") + 1
        return text

    def _drawn_lines(self, columns: int, rows: int) -> Iterator[Any]:
        from rich.text import Text

        shown = self.lines if len(self.lines) <= rows else self.lines[: max(rows - 1, 0)]
        names = max((min(len(printable(line.name)), columns // 2) for line in shown), default=0)
        times = any(line.seconds_left is not None for line in shown)
        for line in shown:
            drawn = Text(shortened(printable(line.name), names, names // 2).ljust(names + GAP))
            if line.share is not None and columns >= BAR_FROM:
                filled = round(BAR * min(max(line.share, 0.0), 1.0))
                full, rest = "\N{BOX DRAWINGS HEAVY HORIZONTAL}", "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
                if not self.console.encoding.startswith("utf"):
                    full, rest = "#", "-"
                drawn.append(full * filled, "cyan").append(rest * (BAR - filled), "bright_black").append(" " * GAP)
            time_left = clock(line.seconds_left) if line.seconds_left is not None else ""
            room = columns - len(drawn.plain) - (GAP + len(time_left) if times else 0)
            drawn.append(fitting([printable(part) for part in line.parts], room))
            yield drawn.append(" " * GAP).append(time_left, "cyan") if time_left else drawn
        if len(shown) < len(self.lines):
            yield Text(f"and {len(self.lines) - len(shown)} more")


def fitting(parts: Sequence[str], room: int) -> str:
    """As many of the parts as there is room for, from the first on; of that one at least the beginning."""
    kept = list(parts)
    while len(text := (" " * GAP).join(kept)) > room and len(kept) > 1:
        kept.pop()
    return shortened(text, room)


def shortened(text: str, room: int, end: int = 0) -> str:
    """A text of at most so many characters; of a longer one the last ``end`` are among them."""
    if len(text) <= room:
        return text
    begin = max(room - 1 - end, 0)
    return (text[:begin] + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - end :])[: max(room, 0)]


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, e.g. 1:02:03 or 0:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_line(name: str, progress: Mapping[str, Any], seconds_left: float | None = None) -> Line:
    """A live line from the fields of a training step's ``Progress``; all but step, steps, epoch and epochs may lack."""
    values, rate, shares = progress.get("values", {}), progress.get("samples_per_s"), progress.get("shares", {})
    parts = [f"epoch {progress['epoch'] + 1}/{progress['epochs']}", *_said(progress.get("loss"), values)]
    parts += [f"{rate:.0f} samples/s"] if rate else []
    parts += [f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005]
    return Line(name, parts, progress["step"] / progress["steps"], seconds_left)


class Display(Screen):
    """The progress of a run: on a terminal a live bar; a line an epoch stays."""

    def __init__(self, silent: bool = False, console: Console | None = None) -> None:
        super().__init__(silent, console)
        self._stage = ""
        self._begin = (0.0, 0)  # of the stage: time, and steps that were done before
        self._validated: Mapping[str, float] = {}  # at the end of the last epoch

    def stage(self, name: str, state: str) -> None:
        """Say what happens to a stage."""
        self.show()
        self.note(f"{name}: {state}")

    def progress(self, progress: Any) -> None:
        """Show a training step, or the means of an epoch at its end."""
        values = progress.values
        if not self.live:
            if progress.end_of_epoch:
                said = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
                self.note(f"  {progress.stage} epoch {progress.epoch + 1}/{progress.epochs}  {said}")
            return
        now = time.monotonic()
        if progress.stage != self._stage:
            self._stage, self._begin, self._validated = progress.stage, (now, progress.step), {}
        if progress.end_of_epoch:
            self._validated = {name: value for name, value in values.items() if name.startswith("validation_")}
            parts = [f"epoch {progress.epoch + 1}/{progress.epochs}", *_said(progress.loss, values)]
            begin = f"  {progress.stage}  "
            if progress.epoch + 1 == progress.epochs:
                self.show()
            self.note(begin + fitting(parts, self.console.width - len(begin)))
            return
        begun, before = self._begin
        done = progress.step - before
        left = (now - begun) / done * (progress.steps - progress.step) if done else None
        fields = {**vars(progress), "values": {**values, **self._validated}}
        self.show([progress_line(progress.stage, fields, left)])


def _said(loss: float | None, values: Mapping[str, float]) -> list[str]:
    """The loss, the accuracy on the validation split, and the terms of the loss where it has several."""
    terms = {name: value for name, value in values.items() if not name.startswith(("validation_", "grad_norm"))}
    texts = [] if loss is None else [f"loss {loss:.3g}"]
    if "validation_top1_percent" in values:
        texts.append(f"validation {values['validation_top1_percent']:.2f} %")
    shown = list(terms.items())[:TERMS] if loss is None or len(terms) > 1 else []
    return texts + [f"{name} {value:.3g}" for name, value in shown]


class StudyScreen(Screen):
    """One screen for all tasks that go on; what ended stays as a line."""

    def overview(self, overview: Overview) -> None:
        head = f"{overview.trained} of {overview.stages} stages, {overview.finished} of {overview.runs} runs"
        if overview.failed:
            head += f", {overview.failed} failed"
        self.show([_task_line(each.name, each.told) for each in overview.going], head)


def _task_line(name: str, told: Any) -> Line:
    if "step" in told:
        return progress_line(name, told)
    return Line(name, [f"{told['stage']}: {told['state']}"] if told else ["waits"])
