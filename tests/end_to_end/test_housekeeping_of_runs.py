"""Runs listed, removed and collected as a user does it; and collected again and again while a real run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Ended, Trained, lasting, results, run_folder, until
from test_refusals import refused

from kdzoo.storage.atomic import write_text
from kdzoo.storage.collection import collect
from kdzoo.storage.store import Store


def collected_meanwhile(
    cli: CommandLine, changes: Mapping[str, Any] | None = None, fault: str | None = None
) -> tuple[Ended, int]:
    """Run the tiny recipe while others' results are stored and collected, with no time left to anything.

    Returns how the run ended, and how often something was removed.
    """
    return collected_beside(cli, "run", cli.recipe(changes), fault=fault)


def collected_beside(cli: CommandLine, *command: Any, fault: str | None = None) -> tuple[Ended, int]:
    """The same of any command that writes runs."""
    out = cli.place / "out"
    running = cli.start(*command, "--out", "out", fault=fault)
    until(lambda: not running.alive or list(out.glob("*/*/uses")), "a folder that names what it needs")
    count = 0
    while running.alive:
        Store(out / ".store").publish("stage", f"junk{count}", lambda place: write_text(place / "a.txt", "x"))
        count += sum(amount.count for amount in collect(out, 0).removed.values())
    return running.wait(), count


def test_a_run_beside_which_others_are_collected_again_and_again_ends_in_the_same_bits(
    cli: CommandLine, trained: Trained
) -> None:
    ended, count = collected_meanwhile(cli)
    assert ended.code == 0, ended
    assert count >= 20, "hardly anything was collected during the run"
    folder = run_folder(cli.place / "out")
    assert lasting(folder) == lasting(trained.folder)
    keys = {stage["key"] for stage in results(folder)["stages"]}
    kept = {path.name[:12] for path in (cli.place / "out" / ".store" / "stage").iterdir()}
    assert keys <= kept, "what a finished run refers to stays"


@pytest.mark.slow
def test_workers_and_answers_of_a_run_lose_nothing_to_who_collects(cli: CommandLine) -> None:
    """Two teachers trained side by side by workers, and their answers stored."""
    changes = {
        "algorithm": {"name": "mt_average"},
        "models": {"teacher": None, "teachers": [{"name": "digits_cnn_tiny"}, {"name": "digits_cnn_small"}]},
        "control": True,
        "cache": {"views": 2},
    }
    whole = cli("run", cli.recipe(changes), "--out", "whole")
    assert whole.code == 0, whole
    ended, count = collected_meanwhile(cli, {**changes, "jobs": 2})
    assert ended.code == 0, ended
    assert "side by side" in ended.err
    assert count >= 20
    expected, found = (lasting(run_folder(cli.place / out)) for out in ("whole", "out"))
    assert {name: found[name] for name in ("student", "metrics")} == {
        name: expected[name] for name in ("student", "metrics")
    }
    kinds = {path.name for path in (cli.place / "out" / ".store").iterdir() if any(path.iterdir())}
    assert {"stage", "teacher_outputs", "test_logits"} <= kinds


@pytest.mark.slow
def test_the_workers_of_a_study_lose_nothing_to_who_collects(cli: CommandLine) -> None:
    recipe = cli.recipe({"control": True})
    study = cli.place / "two.yaml"
    study.write_text(f"version: 1\nname: two\nrecipe: {recipe.name}\nseeds: 1\nalgorithms: [kd, dkd]\n")
    ended, count = collected_beside(cli, "study", study, "--workers", 2)
    assert ended.code == 0, ended
    assert count >= 20
    whole = cli("run", recipe, "--out", "whole")
    assert whole.code == 0, whole
    alone, found = (run_folder(cli.place / out) for out in ("whole", "out"))
    assert (found / "student.safetensors").read_bytes() == (alone / "student.safetensors").read_bytes()
    assert "trained" not in cli("study", study, "--out", "out").err, "everything is there for the next time"


def test_a_run_that_does_not_record_what_it_uses_loses_it(cli: CommandLine) -> None:
    """The negative control of the test above."""
    ended, count = collected_meanwhile(cli, fault="forget_uses")
    assert count >= 3
    assert ended.code != 0, ended


def test_runs_are_listed_removed_and_collected_as_typed(cli: CommandLine, trained: Trained) -> None:
    shutil.copytree(trained.folder.parent.parent, cli.place / "runs")
    folder = Path("runs/tiny") / trained.folder.name
    ended = cli("runs")
    assert ended.code == 0, ended
    assert ended.out.splitlines()[2].split()[:2] == [f"tiny/{folder.name}", "finished"]
    (row,) = json.loads(cli("runs", "tin*", "--json").out)
    assert (row["run"], row["gain_points"]) == (str(folder), None)
    assert row["top1_percent"] == results(trained.folder)["student"]["top1_percent"]
    refused(cli("runs", "tinny"), 2, "runs: no run of a recipe 'tinny'; did you mean 'tiny'? known: tiny")
    stored = len(list((cli.place / "runs" / ".store" / "stage").iterdir()))
    said = cli("gc", "--older", "0").out.splitlines()
    assert said[0] == "nothing to remove in runs"
    assert said[1].startswith("kept ")
    assert cli("rm", folder, "--dry-run").out.startswith(f"would remove {folder}, ")
    assert cli("rm", folder).out.startswith(f"removed {folder}, ")
    refused(cli("rm", folder), 2, f"{folder}: no such run folder")
    assert cli("runs").out == "no runs in runs\n"
    said = cli("gc").out.splitlines()
    assert said[0] == "nothing to remove in runs"
    assert "that nobody needs, used in the last day (--older 0 removes them too), " in said[-1]
    would = cli("gc", "--older", "0", "--dry-run").out
    assert f"would remove {stored} stages, " in would
    assert cli("gc", "--older", "0").out == would.replace("would remove", "removed")
    assert not list((cli.place / "runs" / ".store" / "stage").iterdir())
