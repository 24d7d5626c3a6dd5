"""Images without labels: more of them beside those that have one, and a folder of images alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command_line import CommandLine, results, run_folder
from PIL import Image
from safetensors.torch import save_file

import kdzoo_vision.plain_cnn  # noqa: F401  # makes its networks known to timm


@pytest.fixture
def images(cli: CommandLine) -> Path:
    """Images of 8 x 8 that two classes can be told by, and 32 without a label."""
    rng = np.random.default_rng(0)
    folder = cli.place / "images"
    counts = {"train/dark": 12, "train/light": 12, "test/dark": 8, "test/light": 8, "unlabelled": 32}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            light = name.endswith("light") if name != "unlabelled" else i % 2
            image = rng.normal(70 + 110 * light, 20, (8, 8, 3))
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def recipe(images: Path, **changes: Any) -> dict[str, Any]:
    data = {"name": "image_folder", "root": str(images), "options": changes.pop("options", {})}
    data |= {"preprocessing": {"size": 8, "crop_share": 1.0}, "batch_size": 8, "validation": 4}
    models = {"teacher": {"name": "digits_cnn"}, "student": {"name": "digits_cnn_small"}}
    train = {"epochs": 5, "steps_per_epoch": None}
    return {"algorithm": {"name": "kd"}, "models": models, "data": data, "train": train, **changes}


def test_images_without_labels_beside_those_with(cli: CommandLine, images: Path) -> None:
    beside = cli("run", cli.recipe(recipe(images, control=True), "beside"))
    assert beside.code == 0, beside
    folder = run_folder(cli.place / "runs", "beside")
    found = results(folder)
    steps = {stage["name"]: stage["steps"] for stage in found["stages"]}
    assert steps == {"teacher": 10, "control": 30, "student": 30}
    assert found["data"]["labelled"] == 20
    said = json.dumps((folder / "report.html").read_text())
    assert "under the same budget on 20 labels; 95 % interval" in said
    assert "The student also learned from 32 samples without a label." in said


def test_a_folder_of_images_alone(cli: CommandLine, images: Path) -> None:
    torch.manual_seed(0)
    teacher = timm.create_model("digits_cnn_small", in_chans=1, num_classes=2)
    save_file(teacher.state_dict(), cli.place / "teacher.safetensors")
    ready = {"name": "digits_cnn_small", "weights": str(cli.place / "teacher.safetensors")}
    models = {"teacher": ready, "student": {"name": "digits_cnn_tiny"}}
    options = {"classes": ["dark", "light"], "test": "test/light"}
    changes = {"models": models, "options": options, "export": [{"format": "onnx"}]}
    alone = cli("run", cli.recipe(recipe(images, control=False, **changes), "alone"))
    assert alone.code == 0, alone
    folder = run_folder(cli.place / "runs", "alone")
    found = results(folder)
    student, exported = found["student"], found["exports"][0]
    assert (student["top1_percent"], student["ece"], found["per_class"]["top1_percent"]) == (None, None, {})
    assert exported["agreement_percent"] == student["agreement_percent"] > 0
    assert (exported["rejected"], exported["top1_percent"], exported["expected_top1_percent"]) == ([], None, None)
    assert found["data"] | {"labelled": 0, "test_samples": 8, "train": 24} == found["data"]
    sentence = f"teacher's class on {student['agreement_percent']:.2f} % of 8 test samples. None of them has a label"
    assert sentence in alone.out.replace("\n", " ")
    assert "Agreement with the teacher, not accuracy" in (folder / "README.md").read_text()
    assert not [text for text in found["warnings"] if "constant" in text]

    refused = cli("run", cli.recipe(recipe(images, control=True, **changes), "control"))
    assert (refused.code, refused.err.strip()) == (
        2,
        "error: control: trains on labels alone, and no training sample has one; control: false would be right",
    )
