"""Stored teacher outputs change no bit, are reused for the very same question only, and are never believed blindly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CommandLine, Trained, lasting, results, run_folder, stock
from test_refusals import flip, refused

from kdzoo.storage.atomic import write_tensors
from kdzoo.storage.sealed import read_sealed, read_tensors
from kdzoo.storage.store import Store

STEPS, BATCH = 28, 32
LIVE = {"KDZOO_CACHE": "off"}


def recipe(**changes: Any) -> dict[str, Any]:
    """Two views over three epochs, so that the third sees the first view again."""
    base = {"data": {"augment": "crop_flip"}, "train": {"epochs": 2}, "cache": {"views": 2, "verify_fraction": 1.0}}
    student = {"models": {"student": {"name": "digits_cnn_tiny", "train": {"epochs": 3}}}}
    return {**base, **student, **changes}


def entries(out: Path) -> set[Path]:
    return set((out / ".store" / "teacher_outputs").glob("[0-9a-f]*"))


def hits(folder: Path) -> list[dict[str, int]]:
    return results(folder)["stages"][-1]["teacher_outputs"]


class Cached:
    """A finished run with two stored views and, beside it, the same recipe computed live."""

    def __init__(self, cli: CommandLine) -> None:
        self.cli = cli
        self.recipe = cli.recipe(recipe())
        self.out, self.live = cli.place / "out", cli.place / "live"
        ended = cli("run", self.recipe, "--out", self.live, env=LIVE)
        assert ended.code == 0, ended
        stock(self.out, run_folder(self.live), "teacher")
        ended = cli("run", self.recipe, "--out", self.out)
        assert ended.code == 0, ended


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    return Cached(CommandLine(tmp_path_factory.mktemp("cached")))


def comparable(folder: Path) -> dict[str, Any]:
    """What must not depend on where the answers came from."""
    content = lasting(folder)
    for stage in content["results"]["stages"]:
        stage.pop("teacher_outputs")
    return content


def test_stored_and_live_outputs_give_the_same_student(cached: Cached) -> None:
    with_store, live = run_folder(cached.out), run_folder(cached.live)
    assert len(entries(cached.out)) == 2
    assert not entries(cached.live)
    assert hits(live) == []
    (counted,) = hits(with_store)
    assert counted == {"samples": 3 * STEPS * BATCH, "verified": 3 * STEPS * BATCH}
    assert comparable(with_store) == comparable(live)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"epochs": 1, "steps_per_epoch": 9, "accumulate": 8}, "data": {"augment": "flip", "batch_size": 8}},
        {"precision": "bf16"},
        {"algorithm": {"name": "fitnet"}},
        {"algorithm": {"name": "crd"}, "data": {"augment": "flip", "batch_size": 33}},
    ],
    ids=["parts of one", "bf16", "feature levels", "embeddings, odd batches"],
)
def test_stored_and_live_outputs_are_the_same_for_any_question(cli: CommandLine, changes: dict[str, Any]) -> None:
    path = cli.recipe(recipe(**changes))
    for out, env in (("live", LIVE), ("out", {})):
        if out == "out":
            stock(cli.place / "out", run_folder(cli.place / "live"), "teacher")
        ended = cli("run", path, "--out", out, env=env)
        assert ended.code == 0, ended
    assert hits(run_folder(cli.place / "out"))[0]["verified"] > 0
    assert comparable(run_folder(cli.place / "out")) == comparable(run_folder(cli.place / "live"))


def test_a_second_student_asks_the_teacher_nothing(cached: Cached) -> None:
    changes = recipe(algorithm={"name": "kd", "loss_weights": {"kd": 0.5}})
    changes["cache"]["verify_fraction"] = 0.0
    ended = cached.cli("run", cached.cli.recipe(changes), "--out", cached.out, fault="silent_teacher")
    assert ended.code == 0, ended
    assert "student: training" in ended.err
    assert hits(run_folder(cached.out)) == [{"samples": 3 * STEPS * BATCH, "verified": 0}]
    assert len(entries(cached.out)) == 2
    changes["cache"]["views"] = 3
    ended = cached.cli("run", cached.cli.recipe(changes), "--out", cached.out, fault="silent_teacher")
    assert ended.code == 1, "a third view has to be answered by the teacher"
    assert "AssertionError: the teacher was asked" in ended.err


# --- another question --------------------------------------------------------------------------


@pytest.mark.costly(25)
def test_another_question_is_never_answered_from_the_store(cli: CommandLine, trained: Trained) -> None:
    keys = {stage["name"]: stage["key"] for stage in results(trained.folder)["stages"]}
    (stored,) = (trained.folder.parent.parent / ".store" / "stage").glob(f"{keys['teacher']}*")
    weights = read_tensors(stored / "student.safetensors")
    write_tensors(cli.place / "one.safetensors", weights)
    write_tensors(cli.place / "other.safetensors", {**weights, "linear.bias": weights["linear.bias"] + 1e-6})
    teacher = {"name": "digits_cnn_small", "weights": str(cli.place / "one.safetensors")}
    asked = {
        "data": {"augment": "flip"},
        "train": {"epochs": 1, "steps_per_epoch": 2},
        "cache": {"views": 1},
        "models": {"teacher": teacher},
    }

    def stored_after(**changes: Any) -> int:
        before = entries(cli.place / "out")
        ended = cli("run", cli.recipe({**asked, **changes}), "--out", "out")
        assert ended.code == 0, ended
        assert before <= entries(cli.place / "out")
        return len(entries(cli.place / "out") - before)

    assert stored_after() == 1
    assert stored_after(algorithm={"name": "dkd"}) == 0, "another student asks the same"
    assert stored_after(train={"epochs": 2, "steps_per_epoch": 2}, cache={"views": 1, "verify_fraction": 1.0}) == 0
    assert stored_after(cache={"views": 2}, train={"epochs": 2, "steps_per_epoch": 2}) == 1, "one view more"
    different: dict[str, dict[str, Any]] = {
        "weights": {"models": {"teacher": {**teacher, "weights": str(cli.place / "other.safetensors")}}},
        "normalisation": {"models": {"teacher": {**teacher, "preprocessing": {"mean": [0.3], "std": [0.4]}}}},
        "input size": {"models": {"teacher": {**teacher, "preprocessing": {"size": 16}}}},
        "seed": {"seed": 1},
        "augmentation": {"data": {"augment": "crop_flip"}},
        "samples": {"data": {"augment": "flip", "train_limit": 512}},
        "precision": {"precision": "bf16"},
        "embedding": {"algorithm": {"name": "rkd"}},
    }
    assert {what: stored_after(**changes) for what, changes in different.items()} == dict.fromkeys(different, 1)


# --- damage ------------------------------------------------------------------------------------


@pytest.fixture
def spoiled(cached: Cached, cli: CommandLine) -> list[Path]:
    """A copy of the teacher's two stored views, the student still to be trained; returns their folders."""
    stock(cli.place / "out", run_folder(cached.live), "teacher")
    shutil.copytree(cached.out / ".store" / "teacher_outputs", cli.place / "out" / ".store" / "teacher_outputs")
    return sorted(entries(cli.place / "out"))


def test_a_flipped_bit_is_found(cli: CommandLine, spoiled: list[Path]) -> None:
    file = spoiled[0] / "outputs.safetensors"
    flip(file)
    ended = cli("run", cli.recipe(recipe()), "--out", "out")
    place = file.relative_to(cli.place)
    refused(
        ended,
        3,
        f"stored teacher_outputs: damaged\n  {place}: damaged: its sha256 is not the recorded one\n"
        f"delete {place.parent} and run again",
    )


def test_swapped_views_are_found(cli: CommandLine, spoiled: list[Path]) -> None:
    one, other = spoiled
    one.rename(one.with_name("kept"))
    other.rename(one)
    one.with_name("kept").rename(other)
    ended = cli("run", cli.recipe(recipe()), "--out", "out")
    assert ended.code == 3, ended
    assert f"{one.relative_to(cli.place)}: holds teacher_outputs {other.name}" in ended.err or (
        f"{other.relative_to(cli.place)}: holds teacher_outputs {one.name}" in ended.err
    )


def test_answers_of_other_samples_under_a_right_key_are_found(cli: CommandLine, spoiled: list[Path]) -> None:
    for place in spoiled:  # every hash is right, but two samples' answers are exchanged
        tensors = read_tensors(place / "outputs.safetensors")
        order = torch.arange(len(tensors["logits"]))
        order[[100, 200]] = order[[200, 100]]
        shutil.rmtree(place)
        Store(cli.place / "out" / ".store").publish(
            "teacher_outputs",
            place.name,
            lambda folder, tensors=tensors, order=order: write_tensors(
                folder / "outputs.safetensors", {name: tensor[order] for name, tensor in tensors.items()}
            ),
        )
        assert read_sealed(place / "manifest.json")["key"] == place.name
    ended = cli("run", cli.recipe(recipe()), "--out", "out")
    assert ended.code == 3, ended
    assert "Traceback" not in ended.err
    message = ended.err.splitlines()[-1]
    text = "error: teacher outputs in the store differ from the teacher's own: logits of sample "
    assert message.startswith((f"{text}100, view 0. ", f"{text}200, view 0. ")), message
    assert message.endswith("Delete the folder teacher_outputs of the store (out/.store) and run again")


def test_too_large_a_cache_is_refused_before_any_training(cli: CommandLine) -> None:
    ended = cli(
        "run", cli.recipe(recipe(train={"epochs": 1000}, cache={"views": 1000, "max_gib": 0.01})), "--out", "out"
    )
    refused(
        ended,
        2,
        "cache: 1000 views of the teacher's outputs take 0.0335 GiB, above cache.max_gib: 0.01; lower "
        "cache.views, raise "
        "cache.max_gib, or leave out the cache",
    )
    assert "training" not in ended.err


def test_what_is_stored_is_a_table_of_each_sample(cached: Cached) -> None:
    for place in entries(cached.out):
        files = json.loads((place / "manifest.json").read_text())["files"]
        assert files.keys() == {"outputs.safetensors"}
        assert {name: tuple(t.shape) for name, t in read_tensors(place / "outputs.safetensors").items()} == {
            "logits": (900, 10)
        }
