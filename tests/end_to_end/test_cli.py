"""Every command, as it is typed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import RECIPES, CommandLine, Trained, base_environment, results, run_folder
from safetensors.torch import load_file
from test_refusals import refused

from kdzoo.cli import looking
from kdzoo.storage.run_folder import RunFolder
from kdzoo.testing.checks import ALL

COMMANDS = {"run", "check", "show", "list", "schema", "plugins", "report", "compare", "export", "verify"}
COMMANDS |= {"test-plugin", "verify-run", "new", "suggest", "runs", "rm", "gc", "study"}


def built_in() -> set[str]:
    return {entry.name for entry in metadata.entry_points(group="kdzoo") if entry.dist and entry.dist.name == "kdzoo"}


@pytest.fixture
def finished(cli: CommandLine, trained: Trained) -> Path:
    """A copy of the finished run with its store, for this test alone; returns its folder."""
    shutil.copytree(trained.folder.parent.parent, cli.place / "out")
    return run_folder(cli.place / "out")


# --- fast --------------------------------------------------------------------------------------


def test_help_is_there_at_once_and_without_torch(cli: CommandLine) -> None:
    took = []
    for _ in range(5):
        begin = children()
        ended = cli.cold("--help")
        took.append(children() - begin)
        assert ended.code == 0, ended
    assert statistics.median(took) < 0.3, f"processor seconds: {took}"
    ended = cli.cold("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.split("|")[-1].strip() for line in ended.err.splitlines()}
    assert "kdzoo.cli" in imported
    assert not imported & {"torch", "timm", "numpy", "pydantic", "yaml", "kdzoo.zoo.loading", "matplotlib"}
    for name in COMMANDS:
        assert f" {name} " in ended.out


LOOKING = (
    "list",
    "list models",
    "show kd",
    "plugins",
    "schema",
    "new algorithm mimic",
    "new recipe mine --algorithm kd",
)


@pytest.mark.costly(20)
def test_looking_takes_a_moment_and_no_torch(cli: CommandLine) -> None:
    assert cli.cold("list").code == 0  # the catalogue is there from now on
    for command in LOOKING:
        ended, seconds = timed(cli, *command.split())
        assert ended.code == 0, ended
        assert seconds < 1, f"{command}: {seconds:.2f} processor seconds"


MISTAKES = {
    "key": ({"trian": {"epochs": 1}}, "trian: unknown key; did you mean 'train'?"),
    "algorithm": ({"algorithm": {"name": "kdd"}}, "algorithm.name: unknown algorithm 'kdd'; did you mean 'kd'?"),
    "option": (
        {"algorithm": {"options": {"tempreature": 2}}},
        "algorithm.options.tempreature: unknown key; did you mean 'temperature'?",
    ),
    "data": ({"data": {"name": "digitz"}}, "data.name: unknown data set 'digitz'; did you mean 'digits'?"),
}


def test_a_mistake_in_a_recipe_is_said_in_a_moment_and_without_torch(cli: CommandLine) -> None:
    assert cli.cold("list").code == 0
    for case, (change, message) in MISTAKES.items():
        ended, seconds = timed(cli, "check", cli.recipe(change))
        assert ended.code == 2, ended
        assert message in ended.err
        assert seconds < 1, f"{case}: {seconds:.2f} processor seconds"
    typed = "new recipe mine --data nowhere --teacher resnet18 --student resnet10t"
    ended, seconds = timed(cli, *typed.split())
    assert ended.code == 8, ended
    assert "error: nowhere: no such folder" in ended.err
    assert seconds < 1, f"{seconds:.2f} processor seconds"


def timed(cli: CommandLine, *arguments: object) -> tuple[Any, float]:
    """Run a command in a fresh interpreter; return how it ended and its processor seconds; torch must not be there."""
    begin = children()
    ended = cli.cold(*arguments, env={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.split("|")[-1].strip() for line in ended.err.splitlines() if line.startswith("import time:")}
    assert "kdzoo.zoo.catalogue" in imported
    assert not imported & {"torch", "timm", "numpy", "kdzoo_response"}
    return ended, children() - begin


def children() -> float:
    """Processor time of the children that ended, in seconds: what a busy machine does not stretch."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", sorted(COMMANDS | {"new algorithm", "new recipe"}))
def test_each_command_has_help(cli: CommandLine, command: str) -> None:
    ended = cli(*command.split(), "--help")
    assert ended.code == 0, ended
    assert ended.out.strip().startswith("Usage: kdzoo " + command)


def test_the_version_is_that_of_the_package(cli: CommandLine) -> None:
    assert cli("--version").out == f"kdzoo {metadata.version('kdzoo')}\n"


@pytest.mark.parametrize(
    "arguments", [["runn"], ["run"], ["run", "x.yaml", "--unknown"], ["list", "--json=1"], ["new", "thing"]]
)
def test_wrong_usage_ends_with_2_and_no_traceback(cli: CommandLine, arguments: list[str]) -> None:
    ended = cli(*arguments)
    assert ended.code == 2, ended
    assert "─ Error ─" in ended.err
    assert "Traceback" not in ended.err


def test_a_recipe_or_run_that_is_not_there_is_one_error(cli: CommandLine) -> None:
    for name, close in (("kd", "digits/kd"), ("digits/fitnets", "digits/fitnet"), ("quickstar", "quickstart")):
        expected = f"recipe '{name}': no file and no bundled recipe; did you mean '{close}'?"
        refused(cli("check", name), 2, f"{expected} `kdzoo list recipes` names those")
    refused(cli("check", "qqqqq"), 2, "recipe 'qqqqq': no file and no bundled recipe; `kdzoo list recipes` names those")
    refused(cli("export", "nowhere"), 2, "nowhere: no such run folder")


def test_a_traceback_is_shown_when_it_is_asked_for(cli: CommandLine) -> None:
    refused(cli("show", "nowhere.yaml"), 2, "nowhere.yaml: no such file")
    for where in (["--debug", "show", "nowhere.yaml"], ["show", "nowhere.yaml", "--debug"]):
        ended = cli(*where)
        assert ended.code == 1
        assert "Traceback" in ended.err
        assert "RecipeError" in ended.err


def test_a_reader_that_leaves_early_is_no_error(cli: CommandLine) -> None:
    command = [sys.executable, "-m", "kdzoo", "show", RECIPES / "quickstart.yaml"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **base_environment()}
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read().decode()
    assert "Traceback" not in error
    assert "BrokenPipe" not in error


# --- recipes -----------------------------------------------------------------------------------


def test_check_builds_all_and_says_what_a_run_would_do(cli: CommandLine) -> None:
    changes = {"algorithm": {"name": "fitnet"}, "control": True}
    ended = cli("check", cli.recipe(changes))
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "data",
        "teacher",
        "student",
        "paired",
        "paired",
        "form",
        "steps",
        "forward",
    ]
    assert lines[0] == "data      digits: 10 classes, train 900, validation 100"
    assert "form      test split of 797 samples: form checked, content not used before the end" in lines
    assert any(line.startswith("steps     2 epochs of 28 steps, on cpu") for line in lines)
    assert lines[-1].startswith("forward   task 2.")
    assert not (cli.place / "runs").exists(), "checking writes nothing"


def test_a_ready_teacher_is_judged_by_what_its_file_states(cli: CommandLine, trained: Trained) -> None:
    weights = trained.folder / "student.safetensors"
    top1 = results(trained.folder)["student"]["top1_percent"]
    ready = {"name": "digits_cnn_tiny", "weights": str(weights)}
    ended = cli("check", cli.recipe({"models": {"teacher": ready}}))
    assert ended.code == 0, ended
    lines = {line.split()[0]: line for line in ended.out.splitlines()}
    assert "warning" not in lines
    assert lines["weights"] == f"weights   teacher 0: student.safetensors, {top1:.2f} % stated by results.json"
    stated = f"results.json states {top1:.2f} %"
    assert lines["accuracy"].endswith(
        " % of 100 validation images, held out of train, so it may have learnt them; naming the most common class "
        f"would reach 10.00 %; {stated}"
    )
    torch.save({"state_dict": load_file(weights), "metric": 99.95}, cli.place / "best.pth.tar")
    ready["weights"] = "best.pth.tar"
    recipe = cli.recipe({"models": {"teacher": ready}, "control": True, "train": {"epochs": 1}})
    first = cli("check", recipe).out.splitlines()[0]
    assert first.startswith("warning   teacher 0: ")
    assert "far below the 99.95 % that best.pth.tar states. Look at its preprocessing" in first
    ended = cli("run", recipe, "--out", "out")
    assert ended.code == 0, ended
    folder = run_folder(cli.place / "out")
    assert any("far below the 99.95 % that best.pth.tar states" in text for text in results(folder)["warnings"])
    for file in ("report.html", "README.md"):
        assert "The teacher is far below what its file states" in (folder / file).read_text()


def test_show_fills_in_every_default_and_what_it_prints_can_be_run(cli: CommandLine) -> None:
    ended = cli("show", RECIPES / "quickstart.yaml", "-o", "train.epochs=7")
    assert ended.code == 0, ended
    shown = yaml.safe_load(ended.out)
    assert shown["train"]["epochs"] == 7
    assert shown["train"]["optimizer"]["momentum"] == 0.9
    assert shown["control"] is True
    (cli.place / "whole.yaml").write_text(ended.out)
    assert cli("show", "whole.yaml").out == ended.out
    assert cli("show", "quickstart").out == cli("show", "recipes/quickstart.yaml").out, "bundled ones by name"


def test_show_tells_what_an_algorithm_is(cli: CommandLine) -> None:
    ended = cli("show", "kd")
    assert ended.code == 0, ended
    for text in ("temperature", "https://arxiv.org/abs/1503.02531", "task", "0.9"):
        assert text in ended.out
    ended = cli("show", "kdd")
    assert ended.code == 2
    assert ended.err.startswith("error: unknown algorithm 'kdd'; did you mean 'kd'? known: ")


def test_the_schema_accepts_every_bundled_recipe(cli: CommandLine) -> None:
    ended = cli("schema")
    assert ended.code == 0, ended
    schema = json.loads(ended.out)
    assert schema["properties"].keys() >= {"algorithm", "models", "data", "train"}
    assert "temperature" in ended.out


@pytest.mark.parametrize("kind", looking.KINDS)
def test_list_prints_objects(cli: CommandLine, kind: str) -> None:
    ended = cli("list", kind, "--json")
    assert ended.code == 0, ended
    rows = json.loads(ended.out)
    assert len(rows) >= {"algorithms": 10, "models": 10, "datasets": 3, "recipes": 10}.get(kind, 1)
    for row in rows:
        assert row.keys() >= {"name", "family", "plugin", "version", "description"}
        assert row["plugin"] in built_in() or kind == "recipes"
    names = [row["name"] for row in rows]
    assert names == sorted(set(names))
    plain = cli("list", kind).out.splitlines()
    assert [line.split()[0] for line in plain] == names


def test_list_refuses_another_kind(cli: CommandLine) -> None:
    known = "known: algorithms, models, datasets, exporters, quantizers, trackers, executors, recipes"
    refused(cli("list", "algorithm"), 2, f"list: unknown kind 'algorithm'; did you mean 'algorithms'? {known}")
    refused(cli("list", "wishes"), 2, f"list: unknown kind 'wishes'; {known}")


def test_plugins_tells_that_each_loads(cli: CommandLine) -> None:
    rows = json.loads(cli("plugins", "--json").out)
    assert {row["name"] for row in rows} >= built_in() >= {"response", "vision", "export"}
    assert {row["status"] for row in rows if row["name"] in built_in()} == {"ok"}
    assert rows[0].keys() == {"name", "distribution", "version", "status", "cause"}
    only = cli("plugins", "--json", env={"KDZOO_PLUGINS": "response,vision"})
    disabled = {row["name"] for row in json.loads(only.out) if row["status"] == "disabled"}
    assert disabled == {row["name"] for row in rows} - {"response", "vision"}


@pytest.mark.costly(20)
def test_a_conforming_algorithm_passes_every_check(cli: CommandLine) -> None:
    ended = cli("test-plugin", "kd", "--json")
    assert ended.code == 0, ended
    rows = json.loads(ended.out)
    assert [row["check"] for row in rows] == [check.__name__ for check in ALL]
    assert {row["status"] for row in rows} <= {"passed", "vacuous"}
    assert sum(row["status"] == "passed" for row in rows) >= 18


def test_a_new_recipe_runs_as_it_is(cli: CommandLine) -> None:
    ended = cli("new", "recipe", "mine", "--algorithm", "dkd")
    assert ended.code == 0, ended
    assert ended.out == "mine.yaml\n"
    assert cli("check", "mine.yaml").code == 0
    shown = yaml.safe_load(cli("show", "mine.yaml").out)
    assert (shown["name"], shown["algorithm"]["name"]) == ("mine", "dkd")
    refused(cli("new", "recipe", "mine"), 4, "mine.yaml: exists already; nothing was written")
    assert yaml.safe_load(cli("show", "mine.yaml").out) == shown


# --- finished runs -----------------------------------------------------------------------------


def test_a_report_can_be_written_again(cli: CommandLine, finished: Path) -> None:
    page = finished / "report.html"
    plain, again = page.read_bytes(), b""
    for _ in range(2):
        page.unlink()
        ended = cli("report", finished, pictures=True)
        assert ended.code == 0, ended
        assert ended.out == f"{page}\n"
        again = again or page.read_bytes()
    assert page.read_bytes() == again
    assert again.count(b"<svg") > plain.count(b"<svg")
    refused(cli("report", "."), 2, ".: not a run folder: it holds no run.json")


def test_compare_puts_runs_side_by_side(cli: CommandLine, finished: Path) -> None:
    ended = cli("run", cli.recipe({"name": "tiny", "algorithm": {"loss_weights": {"kd": 0.5}}}), "--out", "out")
    assert ended.code == 0, ended
    second = run_folder(cli.place / "out")
    ended = cli("compare", finished, second)
    assert ended.code == 0, ended
    for folder in (finished, second):
        assert f"{results(folder)['student']['top1_percent']:.2f}" in ended.out
    refused(cli("compare", finished), 2, "compare: needs at least two runs, got 1")


def test_export_adds_a_verified_file_and_the_run_still_verifies(cli: CommandLine, finished: Path) -> None:
    ended = cli("export", finished, "--quantize", "int8")
    assert ended.code == 0, ended
    entry = json.loads(ended.out)
    assert (entry["label"], entry["file"]) == ("onnx int8", "student.int8.onnx")
    assert (finished / "export" / "student.int8.onnx").stat().st_size > 0
    student = results(finished)["student"]["top1_percent"]
    assert abs(entry["top1_percent"] - student) < 5
    files = json.loads((finished / "manifest.json").read_text())["files"]
    assert "export/student.int8.onnx" in files
    assert cli("report", finished).code == 0
    assert RunFolder.view(finished).verify() == len(files)
    (finished / "student.safetensors").write_bytes(b"x" + (finished / "student.safetensors").read_bytes()[1:])
    ended = cli("export", finished)
    assert ended.code == 3, ended
    assert "student.safetensors: damaged: its sha256 is not the recorded one" in ended.err


def test_a_finished_run_goes_on_with_other_exports(cli: CommandLine, finished: Path) -> None:
    before, student = results(finished), (finished / "student.safetensors").read_bytes()
    ended = cli("run", cli.recipe({"export": [{"format": "onnx"}]}), "--out", "out")
    assert ended.code == 0, ended
    assert f"resuming {finished.relative_to(cli.place)}" in ended.err
    assert run_folder(cli.place / "out") == finished, "no other run was begun"
    after = results(finished)
    assert [stage["key"] for stage in after["stages"]] == [stage["key"] for stage in before["stages"]]
    assert ended.err.count("taken from the store") == len(after["stages"]), "nothing was trained"
    assert [entry["file"] for entry in after["exports"]] == ["student.onnx"] != before["exports"]
    assert (finished / "student.safetensors").read_bytes() == student
    assert RunFolder.view(finished).verify() > 0
    ended = cli("run", cli.recipe(), "--out", "out", "--resume")
    assert ended.code == 0, ended
    assert (results(finished)["exports"], (finished / "export").exists()) == ([], False)


EXPECTED: dict[str, Any] = {"train": {"epochs": 1}, "expected": {"top1_percent": 5.0, "std": 0.5, "seeds": 2}}


@pytest.mark.costly(60)
def test_verify_holds_the_seeds_against_what_is_expected(cli: CommandLine) -> None:
    path = cli.recipe(EXPECTED)
    ended = cli("verify", path, "--out", "out")
    assert ended.code == 0, ended
    assert [line.split(":")[0] for line in ended.out.splitlines()[:2]] == ["seed 0", "seed 1"]
    assert ended.out.splitlines()[-1] == "reproduced"
    assert {path.name[4:] for path in (cli.place / "out" / "tiny").iterdir()} == {"-seed0", "-seed1"}
    path = cli.recipe({**EXPECTED, "expected": {"top1_percent": 99.0, "std": 0.5, "seeds": 2}})
    ended = cli("verify", path, "--out", "out")
    refused(ended, 1, f"{path}: the published result was not reproduced")
    assert "NOT reproduced: " in ended.out
    assert ": trained" not in ended.err, "what is expected does not decide a stage's bits"
    assert "seed 0: finished" in ended.err
    ended = cli("run", path, "--seeds", "2", "--new", "--seed", "1")
    assert ended.code == 2, ended
    assert "--seed, --new: cannot be combined with --seeds" in ended.err
    ended = cli("verify", path, "--seeds", "0")
    assert ended.code == 2, ended
    assert "Input should be greater than or equal to 1" in ended.err
    assert not ended.out
    path = cli.recipe()
    refused(
        cli("verify", path),
        2,
        f"{path}: has no 'expected' section, so there is nothing to verify; it was never reproduced",
    )
