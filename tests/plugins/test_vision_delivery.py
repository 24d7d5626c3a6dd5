"""A student of image files: what its files say is enough to feed it, and bad files are found before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdzoo.errors import DataError
from kdzoo.plan.resolve import resolve
from kdzoo.recipe.problems import Positions
from kdzoo.recipe.reading import LoadedRecipe
from kdzoo.recipe.sections import Recipe
from kdzoo.run.provenance import provenance as provenance_of
from kdzoo.run.runner import Runner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.testing.tiny import tiny_folder, tiny_recipe
from kdzoo.zoo.loading import load_zoo

STEPS = {"size": 24, "crop_share": 0.7}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Noisy images of 40 x 30; the class is a brightness that the centre and the border have in unlike measure."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 30)):
        for k, name in enumerate(("dark", "light")):
            for i in range(count):
                image = rng.normal(90 + 12 * k, 60, (30, 40, 3))
                image[8:22, 10:30] += 40 - 18 * k
                path = tmp_path / "pictures" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)
    return tmp_path


def recipe_of(root: Path) -> Recipe:
    changes = {
        "data": {
            "name": "image_folder",
            "root": str(root),
            "options": {"folder": "pictures"},
            "preprocessing": STEPS,
            "batch_size": 16,
            "validation": 0,
        },
        "export": [{"format": "onnx"}],
    }
    return tiny_recipe(load_zoo().algorithm("kd"), changes)


def runner(root: Path, folder: RunFolder | None = None) -> Runner:
    plan = resolve(LoadedRecipe(recipe_of(root), root / "recipe.yaml", Positions()), load_zoo())
    return Runner(plan, load_zoo(), folder, Store(root / "store"))


def test_who_runs_the_code_of_the_report_gets_its_accuracy(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_folder(pictures / "out", recipe_of(pictures)) as folder:
        made = runner(pictures, folder)
        checked, provenance = made.check(), provenance_of(made.build)
        results = made.run()
        root = folder.root
    (entry,) = [entry for entry in results["exports"] if entry["file"] == "student.onnx"]
    paths = sorted((pictures / "pictures" / "test").glob("*/*"))
    monkeypatch.chdir(root)
    right = served(entry["usage"]["code"], paths)
    assert 100 * right / len(paths) == pytest.approx(entry["top1_percent"])
    assert 100 * served(results["usage"]["code"], paths) / len(paths) == pytest.approx(entry["top1_percent"])
    steps = (
        "turned by EXIF, converted to RGB, resized so that the shorter side is 34 (bilinear, Pillow), cut to their "
        "central 24x24"
    )
    assert f"files     {steps}" in checked
    assert provenance["data"]["preprocessing"]["crop_share"] == 0.7
    student = json.loads((root / "student.json").read_text())
    assert student["preprocessing"]["image"].items() <= provenance["data"]["preprocessing"].items()
    assert f"Image files are {steps}." in results["usage"]["inputs"]


def served(code: str, paths: list[Path]) -> int:
    """Answer images as a service does that runs the code of the report and nothing else; return how many are right."""
    right = 0
    for path in paths:
        names: dict[str, Any] = {}
        exec(compile(code.replace("'your.jpg'", repr(str(path))), "usage", "exec"), names)
        classes = json.loads(Path("student.json").read_text())["classes"]
        right += classes[int(names["logits"].argmax())] == path.parent.name
    return right


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_that_cannot_be_decoded_stops_a_run_before_its_first_stage(split: str, pictures: Path) -> None:
    bad = pictures / "pictures" / split / "dark" / "7.png"
    bad.write_bytes(bad.read_bytes()[:-900])
    made = runner(pictures)
    for act in (made.run, made.check):
        with pytest.raises(DataError) as caught:
            act()
        assert str(caught.value).startswith(f"{bad}: cannot be read as an image: ")
    assert (made.stages, made.data.test_gate.reads) == ([], 0)
