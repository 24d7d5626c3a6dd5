"""A folder of answers stands for its teacher, answers one question only, and is written once however often it stops."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from tiny_algorithms import PAPER, Match
from torch import Tensor

from kdzoo.api import Needs, StepContext
from kdzoo.contract.step import Batch
from kdzoo.data.data_set import DataSet
from kdzoo.errors import ContractError, CorruptError, Interrupted, KdzooError, ModelError, NeedsError, OutputError
from kdzoo.recipe.problems import explain
from kdzoo.recipe.sections import Recipe
from kdzoo.run import builder
from kdzoo.run.control import Quiet
from kdzoo.run.runner import Runner
from kdzoo.run.teacher_answers import answer_recipe
from kdzoo.storage import atomic
from kdzoo.storage.answer_folder import AnswerFolder
from kdzoo.storage.sealed import read_tensors
from kdzoo.testing.tiny import TEACHER, TINY, tiny_recipe, tiny_runner
from kdzoo.training import stored_answers
from kdzoo.training.engine import Engine
from kdzoo.training.teacher import CachedTeacher
from kdzoo.zoo.loading import load_zoo

CACHE = {"views": 2, "keep": {"top_k": 2}}


class Likeliest(Match):
    """Reads the likeliest classes of its teacher."""

    name, paper, needs = "likeliest", PAPER, Needs(of_teacher="top_k")
    default_weights: ClassVar = {"task": 1.0, "match": 0.01}


class AllClasses(Match):
    name, needs = "all_classes", Needs(of_teacher="logits")


class Asking(Likeliest):
    """Declares less than it asks for."""

    name = "asking"

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        assert "teacher" not in ctx.modules
        return {"match": ctx.networks["teacher"](ctx.batch.inputs).logits.mean()}


class Screen(Quiet, contextlib.nullcontext):  # type: ignore[type-arg]
    """A display that shows nothing."""


def runner(root: Path, answers: Path | None = None, cls: type = Likeliest, **changes: Any) -> Runner:
    """A run of 48 samples in 2 views, of a teacher that is trained, or of its answers."""
    weights = "train" if answers is None else f"answers:{answers}"
    # One epoch, so that its weights do not depend on the number of views.
    teacher = {"name": TINY, "args": TEACHER, "weights": weights, "train": {"epochs": 1}}
    base = {"cache": CACHE, "train": {"epochs": 3}, "data": {"augment": "crop_flip"}}
    return tiny_runner(cls, load_zoo(), root, {**base, "models": {"teachers": [teacher]}, **changes})


def answer(root: Path, out: Path, stop: Any = lambda: 0, **changes: Any) -> list[Path]:
    of = runner(root, **changes)
    return answer_recipe(of.plan, of.zoo, out, root, Screen(), stop)


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    """Shards of two chunks of 8, so that 48 samples take three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdzoo.training.teacher.SHARD_SAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of answers; not to be changed."""
    root = tmp_path_factory.mktemp("answered")
    (folder,) = answer(root / "runs", root / "answers")
    return folder


@pytest.fixture
def copied(answered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(answered, tmp_path / "copied"))


def student(of: Runner) -> dict[str, Tensor]:
    """The weights of a run's student, bit by bit."""
    of.run()
    return read_tensors(of.stages[-1].result.weights["student"])


def test_a_student_of_stored_answers_is_that_of_the_teacher(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def build_network(spec: Any, **settings: Any) -> Any:
        built.append(spec.weights)
        return made(spec, **settings)

    made = builder.build_network
    local = student(runner(answered.parent / "runs"))
    monkeypatch.setattr(builder, "build_network", build_network)
    away = runner(tmp_path, answered)
    weights = student(away)
    assert weights.keys() == local.keys()
    assert all(torch.equal(weights[name], local[name]) for name in local)
    assert built
    assert not [text for text in built if text.startswith("answers:")]
    assert away.stages[0].facts["imported"] == f"answers:{answered}"
    assert away.stages[-1].facts["teacher_outputs"] == [{"samples": 3 * 4 * 8, "verified": 0}]
    assert away.stages[-1].facts["answers"] == [{"classes": 4, "top_k": 2, "dtype": "float16"}]


def test_its_teacher_is_shown_as_it_was_measured_when_it_answered(answered: Path, tmp_path: Path) -> None:
    there, here = runner(answered.parent / "runs").run(), runner(tmp_path, answered).run()
    for name in ("label", "network", "model", "top1_percent", "nll", "params_m", "macs_g", "size_mib"):
        assert here["teacher"][name] == there["teacher"][name]
    assert here["teacher"]["latency_ms"] is None
    for name in ("top1_percent", "agreement_percent"):
        assert here["student"][name] == there["student"][name]
    assert (here["teacher"]["agreement_percent"], here["warnings"]) == (100.0, there["warnings"])


def test_another_test_split_than_the_teachers_is_told(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataSet, "test_fingerprint", "another")
    results = runner(tmp_path, answered).run()
    assert results["student"]["agreement_percent"] is None
    assert "the test split is another than the one on which the teacher was measured when it answered" in str(
        results["warnings"]
    )


def test_a_check_says_what_the_folder_holds(answered: Path, tmp_path: Path) -> None:
    (line,) = [line for line in runner(tmp_path, answered).check() if line.startswith("teacher")]
    assert "stored answers, 2 views of 48 samples, the 2 likeliest of 4 classes, 10 bytes each; " in line


OTHER: dict[str, tuple[Mapping[str, Any], str]] = {
    "seed": ({"seed": 1}, "\n  seed: 0 in the folder, 1 now\n"),
    "augmentation": ({"data": {"augment": "flip"}}, "\n  data.augment: 'crop_flip' in the folder, 'flip' now\n"),
    "limit": (
        {"data": {"augment": "crop_flip", "train_limit": 40}},
        "\n  data.train_limit: nothing in the folder, 40 now",
    ),
    "data": ({"data": {"augment": "crop_flip", "options": {"seed": 5}}}, "\n  content of the data: '"),
    "views": ({"cache": {"views": 3}}, "\n  views: 2 in the folder, 3 now (cache.views, or without it one an epoch)"),
    "fresh views": ({"cache": None}, "\n  views: 2 in the folder, 3 now (cache.views, or without it one an epoch)"),
    "keep": ({"cache": {"views": 2, "keep": {"top_k": 3}}}, "\n  cache.keep: "),
}


@pytest.mark.parametrize("other", OTHER)
def test_another_question_is_refused_before_training_by_what_differs(
    other: str, answered: Path, tmp_path: Path
) -> None:
    changes, line = OTHER[other]
    with pytest.raises(NeedsError) as caught:
        runner(tmp_path, answered, **changes).rehearse()
    text = str(caught.value)
    assert text.startswith(f"models.teacher.weights: answers:{answered}: answers another question than the recipe asks")
    assert line in text
    assert text.endswith("let the teacher answer again: kdzoo teacher answer RECIPE --out <another folder>")


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [({"data": {"augment": "crop_flip", "batch_size": 12}}, True), ({"cache": {"views": 1}}, True)],
)
def test_what_does_not_matter_may_differ(changes: Any, accepted: bool, answered: Path, tmp_path: Path) -> None:
    assert bool(runner(tmp_path, answered, **changes).rehearse()) is accepted


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Match, "'match' needs the teacher's network, not only its answers to the training samples"),
        (AllClasses, "'all_classes' reads the teacher's logits of all classes, and only the likeliest 2 are kept"),
    ],
)
def test_an_algorithm_that_needs_more_is_refused(cls: type, why: str, answered: Path, tmp_path: Path) -> None:
    with pytest.raises(NeedsError) as caught:
        runner(tmp_path, answered, cls, cache={"views": 2}).rehearse()
    assert str(caught.value) == f"models.teacher.weights: answers:{answered}: {why}"


def test_an_algorithm_that_asks_for_more_than_it_declares_is_named(answered: Path, tmp_path: Path) -> None:
    job, _ = runner(tmp_path, answered, Asking).rehearse()
    with pytest.raises(ContractError, match=r"declares needs\.of_teacher = 'network'"):
        Engine(job).dry_step()


def test_the_answers_are_those_of_the_teacher(answered: Path, tmp_path: Path) -> None:
    teacher, job = runner(answered.parent / "runs"), runner(tmp_path, answered).rehearse()[0]
    (result,) = teacher.teachers()
    network = teacher.build.trained_network(result).eval()
    batch: Batch = next(teacher.loader.train_batches(1, 1))
    logits = job.teachers[0].outputs(batch).logits
    expected = network(batch.inputs).logits
    assert torch.equal(logits.topk(2).indices.sort().values, expected.topk(2).indices.sort().values)
    likeliest = expected.topk(2).indices
    torch.testing.assert_close(
        logits.softmax(1).gather(1, likeliest), expected.softmax(1).gather(1, likeliest), rtol=5e-3, atol=1e-4
    )


STUDENT_OF = {"student": {"name": TINY, "weights": "answers:x"}}
UNTRAINED: dict[str, tuple[Mapping[str, Any], str, str]] = {
    "a student": (
        {"models": STUDENT_OF},
        "models.student.weights",
        "only a teacher can be known by its stored answers",
    ),
    "a teacher to train": (
        {"models": {"teachers": [{"name": TINY, "weights": "answers:x", "finetune": True}]}},
        "models.teachers.0.finetune",
        "stored answers cannot be trained; give weights",
    ),
    "a beginning": (
        {"models": {"teachers": [{"name": TINY, "weights": "answers:x"}], "student": {"weights": "teacher"}}},
        "models.student.weights",
        "starts from the first teacher, of which there are stored answers only",
    ),
    "an exported teacher": (
        {"models": {"teachers": [{"name": TINY, "weights": "answers:x"}]}, "export": [{"teacher": True}]},
        "export.0.teacher",
        "there is no network to export, but stored answers",
    ),
}


@pytest.mark.parametrize("what", UNTRAINED)
def test_what_takes_a_network_is_refused_in_the_recipe(what: str) -> None:
    changes, path, message = UNTRAINED[what]
    with pytest.raises(ValidationError) as caught:
        tiny_recipe(Likeliest, changes)
    assert explain(caught.value, Recipe, {}) == [(path, message)]


def test_whole_answers_teach_whoever_reads_all_classes(answered: Path, tmp_path: Path) -> None:
    (folder,) = answer(answered.parent / "runs", tmp_path / "whole", cache={"views": 2})
    of = runner(tmp_path, folder, AllClasses, cache={"views": 2})
    batch = next(of.loader.train_batches(0, 0))
    teacher = runner(answered.parent / "runs")
    (result,) = teacher.teachers()
    expected = teacher.build.trained_network(result).eval()(batch.inputs).logits
    torch.testing.assert_close(of.rehearse()[0].teachers[0].outputs(batch).logits, expected, rtol=1e-4, atol=1e-4)


# --- damage ---------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["view_00001/00002.safetensors", "view_00000/seen.safetensors", "manifest.json"])
def test_a_flipped_bit_is_found_before_training(name: str, copied: Path, tmp_path: Path) -> None:
    flip(copied / name)
    with pytest.raises(CorruptError, match=name.replace(".", r"\.")):
        runner(tmp_path, copied).rehearse()


def test_a_missing_folder_is_named_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder of stored answers; `kdzoo teacher answer RECIPE --out"):
        runner(tmp_path, tmp_path / "absent").rehearse()


def test_samples_that_look_otherwise_are_found(answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = stored_answers.seen
    monkeypatch.setattr(stored_answers, "seen", lambda loader, view: seen(loader, view).flip(-1))
    with pytest.raises(NeedsError, match="and yet the first samples look otherwise here"):
        runner(tmp_path, answered).rehearse()


# --- writing --------------------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Each (view, shard) that the teacher answers from now on."""
    found: list[tuple[int, int]] = []
    answers = CachedTeacher.answers
    monkeypatch.setattr(CachedTeacher, "answers", lambda self, *shard: found.append(shard) or answers(self, *shard))
    return found


def test_writing_that_was_stopped_goes_on_and_ends_with_the_same_files(
    answered: Path, tmp_path: Path, computed: list[tuple[int, int]]
) -> None:
    runs, out = answered.parent / "runs", tmp_path / "out"
    with pytest.raises(Interrupted):
        answer(runs, out, stop=lambda: 15 if len(computed) == 4 else 0)
    with pytest.raises(NeedsError, match="its writing was broken off"):
        runner(tmp_path, out).rehearse()
    flip(out / "view_00000/00001.safetensors")  # as a killed process cannot leave it, but a bad disk
    answer(runs, out)
    assert computed == [(0, 0), (0, 1), (0, 2), (1, 0), (0, 1), (1, 1), (1, 2)]
    assert AnswerFolder.read(out).files == AnswerFolder.read(answered).files
    answer(runs, out)
    assert len(computed) == 7, "all is there"
    assert not list(runs.glob(".answers*"))


def test_a_full_disk_leaves_a_folder_that_goes_on(
    answered: Path, tmp_path: Path, computed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_room(folder: Path, size: int) -> None:
        if folder.is_relative_to(out) and len(computed) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    runs, out = answered.parent / "runs", tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "check_room", check_room)
        with pytest.raises(OutputError, match="No space left on device"):
            answer(runs, out)
    answer(runs, out)
    assert computed == [(0, 0), (0, 1), (0, 2), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert AnswerFolder.read(out).files == AnswerFolder.read(answered).files


def test_a_recipe_without_a_cache_asks_for_a_view_an_epoch() -> None:
    student = {"name": TINY, "train": {"epochs": 2}}
    for changes, views in (
        ({"cache": None}, 3),
        ({}, 2),
        ({"cache": None, "models": {"student": student}}, 2),
        ({"cache": None, "models": {"student": student, "peers": [{"name": TINY}]}}, 3),
    ):
        assert tiny_recipe(Likeliest, {"cache": CACHE, "train": {"epochs": 3}, **changes}).views == views


def test_more_views_are_added_and_another_question_is_refused(
    answered: Path, copied: Path, computed: list[tuple[int, int]]
) -> None:
    runs = answered.parent / "runs"
    answer(runs, copied, cache={**CACHE, "views": 3})
    assert computed == [(2, 0), (2, 1), (2, 2)]
    with pytest.raises(NeedsError) as caught:
        answer(runs, copied, cache={"views": 2})
    assert "cache.keep: " in str(caught.value)
    assert str(caught.value).endswith("choose another folder with --out, or delete this one")


def test_mixed_images_are_not_answered(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="Mixup and CutMix show other images at each step, so no answer recurs"):
        answer(tmp_path, tmp_path / "out", cache=None, data={"augment": "patient"})


@pytest.mark.parametrize("cls", [Match, AllClasses])
def test_answers_that_nobody_could_learn_from_are_not_written(cls: type, tmp_path: Path) -> None:
    with pytest.raises(KdzooError, match="choose an algorithm that reads logits, such as kd"):
        answer(tmp_path, tmp_path / "out", cls=cls)
    assert not (tmp_path / "out").exists()
