"""An algorithm that declares to need no data is handed none, and could not reach it if it tried."""

from __future__ import annotations

import json
from typing import Any

import pytest
from command_line import CommandLine, Trained, run_folder, stock

from kdzoo.zoo.loading import load_zoo

DATA_FREE = sorted(name for name, offer in load_zoo().algorithms.items() if offer.thing.needs.data == "none")


def recipe(algorithm: str) -> dict[str, Any]:
    return {
        "algorithm": {"name": algorithm},
        "train": {"epochs": 2},
        "models": {"student": {"train": {"steps_per_epoch": 3}}},
    }


def started(cli: CommandLine, trained: Trained, algorithm: str, fault: str) -> Any:
    out = stock(cli.place / "out", trained.folder, "teacher")
    return cli("run", cli.recipe(recipe(algorithm)), "--out", out, fault=fault)


def test_the_family_needs_no_data() -> None:
    assert {"dafl", "deep_inversion", "zskt"} <= set(DATA_FREE)


@pytest.mark.parametrize("algorithm", DATA_FREE)
def test_a_run_without_data_asks_for_no_training_batch(cli: CommandLine, trained: Trained, algorithm: str) -> None:
    ended = started(cli, trained, algorithm, "shut_training_data")
    assert ended.code == 0, ended
    assert "student: training" in ended.err
    rows = (run_folder(cli.place / "out") / "metrics.jsonl").read_text().splitlines()
    assert sum('"stage": "student"' in row and '"split": "train"' in row for row in rows) == 2


def test_a_run_with_data_would_be_found_asking(cli: CommandLine, trained: Trained) -> None:
    ended = started(cli, trained, "kd", "shut_training_data")
    assert ended.code == 1
    assert "AssertionError: train_batches was called after the teacher was ready" in ended.err


@pytest.mark.parametrize("algorithm", DATA_FREE)
def test_no_training_image_can_be_reached_from_a_step(cli: CommandLine, trained: Trained, algorithm: str) -> None:
    ended = started(cli, trained, algorithm, "look_for_images")
    assert ended.code == 0, ended
    found = json.loads((cli.place / "reached.json").read_text())
    assert found["objects"] > 300
    assert found["tensors"] > 30, "networks and generator were looked at"
    assert found["images"] == 0


def test_training_images_are_found_where_they_can_be_reached(cli: CommandLine, trained: Trained) -> None:
    ended = started(cli, trained, "kd", "look_for_images")
    assert ended.code == 0, ended
    found = json.loads((cli.place / "reached.json").read_text())
    assert found["images"] >= 32, "at least the batch itself"
