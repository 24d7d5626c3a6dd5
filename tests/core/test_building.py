"""From a plan to what a stage trains with, and the key that a stored result is found by."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_algorithms import Couple, Everything, Match
from torch.nn import functional as F

import kdzoo
from kdzoo.api import Algorithm, AlgorithmChoice, Needs
from kdzoo.contract.stage import ModelSpec, Stage, StageResult
from kdzoo.contract.step import Clock
from kdzoo.errors import KdzooError, NeedsError, PluginError, RecipeError
from kdzoo.plan.resolve import ResolvedAlgorithm, resolve_choice
from kdzoo.run import keys, needs, stage_plan
from kdzoo.run.builder import DATA_FREE_STEPS, Builder
from kdzoo.run.runner import Runner
from kdzoo.run.stage_key import stage_key
from kdzoo.storage.atomic import write_tensors
from kdzoo.testing.tiny import STUDENT, TEACHER, TINY, tiny_runner
from kdzoo.training.engine import Engine
from kdzoo.training.job import Plain
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.loading import load_zoo


def runner(root: Path, cls: type[Algorithm] = Match, **changes: Any) -> Runner:
    return tiny_runner(cls, load_zoo("none"), root, changes)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return runner(tmp_path_factory.mktemp("building"))


def refusal(error: type[KdzooError], act: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


def stored(run: Runner, model: ModelSpec, seed: int = 0) -> StageResult:
    """A result in the store, without training."""
    weights = run.build.network(model, f"stored {seed}").model.state_dict()
    key = f"key-of-{seed}"
    folder = run.store.find("stage", key) or run.store.publish(
        "stage", key, lambda place: write_tensors(place / "student.safetensors", weights, {})
    )
    return StageResult("teacher", key, model, {"student": folder / "student.safetensors"}, {"top1_percent": 50.0})


def job_of(run: Runner, stage: Stage, chosen: ResolvedAlgorithm | None, **settings: Any) -> Any:
    return run.build.job(stage, chosen, run.build.train_section(stage), **settings)[0]


TEACHER_MODEL = ModelSpec(TINY, args=TEACHER)


# --- sections and networks ------------------------------------------------------------------------


def test_a_model_overrides_the_recipe_and_a_stage_overrides_the_model(tmp_path: Path) -> None:
    build = runner(tmp_path, train={"epochs": 7, "optimizer": {"lr": 0.3}, "ema_decay": 0.9}).build
    model = ModelSpec(TINY, train={"epochs": 8, "optimizer": {"momentum": 0.5}})
    train = build.train_section(Stage("a", model, train={"epochs": 9, "ema_decay": None}))
    assert (train.epochs, train.ema_decay) == (9, None)
    assert (train.optimizer.lr, train.optimizer.momentum, train.optimizer.name) == (0.3, 0.5, "sgd")
    text = refusal(RecipeError, lambda: build.train_section(Stage("a", model, train={"epoch": 9})))
    assert text == "train.epoch: unknown key; did you mean 'epochs'?"


def test_networks_start_from_the_seed_and_the_salt(usual: Runner) -> None:
    spec = usual.plan.student
    same, salted = usual.build.network(spec), usual.build.network(spec, "salt")
    assert torch.equal(same.model.fc.weight, usual.build.network(spec).model.fc.weight)
    assert not torch.equal(same.model.fc.weight, salted.model.fc.weight)


def test_another_seed_is_another_start(usual: Runner, tmp_path: Path) -> None:
    other = runner(tmp_path, seed=1)
    weights = [run.build.network(run.plan.student).model.fc.weight for run in (usual, other)]
    assert not torch.equal(*weights)


def test_a_model_s_own_size_and_normalisation_outlive_its_training(usual: Runner) -> None:
    spec = ModelSpec(TINY, args=STUDENT, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), size=24)
    for network in (usual.build.network(spec), usual.build.trained_network(stored(usual, spec))):
        assert (network.mean, network.std, network.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (24, 24))


def test_stored_weights_are_those_of_the_network(usual: Runner) -> None:
    result = stored(usual, usual.plan.student, seed=5)
    network = usual.build.trained_network(result)
    assert torch.equal(network.model.fc.weight, usual.build.network(usual.plan.student, "stored 5").model.fc.weight)


# --- the job of a stage ---------------------------------------------------------------------------


def test_a_stage_without_an_algorithm_trains_on_the_task(usual: Runner) -> None:
    job = job_of(usual, Stage("control", usual.plan.student), None)
    assert (type(job.algorithm), dict(job.loss_weights), job.teachers) == (Plain, {"task": 1.0}, [])


def test_a_stage_begins_from_an_earlier_result(usual: Runner) -> None:
    before = stored(usual, usual.plan.student, seed=3)
    begun = job_of(usual, Stage("second", usual.plan.student, start=before), None)
    fresh = job_of(usual, Stage("second", usual.plan.student), None)
    expected = usual.build.network(usual.plan.student, "stored 3").model.fc.weight
    assert torch.equal(begun.student.model.fc.weight, expected)
    assert not torch.equal(fresh.student.model.fc.weight, expected)


def test_an_algorithm_may_begin_with_the_weights_of_another_network(usual: Runner) -> None:
    class Narrow(Match):
        @classmethod
        def load_start(cls, model: Any, weights: Any) -> None:
            own = model.state_dict()
            model.load_state_dict({key: weights[key][tuple(map(slice, own[key].shape))] for key in own})

    run = runner(usual.store.root.parent, Narrow)
    wide = stored(run, TEACHER_MODEL, seed=4)
    stage = Stage("narrow", run.plan.student, run.plan.algorithm.choice, (wide,), start=wide)
    begun = job_of(run, stage, run.plan.algorithm)
    whole = run.build.network(TEACHER_MODEL, "stored 4").model.fc.weight
    own = begun.student.model.fc.weight
    assert own.shape[1] < whole.shape[1]
    assert torch.equal(own, whole[:, : own.shape[1]])


def test_peers_differ_from_the_student_and_from_each_other(tmp_path: Path) -> None:
    class Trio(Couple):
        name, needs = "trio", Needs(teachers=0, peers=2)

    run = runner(tmp_path, Trio)
    job = job_of(run, Stage("s", run.plan.student, run.plan.algorithm.choice, peers=run.plan.peers), run.plan.algorithm)
    weights = [network.model.fc.weight for network in (job.student, *job.peers)]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 3


def test_each_of_several_teachers_is_loaded_and_paired(tmp_path: Path) -> None:
    class Crowd(Match):
        name, needs = "crowd", Needs(teachers=(2, None), features=True)

    run = runner(tmp_path, Crowd)
    taught = tuple(stored(run, TEACHER_MODEL, seed) for seed in (1, 2))
    stage = Stage("student", run.plan.student, run.plan.algorithm.choice, taught)
    job, pairing = run.build.job(stage, run.plan.algorithm, run.build.train_section(stage))
    weights = [teacher.network.model.fc.weight for teacher in job.teachers]
    assert not torch.equal(*weights)
    assert pairing is not None
    assert len(pairing.indices) == 3
    for teacher, shapes in zip(job.teachers, job.algorithm.shapes.teachers, strict=True):
        shown = [teacher.network.levels[i] for i in teacher.levels]
        assert [level.channels for level in shown] == [level.channels for level in shapes.levels]
        assert [level.stride for level in shown] == [level.stride for level in job.algorithm.shapes.student.levels]


def test_an_algorithm_that_reads_no_features_is_handed_none(tmp_path: Path) -> None:
    run = runner(tmp_path, Everything)
    taught = (stored(run, TEACHER_MODEL),)
    stage = Stage("student", run.plan.student, run.plan.algorithm.choice, taught, run.plan.peers)
    job, pairing = run.build.job(stage, run.plan.algorithm, run.build.train_section(stage))
    assert (pairing, job.student_levels, job.peer_levels, job.teachers[0].levels) == (None, (), [()], ())


def test_the_global_random_state_is_left_alone(usual: Runner) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    job_of(usual, Stage("control", usual.plan.student), None)
    assert torch.equal(torch.rand(3), expected)


def test_steps_without_data_have_a_default(tmp_path: Path) -> None:
    dreaming = type("Dreaming", (Match,), {"name": "dreaming", "needs": Needs(data="none")})
    run = runner(tmp_path, dreaming, train={"steps_per_epoch": None})
    stage = Stage("student", run.plan.student, run.plan.algorithm.choice)
    job = job_of(run, stage, run.plan.algorithm, taught=[run.build.network(TEACHER_MODEL)])
    assert (job.steps_per_epoch, job.loader, job.algorithm.shapes.num_samples) == (DATA_FREE_STEPS, None, 0)


def latency_of(run: Runner, spec: ModelSpec) -> float:
    return run.stage_plan(()).latency(spec)


def test_latency_is_timed_once_a_machine_and_then_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.5, 2.5, 3.5, 4.5])
    monkeypatch.setattr(stage_plan, "measure_latency", lambda calls: {"": {"p50": next(times), "p95": 9.0}})
    run = runner(tmp_path)
    spec = run.plan.student
    assert [latency_of(run, spec), latency_of(run, spec)] == [1.5, 1.5]
    assert latency_of(runner(tmp_path, seed=1), spec) == 1.5  # weights do not matter
    assert latency_of(run, dataclasses.replace(spec, size=24)) == 2.5
    assert latency_of(run, TEACHER_MODEL) == 3.5
    assert latency_of(runner(tmp_path, data={"options": {"size": (20, 20)}}), spec) == 4.5


def test_latency_is_that_of_a_forward_pass(usual: Runner) -> None:
    assert 0 < latency_of(usual, usual.plan.student) < 1e4


def test_without_a_validation_split_there_is_no_validator(tmp_path: Path, usual: Runner) -> None:
    precision = usual.build.precision(usual.build.network(usual.plan.student))
    assert usual.build.validator(precision) is not None
    assert runner(tmp_path, data={"validation": 0}).build.validator(precision) is None


# --- what is refused ------------------------------------------------------------------------------


def needing(root: Path, train: dict[str, Any] | None = None, **needs: Any) -> Callable[[], Any]:
    run = runner(root, type("Needing", (Match,), {"name": "needing", "needs": Needs(**needs)}), train=train or {})
    stage = Stage("student", run.plan.student, run.plan.algorithm.choice)
    return lambda: job_of(run, stage, run.plan.algorithm, taught=[run.build.network(TEACHER_MODEL)])


def test_too_few_samples_at_a_time_are_refused(tmp_path: Path) -> None:
    assert refusal(NeedsError, needing(tmp_path, {"accumulate": 2}, min_batch=5)) == (
        "algorithm 'needing': needs at least 5 samples at a time, got 4 (data.batch_size 8, 1 processes, "
        "train.accumulate 2)"
    )
    needing(tmp_path, {"accumulate": 2}, min_batch=4)()


def test_a_batch_that_the_memory_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = 4 * 3 * 16 * 16
    monkeypatch.setattr(needs, "memory_bytes", lambda: 4 * 8 * sample - 1)
    assert refusal(NeedsError, needing(tmp_path)) == (
        "model 'test_resnet': a training step holds 8 inputs of 3 x 16 x 16, which take 2.29e-05 GiB, and at least 4 "
        "times that with their maps; this machine has 9.16e-05 GiB; lower the size or data.batch_size, or raise "
        "train.accumulate"
    )
    needing(tmp_path, {"accumulate": 2})()


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    assert refusal(NeedsError, needing(tmp_path, min_classes=5)) == (
        "algorithm 'needing': needs at least 5 classes, the data set has 4"
    )


def test_a_batch_is_shared_evenly_by_the_processes(usual: Runner) -> None:
    ranks = Ranks()
    ranks.world = 3
    assert refusal(NeedsError, lambda: Builder(usual.plan, usual.store, ranks)) == (
        "data.batch_size: 8 samples cannot be shared evenly by 3 processes"
    )


# --- identity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_task_loss_tells_apart_the_new_classes_of_a_stage(usual: Runner, smoothing: float) -> None:
    targets = usual.data.part("train").targets
    stage = Stage(
        "task",
        usual.plan.student,
        samples=tuple(int(row) for row in np.flatnonzero((targets == 3) | (targets == 1))),
        classes=(2, 3, 1),
        earlier=(2,),
        train={"label_smoothing": smoothing},
    )
    engine = Engine(job_of(usual, stage, None))
    batch = next(engine._batches(0, 0))
    ctx = engine.context(batch, Clock(0, 1, 0, 1))
    logits = torch.randn(len(batch.targets), 4, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits[:, [3, 1]], (batch.targets == 1).long(), label_smoothing=smoothing)
    torch.testing.assert_close(ctx.task_loss(logits), expected)
    shapes = engine.job.algorithm.shapes
    assert (shapes.classes, shapes.earlier) == ((2, 3, 1), (2,))


def test_a_stage_that_names_no_classes_knows_all(usual: Runner) -> None:
    job = job_of(usual, Stage("student", usual.plan.student), None)
    assert (job.algorithm.shapes.classes, job.algorithm.shapes.earlier, job.task_classes) == ((0, 1, 2, 3), (), None)


def key_of(run: Runner, stage: Stage) -> str:
    chosen = resolve_choice(stage.algorithm, run.zoo) if stage.algorithm else None
    return stage_key(run.build, stage, chosen, run.build.train_section(stage))


def of_match(run: Runner, **changes: Any) -> Stage:
    taught = StageResult("teacher", "key", TEACHER_MODEL, {}, {})
    return dataclasses.replace(Stage("student", run.plan.student, AlgorithmChoice("match"), (taught,)), **changes)


STAGES: dict[str, Callable[[Stage], Stage]] = {
    "model": lambda stage: dataclasses.replace(stage, model=ModelSpec(TINY, args=TEACHER)),
    "normalisation": lambda stage: dataclasses.replace(
        stage, model=dataclasses.replace(stage.model, mean=(0.4, 0.5, 0.5), std=(0.2,) * 3)
    ),
    "algorithm": lambda stage: dataclasses.replace(stage, algorithm=None),
    "weights": lambda stage: dataclasses.replace(
        stage, algorithm=AlgorithmChoice("match", loss_weights={"match": 0.25})
    ),
    "teacher": lambda stage: dataclasses.replace(
        stage, teachers=(dataclasses.replace(stage.teachers[0], key="another"),)
    ),
    "two teachers": lambda stage: dataclasses.replace(stage, teachers=stage.teachers * 2),
    "peers": lambda stage: dataclasses.replace(stage, peers=(stage.model,)),
    "start": lambda stage: dataclasses.replace(stage, start=stage.teachers[0]),
    "salt": lambda stage: dataclasses.replace(stage, salt="salt"),
    "training": lambda stage: dataclasses.replace(stage, train={"label_smoothing": 0.1}),
    "samples": lambda stage: dataclasses.replace(stage, samples=(0, 1)),
    "classes": lambda stage: dataclasses.replace(stage, classes=(0, 1)),
    "earlier": lambda stage: dataclasses.replace(stage, earlier=(0,)),
}


@pytest.mark.parametrize("change", STAGES)
def test_a_key_covers_the_stage(change: str, usual: Runner) -> None:
    stage = of_match(usual)
    assert key_of(usual, STAGES[change](stage)) != key_of(usual, stage)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"precision": "bf16"},
        {"data": {"batch_size": 4}},
        {"data": {"augment": "flip"}},
        {"data": {"validation": 8}},
        {"data": {"train_limit": 40}},
        {"data": {"options": {"seed": 1}}},
        {"cache": {"views": 1}},
        {"train": {"optimizer": {"lr": 0.5}}},
    ],
    ids=str,
)
def test_a_key_covers_the_recipe(changes: dict[str, Any], usual: Runner, tmp_path: Path) -> None:
    other = runner(tmp_path, **changes)
    assert key_of(other, of_match(other)) != key_of(usual, of_match(usual))


def test_a_key_leaves_out_what_changes_no_bit(usual: Runner, tmp_path: Path) -> None:
    other = runner(
        tmp_path,
        name="other",
        description="another one",
        control=True,
        data={"eval_batch_size": 7},
        train={"checkpoint_seconds": 1.0},
    )
    assert key_of(other, of_match(other, name="renamed")) == key_of(usual, of_match(usual))


def test_a_key_covers_the_environment_and_the_processes(usual: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(usual, of_match(usual))
    with monkeypatch.context() as patched:
        patched.setitem(usual.build.environment, "threads", 99)
        assert key_of(usual, of_match(usual)) != before
    with monkeypatch.context() as patched:
        patched.setattr(usual.build.ranks, "world", 2)
        assert key_of(usual, of_match(usual)) != before
    assert key_of(usual, of_match(usual)) == before


def test_a_key_covers_the_whole_core_but_for_what_decides_no_bit(
    usual: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A copy of the core stands in for it, one file of which changes at a time, and is read as by a new process."""
    copy = shutil.copytree(Path(kdzoo.__file__).parent, tmp_path / "kdzoo", ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(keys.version, "__file__", str(copy / "version.py"))
    before = key_of(usual, of_match(usual))
    rooms = {"report": False, "testing": False, "study": False, "cli": False, "run": True, "evaluation": True}
    rooms |= {"training": True, "models": True, "data": True, "contract": True, "losses.py": False, "types.py": True}
    for room, counts in rooms.items():
        file = copy / room if room.endswith(".py") else sorted((copy / room).glob("*.py"))[-1]
        source = file.read_text()
        file.write_text(source + "\n# changed\n")
        keys.core_hash_of.cache_clear()
        assert (key_of(usual, of_match(usual)) != before) is counts, room
        file.write_text(source)
    (copy / "added.py").write_text("")
    keys.core_hash_of.cache_clear()
    assert key_of(usual, of_match(usual)) != before


def test_files_of_the_core_that_change_or_go_during_a_run_change_no_key(
    usual: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = shutil.copytree(Path(kdzoo.__file__).parent, tmp_path / "kdzoo", ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(keys.version, "__file__", str(copy / "version.py"))
    before = key_of(usual, of_match(usual))
    (copy / "types.py").write_text("# another branch\n")
    (copy / "losses.py").unlink()
    assert key_of(usual, of_match(usual)) == before


@pytest.mark.parametrize("kind", ["renamed", "empty", "zip"])
def test_a_core_of_which_a_file_is_missing_has_no_key(
    kind: str, usual: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It cannot be left out in silence: other code would have the same key."""
    copy = tmp_path / "kdzoo"
    if kind == "renamed":
        shutil.copytree(Path(kdzoo.__file__).parent, copy, ignore=shutil.ignore_patterns("*.pyc"))
        (copy / "types.py").rename(copy / "kinds.py")
    elif kind == "zip":
        copy = Path(shutil.make_archive(str(copy), "zip", Path(kdzoo.__file__).parents[1], "kdzoo/contract")) / "kdzoo"
    missing = {"renamed": r"kdzoo\.types"}.get(kind, r"kdzoo, kdzoo\.api, kdzoo\.[a-z._]+")
    monkeypatch.setattr(keys.version, "__file__", str(copy / "version.py"))
    text = refusal(KdzooError, lambda: key_of(usual, of_match(usual)))
    assert re.fullmatch(
        rf"{re.escape(str(copy))}: the source of {missing} is missing, and results are stored under the hash of the "
        r"source; install kdzoo as plain files, and leave them alone during a run",
        text,
    )


PLUGIN = """
import timm
from kdzoo.api import Algorithm
from {package}.parts import SCALE

class Own(Algorithm):
    name = "own"

@timm.models.register_model
def {package}_model(pretrained=False, **kwargs):
    return timm.create_model("test_resnet", pretrained=False, **kwargs)
"""


PACKAGES = itertools.count()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A plugin package of two files, imported."""
    name = f"kdzoo_of_test_building_{next(PACKAGES)}"  # timm keeps the names of models for ever
    place = tmp_path / name
    place.mkdir()
    (place / "__init__.py").write_text(PLUGIN.format(package=name))
    (place / "parts.py").write_text("SCALE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(name)
    yield module
    for imported in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[imported]


def test_a_key_covers_every_file_of_the_plugins_that_it_runs(package: Any, usual: Runner) -> None:
    parts = Path(package.__file__).with_name("parts.py")
    own = resolved(usual, package.Own)
    own_model = dataclasses.replace(usual.plan.student, name=f"{package.__name__}_model")
    stages = [
        (of_match(usual), own),
        (of_match(usual, model=own_model), None),
        (of_match(usual, peers=(own_model,)), None),
    ]
    train = usual.build.train_section(of_match(usual))
    before = [stage_key(usual.build, stage, chosen, train) for stage, chosen in stages]
    parts.write_text("SCALE = 2\n")
    after = [stage_key(usual.build, stage, chosen, train) for stage, chosen in stages]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert key_of(usual, of_match(usual)) == key_of(usual, of_match(usual))


def test_a_key_covers_the_whole_package_of_a_plugin_in_parts(package: Any, usual: Runner) -> None:
    """An algorithm in a folder below may import from every other part."""
    inner = Path(package.__file__).with_name("inner")
    inner.mkdir()
    (inner / "__init__.py").write_text("from kdzoo.api import Algorithm\nclass Inner(Algorithm):\n    name = 'inner'\n")
    algorithm = __import__(f"{package.__name__}.inner").inner.Inner
    before = keys.source_hash(algorithm)
    parts = Path(package.__file__).with_name("parts.py")
    parts.write_text("SCALE = 2\n")
    changed = keys.source_hash(algorithm)
    parts.rename(parts.with_name("others.py"))
    assert len({before, changed, keys.source_hash(algorithm)}) == 3


def test_a_plugin_without_source_has_no_key(package: Any) -> None:
    Path(package.__file__).unlink()
    assert refusal(PluginError, lambda: keys.source_hash(package.Own)) == (
        f"class {package.__name__}.Own: has no source file, and results are stored under the hash of the source; "
        "install the plugin as plain files"
    )


def resolved(run: Runner, cls: type[Algorithm]) -> ResolvedAlgorithm:
    return dataclasses.replace(run.plan.algorithm, cls=cls)
