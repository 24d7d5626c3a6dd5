"""A student of image files: what its files say is enough to feed it, and bad files are found before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageOps

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

CROP = {"size": 24, "crop_share": 0.7, "folder": "pictures"}


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
        "data": {"name": "image_folder", "root": str(root), "options": CROP, "batch_size": 16, "validation": 0},
        "export": [{"format": "onnx"}],
    }
    return tiny_recipe(load_zoo().algorithm("kd"), changes)


def runner(root: Path, folder: RunFolder | None = None) -> Runner:
    plan = resolve(LoadedRecipe(recipe_of(root), root / "recipe.yaml", Positions()), load_zoo())
    return Runner(plan, load_zoo(), folder, Store(root / "store"))


def test_who_follows_an_exported_file_s_metadata_gets_the_accuracy_of_the_report(pictures: Path) -> None:
    with tiny_folder(pictures / "out", recipe_of(pictures)) as folder:
        made = runner(pictures, folder)
        checked, provenance = made.check(), provenance_of(made.build)
        results = made.run()
        root = folder.root
    right, samples = served(root / "export" / "student.onnx", pictures / "pictures" / "test")
    (entry,) = [entry for entry in results["exports"] if entry["file"] == "student.onnx"]
    assert samples == 60
    assert 100 * right / samples == pytest.approx(entry["top1_percent"])
    cut_otherwise = served(root / "export" / "student.onnx", pictures / "pictures" / "test", {"crop_share": 1.0})
    assert cut_otherwise != (right, samples)
    steps = (
        "turned by EXIF, converted to RGB, cut to the central 70 % square of the shorter side, resized to 24x24 "
        "(bicubic, Pillow)"
    )
    assert f"files     {steps}" in checked
    assert provenance["data"]["preprocessing"]["crop_share"] == 0.7
    student = json.loads((root / "student.json").read_text())
    assert student["preprocessing"]["image"] == provenance["data"]["preprocessing"]
    assert f"Image files are {steps}." in results["usage"]["inputs"]


def served(file: Path, folder: Path, other: dict[str, Any] | None = None) -> tuple[int, int]:
    """Answer a folder of images as a service does that knows the file's metadata and nothing else."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    told, classes = json.loads(metadata["preprocessing"]), json.loads(metadata["classes"])
    steps = told["image"] | (other or {})
    mean, std = (np.float32(told[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    right = 0
    paths = sorted(folder.glob("*/*"))
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path)).convert(steps["color_mode"])
        side = steps["crop_share"] * min(image.size)
        left, top = ((length - side) / 2 for length in image.size)
        method = Image.Resampling[steps["interpolation"].upper()]
        image = image.resize(steps["resize"][::-1], method, box=(left, top, left + side, top + side))
        pixels = np.float32(np.asarray(image)).transpose(2, 0, 1) / 255
        (logits,) = session.run(None, {"inputs": ((pixels - mean) / std)[None]})
        right += classes[int(logits.argmax())] == path.parent.name
    return right, len(paths)


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
