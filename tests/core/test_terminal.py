"""What reaches the terminal: no control characters, tables that fit, and the numbers of a run."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from kdzoo.report.columns import fitted_text, listed
from kdzoo.terminal import Display, printable, say, width


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
    end_of_epoch: bool = False
    stage: str = "student"
    epochs: int = 2
    step: int = 1
    steps: int = 4
    samples_per_s: float = 1234.0
    shares: dict[str, float] = field(default_factory=lambda: {"data": 0.25, "student": 0.75})


def steps(display: Display) -> str:
    """Two epochs of a stage; returns what the bar said in the second."""
    display.progress(Step(0, {"loss": 2.5, "task": 2.0}))
    display.progress(Step(0, {"loss": 2.0, "validation_top1_percent": 61.5}, end_of_epoch=True))
    display.progress(Step(1, {"loss": 1.5, "task": 1.0}))
    bar = display.live.tasks[0].fields["text"] if display.live else ""
    display.progress(Step(1, {"loss": 1.25, "validation_top1_percent": 71.25}, end_of_epoch=True))
    display.stage("delivery", "evaluating \x1b[2J")
    return bar


def test_a_terminal_shows_loss_and_accuracy_and_keeps_a_line_a_stage() -> None:
    display = Display()
    display.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with display:
        bar = steps(display)
    assert bar == "epoch 2/2  loss 1.5  validation 61.50 %  1234 samples/s  data 25%"
    said = display.console.file.getvalue()  # type: ignore[attr-defined]
    assert "  student: 2 epochs, loss 1.25, validation 71.25 %\n" in said
    assert "delivery: evaluating \\x1b[2J" in said


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (120, "epoch 2/2  task 1  validation 61.50 %  kd 0.5  other 2  1234 samples/s  data 25%  student 75%"),
        (80, "epoch 2/2  task 1  validation 61.50 %  kd 0.5  other 2"),
        (60, "epoch 2/2  task 1  validation 61.50 %"),
        (10, "epoch 2/2"),
    ],
)
def test_a_narrow_terminal_shows_the_first_term_and_the_accuracy(columns: int, text: str) -> None:
    display = Display()
    display.console = Console(file=io.StringIO(), force_terminal=True, width=columns)
    terms = {"task": 1.0, "kd": 0.5, "grad_norm": 9.0, "other": 2.0, "fourth": 3.0}
    with display:
        display.progress(Step(0, terms))
        display.progress(Step(0, {**terms, "validation_top1_percent": 61.5}, end_of_epoch=True))
        display.progress(Step(1, terms))
        assert display.live.tasks[0].fields["text"] == text


def test_a_pipe_gets_a_line_an_epoch() -> None:
    display = Display()
    display.console = Console(file=io.StringIO(), width=100)
    with display:
        steps(display)
    assert display.console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "  student epoch 1/2  loss 2  validation_top1_percent 61.5",
        "  student epoch 2/2  loss 1.25  validation_top1_percent 71.25",
        "delivery: evaluating \\x1b[2J",
    ]


def test_a_silent_display_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(silent=True) as display:
        steps(display)
        display.note("something")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
