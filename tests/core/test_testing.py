"""The tiny pieces that algorithms are tested with are real, learnable and the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_algorithms import Couple, Match

from kdzoo.api import Algorithm, Needs
from kdzoo.models.weights import weights_sha256
from kdzoo.recipe.sections import Recipe
from kdzoo.run.builder import Builder
from kdzoo.testing.harness import Harness, harness_of, run_steps
from kdzoo.testing.tiny import STUDENT, TEACHER, TINY, Stripes, least, tiny_recipe, tiny_runner
from kdzoo.zoo.loading import load_zoo


def stripes(**options: Any) -> Stripes:
    return Stripes(Stripes.Options(**options))


# --- data -----------------------------------------------------------------------------------------


def test_stripes_are_the_same_each_time_and_differ_by_seed_and_split() -> None:
    first, again, other = (stripes(seed=seed).load(Path()) for seed in (0, 0, 1))
    assert np.array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.train.images, other.train.images)
    assert not np.array_equal(first.train.images[:32], first.test().images)


@pytest.mark.parametrize(("classes", "samples", "size"), [(4, 64, (16, 16)), (2, 10, (19, 23)), (7, 70, (8, 8))])
def test_stripes_come_in_any_number_and_size(classes: int, samples: int, size: tuple[int, int]) -> None:
    splits = stripes(classes=classes, samples=samples, size=size).load(Path())
    assert (splits.train.images.shape, splits.train.images.dtype) == ((samples, *size, 3), np.uint8)
    assert len(splits.test().images) == samples // 2
    assert set(splits.train.targets) == set(range(classes))
    assert (splits.channels, splits.size, len(splits.classes)) == (3, size, classes)


def test_stripes_tell_their_class_to_who_looks_at_the_spectrum() -> None:
    """Easy: the direction of the strongest frequency; not trivial: the mean of the pixels says nothing."""
    splits = stripes(samples=400).load(Path())
    images, targets = splits.train.images[..., 0] / 255, splits.train.targets
    spectrum = np.abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True)))[:, :9, :].reshape(len(images), -1)
    centroids = np.stack([spectrum[:200][targets[:200] == k].mean(0) for k in range(4)])
    near = ((spectrum[200:, None] - centroids) ** 2).sum(2).argmin(1)
    assert (near == targets[200:]).mean() > 0.9
    means = images.mean((1, 2))
    assert np.ptp([means[targets == k].mean() for k in range(4)]) < 0.05


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "number"), [(2, 2), (0, 0), ((1, None), 1), ((0, 3), 0)])
def test_the_least_number_of_a_need(wanted: int | tuple[int, int | None], number: int) -> None:
    assert least(wanted) == number


def test_a_tiny_recipe_has_exactly_the_models_that_are_needed() -> None:
    needy = type("Needy", (Match,), {"name": "needy", "needs": Needs(teachers=(2, 4), assistants=1, peers=(1, None))})
    models = tiny_recipe(needy).models
    assert [model.args for model in models.all_teachers] == [TEACHER] * 2
    assert [model.args for model in (*models.assistants, *models.peers, models.student)] == [STUDENT] * 3
    assert {model.name for _, model in models.each()} == {TINY}


def test_an_algorithm_says_what_its_tiny_recipe_cannot_do_without() -> None:
    own = {"models": {"student": {"name": "resnet18"}}, "algorithm": {"options": {"a": 1}}, "train": {"epochs": 2}}
    recipe = tiny_recipe(type("Particular", (Match,), {"name": "particular", "tiny_recipe": own}), {"seed": 3})
    assert recipe.models.student.model_dump() == {**recipe.models.student.model_dump(), "name": "resnet18", "args": {}}
    assert [model.args for model in recipe.models.all_teachers] == [TEACHER]
    assert (recipe.algorithm.name, recipe.algorithm.options) == ("particular", {"a": 1})
    assert (recipe.train.epochs, recipe.train.steps_per_epoch, recipe.seed) == (2, 4, 3)


def test_changes_are_laid_over_the_base() -> None:
    base = tiny_recipe(Match)
    changed = tiny_recipe(Match, {"seed": 5, "train": {"optimizer": {"lr": 0.5}}, "data": {"batch_size": 4}})
    assert isinstance(base, Recipe)
    expected = base.model_dump()
    expected["seed"] = 5
    expected["train"]["optimizer"]["lr"] = 0.5
    expected["data"]["batch_size"] = 4
    assert changed.model_dump() == expected


# --- runners --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Match, Couple])
def test_a_tiny_runner_needs_no_registration_and_writes_below_its_root(cls: type[Algorithm], tmp_path: Path) -> None:
    runner = tiny_runner(cls, load_zoo("none"), tmp_path)
    assert runner.plan.algorithm.cls is cls
    assert runner.store.root == tmp_path / "store"
    assert [len(group) for group in (runner.plan.teachers, runner.plan.peers)] == [
        least(cls.needs.teachers),
        least(cls.needs.peers),
    ]


def test_a_tiny_runner_takes_the_options_of_the_algorithm_s_own_tiny_recipe(tmp_path: Path) -> None:
    kd = load_zoo().algorithm("kd")
    own = {"algorithm": {"options": {"temperature": 3.5}, "loss_weights": {"task": 0.25}}}
    hot = type("Hot", (kd,), {"name": "hot", "tiny_recipe": own})
    algorithm = tiny_runner(hot, load_zoo(), tmp_path).plan.algorithm
    assert (algorithm.options.temperature, algorithm.loss_weights["task"]) == (3.5, 0.25)
    assert (
        tiny_runner(hot, load_zoo(), tmp_path, options={"temperature": 2.5}).plan.algorithm.options.temperature == 2.5
    )


def test_a_tiny_runner_takes_options_and_a_model_s_own_settings(tmp_path: Path) -> None:
    steps = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "size": 24}
    own = {"preprocessing": steps, "train": {"epochs": 3}}
    changes = {"models": {"student": own}, "data": {"options": {"samples": 40, "classes": 3}}}
    runner = tiny_runner(load_zoo().algorithm("kd"), load_zoo(), tmp_path, changes, options={"temperature": 2.5})
    assert runner.plan.algorithm.options.temperature == 2.5
    student = runner.plan.student
    assert (student.mean, student.std, student.size, student.train) == (
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        24,
        {"epochs": 3},
    )
    assert (len(runner.data.classes), runner.data.split_sizes) == (3, {"train": 24, "validation": 16})


def test_the_student_is_smaller_than_its_teacher_and_all_of_it_is_live(tmp_path: Path) -> None:
    build = tiny_runner(Match, load_zoo("none"), tmp_path).build
    student, teacher = (build.network(spec) for spec in (build.plan.student, build.plan.teachers[0]))
    assert student.macs < teacher.macs
    for network in (student, teacher):  # timm starts the last BatchNorm of a branch at zero, which would hide bugs
        assert all(block.bn2.weight.abs().min() > 0 for block in network.model.layer1)


# --- harness --------------------------------------------------------------------------------------


def test_a_job_is_built_once_and_each_engine_trains_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    build_job = Builder.job
    monkeypatch.setattr(
        Builder, "job", lambda self, stage, *rest: (built.append(stage.name), build_job(self, stage, *rest))[1]
    )
    harness = Harness(Match, load_zoo("none"), tmp_path)
    first, second = harness.engine(), harness.engine()
    assert built == ["teacher_0", "student"]
    start = weights_sha256(second.job.student.model)
    assert weights_sha256(first.job.student.model) == start
    run_steps(first, 2)
    first.job.teachers[0].network.model.fc.bias.data.add_(1.0)  # not even this reaches the next engine
    assert weights_sha256(first.job.student.model) != start
    assert first.job.algorithm is not second.job.algorithm
    assert first.job.loader is second.job.loader
    for engine in (second, harness.engine()):
        assert weights_sha256(engine.job.student.model) == start
        engine.job.teachers[0].check_untouched("student")
    assert built == ["teacher_0", "student"]
    assert harness.engine(data={"options": {"size": (19, 23)}}).job.student.size == (19, 23)
    assert built[2:] == ["teacher_0", "student"]


def test_a_harness_is_kept_until_another_algorithm_is_checked() -> None:
    zoo = load_zoo("none")
    kept = harness_of(Match, zoo, None)
    root = kept.root
    assert harness_of(Match, zoo, None) is kept
    assert root.is_dir()
    del kept
    harness_of(Couple, zoo, None)
    assert not root.exists()
