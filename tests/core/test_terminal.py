"""What reaches the terminal: no control characters, tables that fit, and the numbers of a run."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import sys
import termios
from dataclasses import dataclass, field
from typing import Any

import pytest
from rich.console import Console

from kdzoo.report.columns import fitted_text, listed
from kdzoo.terminal import Display, Line, Screen, folded, printable, say, shortened, warn, width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x9b31m \x07 \x7f \r", "\\x9b31m \\x07 \\x7f \\r"),
        ("\udcff", "\\udcff"),
        ("größe 漢字 \N{EN DASH}", "größe 漢字 \N{EN DASH}"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    say(text)
    assert capsys.readouterr().out == shown + "\n"


def test_only_a_terminal_has_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert width() is None
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert width() == 77


# --- tables -------------------------------------------------------------------------------------------


def test_text_wraps_in_its_column() -> None:
    rows = [["one", "family", "words that are many and wrap"], ["another", "f", "few"]]
    assert listed(rows, 32).splitlines() == [
        "one      family  words that are",
        "                 many and wrap",
        "another  f       few",
    ]


def test_a_long_name_keeps_the_list_aligned() -> None:
    assert listed([["one", "a_family_of_many_letters", "x"], ["two", "f", "y"]], None).splitlines() == [
        "one  a_family_of_many_letters  x",
        "two  f                         y",
    ]
    assert listed([], 80) == ""


def test_paragraphs_are_filled_and_items_keep_their_place() -> None:
    text = (
        "A sentence that was written over two lines, each of about the length\nof a page, and so goes on here.\n\n"
        "1. An item that was written over two lines too, as long as a page is\n   wide, and more.\n"
        "2. Another.\n\n  name      value that is long enough to be wrapped\n"
    )
    assert fitted_text(text, 40).splitlines() == [
        "A sentence that was written over two",
        "lines, each of about the length of a",
        "page, and so goes on here.",
        "",
        "1. An item that was written over two",
        "   lines too, as long as a page is wide,",
        "   and more.",
        "2. Another.",
        "",
        "  name      value that is long enough to",
        "    be wrapped",
    ]
    assert fitted_text(text, None) == text


# --- progress -----------------------------------------------------------------------------------------


@dataclass
class Step:
    epoch: int
    values: dict[str, float]
    loss: float | None = 0.5
    end_of_epoch: bool = False
    stage: str = "student"
    epochs: int = 2
    step: int = 1
    steps: int = 4
    samples_per_s: float = 1234.0
    shares: dict[str, float] = field(default_factory=lambda: {"data": 0.25, "student": 0.75})


def on_terminal(screen: Screen, columns: int = 100, rows: int = 25, **options: Any) -> io.StringIO:
    """Give a screen a terminal of a size; returns what is written to it."""
    written = io.StringIO()
    screen.console = Console(file=written, force_terminal=True, width=columns, height=rows, **options)
    return written


def drawn(screen: Screen) -> list[str]:
    """The live lines as they are drawn."""
    return screen._drawn().plain.splitlines()


def steps(display: Display) -> list[str]:
    """Two epochs of a stage; returns what is drawn in the second."""
    display.progress(Step(0, {"task": 2.0}, 2.5))
    display.progress(Step(0, {"task": 2.0, "validation_top1_percent": 61.5}, 2.0, end_of_epoch=True))
    display.progress(Step(1, {"task": 1.0}, 1.5, step=3))
    bar = drawn(display)
    display.progress(Step(1, {"task": 1.0, "validation_top1_percent": 71.25}, 1.25, end_of_epoch=True, step=4))
    display.stage("delivery", "evaluating \x1b[2J")
    return bar


def test_a_terminal_shows_loss_and_accuracy_and_keeps_a_line_an_epoch() -> None:
    display = Display()
    written = on_terminal(display)
    with display:
        [bar] = steps(display)
        assert drawn(display) == []  # the stage is over
    assert bar == (
        "student  \N{BOX DRAWINGS HEAVY HORIZONTAL}".ljust(15, "\N{BOX DRAWINGS HEAVY HORIZONTAL}")
        + "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 2
        + "  epoch 2/2  loss 1.5  validation 61.50 %  1234 samples/s  data 25%  0:00"
    )
    said = written.getvalue()
    assert "  student  epoch 1/2  loss 2  validation 61.50 %\n" in said
    assert "  student  epoch 2/2  loss 1.25  validation 71.25 %\n" in said
    assert "delivery: evaluating \\x1b[2J" in said
    assert said.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, nothing is left of the live line


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (120, "epoch 2/2  loss 0.5  validation 61.50 %  task 1  kd 0.5  other 2  1234 samples/s  data 25%"),
        (80, "epoch 2/2  loss 0.5  validation 61.50 %  task 1"),
        (60, "epoch 2/2  loss 0.5  validation 61.50 %"),
        (40, "epoch 2/2  loss 0.5"),
        (30, "epoch 2/2"),
        (20, "e\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_a_narrow_terminal_shows_the_loss_and_the_accuracy_first(columns: int, text: str) -> None:
    display = Display()
    on_terminal(display, columns)
    terms = {"task": 1.0, "kd": 0.5, "grad_norm": 9.0, "other": 2.0, "fourth": 3.0}
    with display:
        display.progress(Step(0, terms))
        display.progress(Step(0, {**terms, "validation_top1_percent": 61.5}, end_of_epoch=True))
        display.progress(Step(1, terms, step=2))
        [line] = drawn(display)
    assert line[19 if columns > 70 else 9 : -6] == text
    assert len(line) <= columns - 3  # where the terminal writes ^C, no line wraps


@pytest.mark.parametrize("options", [{"force_terminal": False}, {"force_terminal": True, "_environ": {"TERM": "dumb"}}])
def test_a_pipe_and_a_dumb_terminal_get_a_line_an_epoch(options: dict[str, Any]) -> None:
    display = Display()
    display.console = Console(file=io.StringIO(), width=100, **options)
    with display:
        steps(display)
    assert display.console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "  student epoch 1/2  task 2  validation_top1_percent 61.5",
        "  student epoch 2/2  task 1  validation_top1_percent 71.25",
        "delivery: evaluating \\x1b[2J",
    ]


def test_a_silent_display_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(silent=True) as display:
        steps(display)
        display.note("something")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


# --- several live lines -------------------------------------------------------------------------------

LINES = [Line(f"arm-{i} seed 0: student", ("epoch 1/9", "loss 0.5"), i / 8, 65.0) for i in range(9)]


def test_a_screen_shows_a_line_for_each_task_and_counts_those_that_have_no_room() -> None:
    screen = Screen()
    on_terminal(screen, 80, 8)
    with screen:
        screen.show(LINES, "3 of 12 tasks\x1b[2J")
        lines = drawn(screen)
        assert lines[0] == "3 of 12 tasks\\x1b[2J"
        assert [line.split()[0] for line in lines[1:-1]] == ["arm-0", "arm-1", "arm-2", "arm-3"]
        assert lines[-1] == "and 5 more"
        assert lines[3].endswith("  epoch 1/9  loss 0.5  1:05")
        screen.show([Line("waiting"), LINES[8]])
        assert [len(line) for line in drawn(screen)] == [len("waiting") + 16, 58]


def test_of_a_long_name_the_end_is_shown_too() -> None:
    assert shortened("digits-with-a-long-name seed 0: student", 20, 10) == "digits-wi\N{HORIZONTAL ELLIPSIS}0: student"
    assert [shortened("abc", room, 1) for room in range(4)] == [
        "",
        "\N{HORIZONTAL ELLIPSIS}",
        "\N{HORIZONTAL ELLIPSIS}c",
        "abc",
    ]


# --- colour ---------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("asked", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_verdicts_and_errors_have_colours_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], coloured: bool
) -> None:
    for name, value in ({"NO_COLOR": "", "TERM": "xterm"} | asked).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    say("better \x1b[2J", tone="good")
    say("unknown", tone="unknown")
    warn("error: a.yaml: wrong")
    plain = ("better \\x1b[2J\nunknown\n", "error: a.yaml: wrong\n")
    painted = ("\x1b[32mbetter \\x1b[2J\x1b[0m\nunknown\n", "\x1b[31merror:\x1b[0m a.yaml: wrong\n")
    assert (sys.stdout.getvalue(), sys.stderr.getvalue()) == (painted if coloured else plain)  # type: ignore[attr-defined]


def test_long_lines_of_an_error_are_broken_between_words_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "error: a.yaml: 1 problem\n  line 8 algorithm.options.tempreature: unknown key; did you mean 'x'?"
    warn(text)
    assert capsys.readouterr().err == f"{text}\n"
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    warn(text)
    assert sys.stderr.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "error: a.yaml: 1 problem",
        "  line 8 algorithm.options.tempreature:",
        "    unknown key; did you mean 'x'?",
    ]
    assert folded("form      one two three", 18, hanging=10) == "form      one two\n          three"
    screen = Screen()
    written = on_terminal(screen, 20)
    screen.note("warning: a line that is too long")
    assert written.getvalue() == "warning: a line that\n  is too long\n"


def test_a_pipe_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    say("better", tone="good")
    warn("error: wrong")
    assert capsys.readouterr() == ("better\n", "error: wrong\n")


# --- a real terminal --------------------------------------------------------------------------------

LIVE = """
import sys, time
from kdzoo.terminal import Line, Screen, stop_signals
with stop_signals() as stop, Screen() as screen:
    screen.show([Line(f"task {i}", ["epoch 1/9"], 0.5) for i in range(3)], "3 tasks")
    while not stop() or sys.argv[1] == "2":
        time.sleep(0.01)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_after_ctrl_c_the_cursor_is_back_and_nothing_is_left_half_drawn(signals: int) -> None:
    command = [sys.executable, "-c", LIVE, str(signals)]
    pid, terminal = pty.fork()
    if not pid:
        os.environ["TERM"] = "xterm"
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    written, sent = b"", 0
    with contextlib.suppress(OSError):  # Linux: the other end is closed
        while part := os.read(terminal, 65536):
            written += part
            if (b"task 2" in written and not sent) or (b"stopping" in written and sent == 1 < signals):
                os.write(terminal, b"\x03")
                sent += 1
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if signals == 1 else 130)
    end = written[written.rindex(b"task 2") :]
    assert b"\x1b[?25h" in end
    assert end.count(b"\x1b[1A\x1b[2K") >= 3 if signals == 1 else end.endswith(b"\r\x1b[4A\x1b[J\x1b[?25h")
