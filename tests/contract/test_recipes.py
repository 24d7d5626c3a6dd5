"""Every bundled recipe validates, says what it claims only where it was measured, and really runs."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from kdzoo.cli import app
from kdzoo.plan.resolve import resolve
from kdzoo.recipe.bundled import STUDIES, bundled_recipes, find_recipe, recipes_root
from kdzoo.recipe.reading import dump_recipe, load_recipe, parse_recipe
from kdzoo.recipe.sections import Recipe
from kdzoo.recipe.study_sections import load_study
from kdzoo.run import delivery
from kdzoo.run.runner import Runner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.zoo.loading import load_zoo

ROOT = Path(__file__).resolve().parents[2]
RECIPES = bundled_recipes()
DIGITS = [path for path in RECIPES if path.parent.name == "digits"]
SMALL = [*DIGITS, *(p for p in RECIPES if p.parent.name in ("assistants", "students", "vision_transformers"))]
RESULTS = ROOT / "docs" / "results"


def short(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


def recipe_of(path: Path) -> Recipe:
    return load_recipe(path).recipe


# --- what they say --------------------------------------------------------------------------------


def test_the_bundled_recipes_are_these() -> None:
    assert recipes_root() == ROOT / "recipes"


def test_every_algorithm_has_a_recipe_on_digits_under_its_name() -> None:
    algorithms = set(load_zoo().algorithms)
    assert algorithms
    assert len(RECIPES) > len(DIGITS)
    assert {path.stem for path in DIGITS} >= set(ALWAYS)
    assert {path.stem for path in DIGITS} == algorithms
    assert {path.stem: recipe_of(path).algorithm.name for path in DIGITS} == {name: name for name in algorithms}


def test_names_are_unique_and_follow_from_the_file() -> None:
    named = {recipe_of(path).name: short(path) for path in RECIPES}
    assert len(named) == len(RECIPES)
    for path in RECIPES:
        expected = "-".join([*path.relative_to(ROOT / "recipes").parts[:-1], path.stem]).replace("_", "-")
        assert recipe_of(path).name == expected


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_a_recipe_is_short_and_told_in_words(path: Path) -> None:
    text = path.read_text()
    assert 10 <= len(text.splitlines()) <= 40
    assert text.startswith("# ")
    assert recipe_of(path).description
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_the_command_in_the_comment_runs_this_recipe(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = re.findall(r"^#.*Run: kdzoo run (\S+)$", path.read_text(), re.MULTILINE)
    for folder in (ROOT, tmp_path):  # in a checkout, and anywhere else for who installed the package
        monkeypatch.chdir(folder)
        assert find_recipe(Path(command)).resolve() == path


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_a_recipe_resolves_and_survives_being_written_out(path: Path) -> None:
    loaded = load_recipe(path)
    plan = resolve(loaded, load_zoo())
    again = parse_recipe(dump_recipe(loaded.recipe).encode(), path)
    assert again.recipe == loaded.recipe
    assert resolve(again, load_zoo()).algorithm == plan.algorithm


def measured_by(command: str) -> set[Path]:
    """The recipes that a command measures, itself or as a study."""
    named = {ROOT / word for word in command.split() if word.endswith(".yaml")}
    studies = {path for path in named if path.parent == recipes_root() / STUDIES}
    patterns = [(path.parent, each) for path in studies for each in load_study(path).study.all_recipes]
    return (named - studies) | {found.resolve() for folder, each in patterns for found in folder.glob(each)}


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_a_published_result_is_one_that_was_measured(path: Path) -> None:
    recipe = recipe_of(path)
    measured = RESULTS / f"{recipe.name}.json"
    if recipe.expected is None:
        return
    told = json.loads(measured.read_text())
    assert told["recipe"] == str(path.relative_to(ROOT))
    assert path in measured_by(told["command"])
    assert recipe.expected.model_dump() == {
        "top1_percent": round(statistics.fmean(told["student"]), 2),
        "std": round(statistics.stdev(told["student"]), 2),
        "seeds": len(told["seeds"]),
        "control_top1_percent": round(statistics.fmean(told["control"]), 2),
    }


def test_some_result_is_published() -> None:
    assert [short(path) for path in RECIPES if recipe_of(path).expected is not None]


def test_every_measured_result_belongs_to_a_recipe() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} <= {recipe_of(path).name for path in RECIPES}


# --- what they do ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with noise in place of the large sets, and the small samples of tests/fixtures/data."""
    root = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    sets = {"fashion_mnist": ((28, 28), 10), "cifar10": ((32, 32, 3), 10), "cifar100": ((32, 32, 3), 100)}
    for name, (shape, classes) in sets.items():
        (root / name).mkdir()
        (root / name / "meta.json").write_text(json.dumps({"classes": [f"class {k}" for k in range(classes)]}))
        for split, samples in {"train": 16_000, "test": 500}.items():
            images = noise.integers(0, 256, (samples, *shape), dtype=np.uint8)
            np.save(root / name / f"{split}_images.npy", images)
            np.save(root / name / f"{split}_labels.npy", np.arange(samples) % classes)
    (root / "phone_watch_har").mkdir()
    windows = noise.standard_normal((2, 1600, 6, 50)).astype(np.float32)
    np.savez(
        root / "phone_watch_har" / "phone_watch_har.npz",
        phone=windows[0],
        watch=windows[1],
        label=np.arange(1600, dtype=np.uint8) % 5,
        subject=np.repeat([f"s{k:02d}" for k in range(1, 24)], 70)[:1600],
        classes=np.array([f"activity {k}" for k in range(5)]),
    )
    rows = ["path,label,split"]
    for k in range(240):
        path = root / "tiny_imagenet" / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (k, 0, 0)).save(path)
        rows.append(f"{path.name},class {k % 40},{'train' if k < 200 else 'test'}")
    (root / "tiny_imagenet" / "forty_classes.csv").write_text("\n".join(rows))
    for sample in (ROOT / "tests" / "fixtures" / "data").glob("*"):
        (root / sample.name).symlink_to(sample)
    return root


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, stand_ins: Path) -> Path:
    """A folder of models with a BERT as deep as the one that the recipes name, its feed-forwards as wide, else tiny."""
    import transformers

    tokens = load_zoo().dataset("clinc150")
    splits = tokens(tokens.Options(vocab_size=300)).load(stand_ins)
    folder = tmp_path_factory.mktemp("models")
    place = folder / "sentence-transformers" / "all-MiniLM-L6-v2"
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=1536
    )
    transformers.BertModel(config).save_pretrained(place)
    for name, content in splits.tokens.files.items():
        (place / name).write_bytes(content)
    return folder


def weights_to_fetch(recipe: Recipe, folder: Path) -> list[str]:
    """Write stand-ins with random weights for files that a recipe tells to fetch; return what is right for them."""
    fetched = [model for _, model in recipe.models.each() if model.weights.endswith(".th")]
    for model in fetched:
        network = timm.create_model(model.name, num_classes=10, **model.args)
        weights = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
        torch.save({"state_dict": weights}, folder / model.weights)
    return ["min_teacher_top1_percent=null", "data.validation=40"] if fetched else []


def larger_ones_slow(path: Path) -> Any:
    """The recipes on clothes have the algorithms of those on digits; what they name is looked up in any case."""
    repeated = path.parent.name == "fashion_mnist" and path.stem != "kd"
    return pytest.param(path, id=short(path), marks=[pytest.mark.slow] if repeated else [])


@pytest.mark.parametrize("path", [larger_ones_slow(path) for path in RECIPES])
def test_a_recipe_builds(
    path: Path, tmp_path: Path, stand_ins: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDZOO_DATA", str(stand_ins))
    monkeypatch.setenv("KDZOO_MODELS", str(checkpoints))
    zoo = load_zoo()
    # A cache would be filled with the teacher's answers to every sample, and some losses grow with the cube of a batch.
    cheap = ["cache=null"] + (["data.batch_size=16"] if recipe_of(path).data.batch_size > 64 else [])
    if recipe_of(path).data.name == "image_list":  # the stand-in has fewer images than the recipe has labels
        cheap += ["data.validation=40", "data.labelled=80"]
    monkeypatch.chdir(tmp_path)
    cheap += weights_to_fetch(recipe_of(path), tmp_path)
    lines = Runner(resolve(load_recipe(path, cheap), zoo), zoo, None, Store(tmp_path)).check()
    lines = [line for line in lines if not line.startswith("warning   teacher")]  # of random weights
    assert lines[0].startswith(f"data      {recipe_of(path).data.name}: ")
    assert re.search(r"train [1-9]\d*, validation [1-9]", lines[0])
    assert any(line.startswith("student   ") for line in lines)
    assert re.match(r"forward   \w+ -?[\d.]+", lines[-1])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs for all, so that recipes with the same teacher train it once."""
    return tmp_path_factory.mktemp("recipes")


def few_steps(recipe: Recipe) -> list[str]:
    """Overrides for a few steps, an epoch of them unless the algorithm needs more; for each model with a budget too."""
    needed = load_zoo().algorithm(recipe.algorithm.name).tiny_recipe.get("train", {})
    settings = [f"train.epochs={needed.get('epochs', 1)}", "train.steps_per_epoch=3"]
    for place, model in recipe.models.each():
        if model.train and "epochs" in model.train:
            settings.append(f"models.{place}.train.epochs=1")
    return [part for setting in settings for part in ("-o", setting)]


#: Run in ``make test``: a teacher, peers, assistants in stages, no data. ``make test-all`` runs the other recipes too.
ALWAYS = ("kd", "dml", "takd", "zskt")


def some_slow(path: Path) -> Any:
    always = path in DIGITS and path.stem in ALWAYS
    return pytest.param(path, id=short(path), marks=[] if always else [pytest.mark.slow])


@pytest.mark.parametrize("path", [some_slow(path) for path in SMALL])
def test_a_recipe_runs_from_the_command_line(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Timing every network would take longer than the whole run; tests/end_to_end times them.
    monkeypatch.setattr(delivery, "measure_latency", lambda calls: {label: {"p50": 1.0, "p95": 2.0} for label in calls})
    recipe = recipe_of(path)
    ended = CliRunner().invoke(app, ["run", str(path), *few_steps(recipe), "--out", str(out)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert re.search(r"^student +\S+( \(\w+\))? +\d", ended.output, re.MULTILINE), ended.output
    folder = out / recipe.name / "0001-seed0"
    assert f"run folder: {folder}" in ended.output
    RunFolder.view(folder).verify()
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    assert (results["algorithm"], results["data"]["test_samples"]) == (recipe.algorithm.name, 797)
    assert [bool(results[label]) for label in ("student", "control")] == [True, True]
    assert len(results["peers"]) == len(recipe.models.peers)
    assert len(results["teachers"] or [results["teacher"]]) == max(1, len(recipe.models.all_teachers))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {stage["name"] for stage in results["stages"]}
    for name in ("report.html", "README.md", "recipe.yaml", "provenance.json", "student.safetensors", "student.json"):
        assert (folder / name).stat().st_size > 100, name
    assert list((folder / "tensorboard").rglob("events.*"))
