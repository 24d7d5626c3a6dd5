"""A recipe for one's own images and models: what the folder and the models say is in it, and mistakes write nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets

from kdzoo.errors import DataError, KdzooError, ModelError, OutputError, RecipeError, UnknownName
from kdzoo.testing.own_recipe import Wanted, folder_options, write_own_recipe
from kdzoo_vision.image_folder import ImageFolder


def draw(folder: Path, *names: str, count: int = 3) -> Path:
    """Write small images into folders."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network for two classes, as timm's script writes one."""
    path = tmp_path_factory.mktemp("weights") / "best.pth.tar"
    settings = argparse.Namespace(
        img_size=48, crop_pct=1.0, mean=(0.1, 0.2, 0.3), std=None, interpolation="", eval_metric="top1"
    )
    state = timm.create_model("test_resnet", num_classes=2).state_dict()
    torch.save({"arch": "test_resnet", "state_dict": state, "args": settings, "metric": 81.5}, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw(tmp_path / "my images", "train/cat", "train/dog", "val/cat", "val/dog")


def wanted(data: Path, weights: Path | str, **changes: Any) -> Wanted:
    asked = {"name": "mine", "teacher": "test_resnet", "student": "test_convnext", **changes}
    return Wanted(data=data, teacher_weights=str(weights), **asked)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_a_recipe_says_what_the_models_and_the_file_say(tmp_path: Path, data: Path, weights: Path) -> None:
    path, schema = write_own_recipe(wanted(data, weights), tmp_path)
    assert (path, schema) == (tmp_path / "mine.yaml", tmp_path / "kdzoo.schema.json")
    recipe, text = read(path), path.read_text()
    teacher, student = recipe["models"]["teacher"], recipe["models"]["student"]
    assert teacher["preprocessing"] == {
        "size": 48,
        "crop_share": 1,
        "resize": "center",
        "interpolation": "bilinear",
        "color_mode": "RGB",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
    }
    assert "# of what its file says of its training" in text
    assert "  # its 'state_dict', 81.50 % stated by best.pth.tar\n" in text
    assert (student["weights"], recipe["train"]["epochs"]) == ("train", 100)
    assert (recipe["data"]["root"], recipe["data"]["options"]) == (str(data), {"test": "val"})
    assert recipe["data"]["preprocessing"]["size"] == 160
    assert [entry.get("quantize") for entry in recipe["export"]] == [None, "int8"]
    assert write_own_recipe(wanted(data, weights, name="other"), tmp_path) == [tmp_path / "other.yaml"]


def test_the_classes_of_a_teacher_of_timm_s_script_are_in_its_order(tmp_path: Path, weights: Path) -> None:
    data = draw(tmp_path / "numbers", "train/10", "train/2", "test/10", "test/2")
    path, _ = write_own_recipe(wanted(data, weights), tmp_path)
    assert read(path)["data"]["options"] == {"class_order": "natural"}
    source = ImageFolder(ImageFolder.Options(class_order="natural"))
    assert source.load(data).classes == tuple(find_images_and_targets(str(data / "train"))[1]) == ("2", "10")


def test_a_teacher_that_is_trained_here_has_no_steps_of_its_own(tmp_path: Path, data: Path) -> None:
    path, _ = write_own_recipe(wanted(data, "train", algorithm="dkd"), tmp_path)
    recipe = read(path)
    assert (recipe["models"]["teacher"], recipe["algorithm"]["name"]) == (
        {"name": "test_resnet", "weights": "train"},
        "dkd",
    )


def test_folders_of_splits_and_of_classes(tmp_path: Path) -> None:
    whole = draw(tmp_path / "whole", "train/a", "train/b", "test/a", "test/b")
    assert folder_options(whole) == {}
    assert folder_options(draw(whole, "val/a", "val/b")) == {}
    assert folder_options(draw(tmp_path / "two", "train/a", "validation/a")) == {"test": "validation"}
    assert folder_options(draw(tmp_path / "classes", "a", "b")) == {"test_share": 0.2, "validation_share": 0.1}


MISTAKES: dict[str, tuple[dict[str, Any], type[KdzooError], str]] = {
    "name": ({"name": "My Recipe"}, RecipeError, "new recipe: 'My Recipe' cannot name a recipe; use lower-case"),
    "folder": ({"data": Path("nowhere")}, DataError, "nowhere: no such folder"),
    "file": ({"teacher_weights": "x.pth"}, ModelError, "new recipe: teacher: 'x.pth' is no file; weights are a file, "),
    "student": ({"student_weights": "pretraind"}, ModelError, "new recipe: student: 'pretraind' is no file; weights"),
    "algorithm": ({"algorithm": "kdd"}, UnknownName, "unknown algorithm 'kdd'; did you mean 'kd'?"),
    "model": ({"student": "test_resnt"}, UnknownName, "unknown model 'test_resnt'; did you mean 'test_resnet'?"),
    "needs": ({"algorithm": "mt_average"}, RecipeError, "at least 2 teachers"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_error_and_nothing_is_written(
    case: str, tmp_path: Path, data: Path, weights: Path
) -> None:
    changes, kind, text = MISTAKES[case]
    with pytest.raises(kind) as caught:
        write_own_recipe(Wanted(**{**vars(wanted(data, weights)), **changes}), tmp_path)
    assert text in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["my images"]


def test_weights_that_do_not_fit_write_nothing(tmp_path: Path, data: Path, weights: Path) -> None:
    with pytest.raises(ModelError, match="not weights of 'test_convnext' with 2 classes\n  model: the file says that"):
        write_own_recipe(wanted(data, weights, teacher="test_convnext"), tmp_path)
    draw(data, "train/emu", "val/emu")
    with pytest.raises(ModelError, match="classes: 2 in the file, 3 in the data; a teacher must be trained for"):
        write_own_recipe(wanted(data, weights), tmp_path)
    (tmp_path / "broken.pth").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"neither torch\.save nor safetensors writes such a file"):
        write_own_recipe(wanted(data, tmp_path / "broken.pth"), tmp_path)
    assert not (tmp_path / "mine.yaml").exists()


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    def refusal(folder: Path) -> str:
        with pytest.raises(DataError) as caught:
            folder_options(folder)
        return str(caught.value).removeprefix(f"{folder}: ")

    (tmp_path / "list.csv").write_text("")
    assert refusal(tmp_path / "list.csv") == "is a file; a folder of images would be right"
    lone = draw(tmp_path / "lone", "train/a")
    assert refusal(lone) == (
        f"holds train, but neither test nor val; add one, or give --data {lone / 'train'}, which is then divided into "
        "splits"
    )
    assert refusal(draw(tmp_path / "late", "test/a")) == "holds test, but no train; it would hold one folder a class"
    flat = draw(tmp_path, "flat")
    assert refusal(flat / "flat").startswith("holds no folders; train and test (or val) would be right, or one folder ")
    assert refusal(draw(tmp_path / "one", "a")).startswith("holds 1 folder; ")


def test_a_recipe_is_never_replaced(tmp_path: Path, data: Path, weights: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    with pytest.raises(OutputError, match="exists already; nothing was written"):
        write_own_recipe(wanted(data, weights), tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == "precious"
