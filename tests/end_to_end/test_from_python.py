"""A run from Python and from the command line is the same run, to the last bit and after an interruption."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
import torch
from command_line import CommandLine, Trained, flipped_bit, lasting, newest_step, stock
from safetensors.torch import load_file

import kdzoo
from kdzoo.errors import CorruptError, Interrupted, UnfinishedError
from kdzoo.report import charts
from kdzoo.run import running
from kdzoo.storage.run_folder import RunFolder
from kdzoo.terminal import Display


@pytest.fixture
def fast_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "render", lambda *arguments: "")


def state_of_process() -> tuple:
    return torch.get_num_threads(), torch.get_rng_state().tolist(), signal.getsignal(signal.SIGINT)


@pytest.mark.usefixtures("fast_report")
def test_an_interrupted_run_goes_on_to_the_bits_of_the_command_line(
    cli: CommandLine, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = json.loads(cli.recipe().read_text()), stock(cli.place / "out", trained.folder, "teacher")
    before = state_of_process()

    def interrupt(self: Display, progress: object) -> None:
        if progress.stage == "student" and progress.step == 9:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as asked:
        asked.setattr(Display, "progress", interrupt)
        with pytest.raises(Interrupted, match="the same command goes on from there"):
            kdzoo.run(recipe, out=out, progress=False)
    folder = out / "tiny" / "0001-seed0"
    assert newest_step(folder, "student") in (9, 10)
    with pytest.raises(UnfinishedError, match="with its recipe goes on with it"):
        kdzoo.load(folder)
    run = kdzoo.run(recipe, out=out, progress=False)
    assert run.folder == folder
    assert lasting(run.folder) == lasting(trained.folder)
    assert state_of_process() == before


def test_a_finished_run_is_returned_at_once_and_in_any_thread(cli: CommandLine, trained: Trained) -> None:
    found = []

    def work() -> None:
        found.append(kdzoo.run(cli.recipe(), out=trained.folder.parent.parent, progress=False))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].folder == trained.folder


def test_what_a_run_holds(trained: Trained) -> None:
    run = kdzoo.load(trained.folder)
    assert run.results == json.loads((trained.folder / "results.json").read_text())
    history = run.history()
    rows = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(history) == len(rows) > 0
    assert history.iloc[-1].dropna().to_dict() == rows[-1]
    student = run.student()
    assert not student.training
    weights = load_file(trained.folder / "student.safetensors")
    assert student.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())
    assert student(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert run.report() == trained.folder / "report.html"
    assert run.report().exists()
    shown = run._repr_html_()
    assert f"{run.results['student']['top1_percent']:.2f}" in shown
    assert "No control, no verdict" in shown
    assert "<script" not in shown


def test_a_damaged_run_is_not_opened(trained: Trained) -> None:
    with (
        flipped_bit(trained.folder / "student.safetensors"),
        pytest.raises(CorruptError, match=r"student\.safetensors"),
    ):
        kdzoo.load(Path(trained.folder))


@pytest.mark.usefixtures("fast_report")
def test_a_rejected_file_is_a_warning(trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    rejected = [{"label": "onnx", "file": None, "rejected": ["it answers otherwise"]}]
    monkeypatch.setattr(running, "run_plan", lambda *a, **k: (trained.folder, {"exports": rejected}, True))
    with pytest.warns(UserWarning, match="it answers otherwise"):
        run = kdzoo.run(cli.recipe(), out=trained.folder.parent.parent, progress=False)
    assert RunFolder.view(run.folder).finished
