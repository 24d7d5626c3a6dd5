"""The steps from an image file to what a network takes: timm's arithmetic, each network's own, said wherever needed."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config

from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.contract.stage import ModelSpec
from kdzoo.data.image_code import image_code
from kdzoo.data.images import Decoder
from kdzoo.errors import ModelError, RecipeError
from kdzoo.models.building import data_preprocessing, own_preprocessing
from kdzoo.plan.filled import filled
from kdzoo.plan.resolve import resolve
from kdzoo.recipe.problems import Positions
from kdzoo.recipe.reading import LoadedRecipe, parse_recipe
from kdzoo.recipe.sections import Recipe
from kdzoo.run.runner import Runner
from kdzoo.storage.store import Store
from kdzoo.testing.tiny import tiny_recipe
from kdzoo.zoo.loading import load_zoo

SHAPES = ((40, 30), (31, 77), (56, 56), (20, 20), (300, 200))


def picture(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def taken(steps: Preprocessing, content: bytes) -> torch.Tensor:
    """What a network with these steps takes of a file: (C, H, W), normalised."""
    pixels = torch.from_numpy(Decoder(steps, 64.0).pixels(content, "x.png").copy()).permute(2, 0, 1).float().div_(255)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (steps.mean, steps.std))
    return (pixels - mean) / std


# --- as timm does it ----------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["center", "squash", "border"])
def test_pixels_are_those_of_timm_to_the_last_bit(resize: Any) -> None:
    ways = itertools.product((32, (24, 40)), (1.0, 0.9, 0.875), ("bicubic", "bilinear", "nearest"), SHAPES)
    for size, share, interpolation, shape in ways:
        steps = Preprocessing(crop_share=share, resize=resize, interpolation=interpolation).changed(
            {"size": size, "mean": (0.4, 0.5, 0.6)}
        )
        image = picture(shape)
        theirs = create_transform(
            (3, *steps.size),
            crop_pct=share,
            crop_mode=resize,
            interpolation=interpolation,
            mean=steps.mean,
            std=steps.std,
        )(image)
        assert torch.equal(taken(steps, encoded(image)), theirs), (size, share, interpolation, shape)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnet18"])
def test_a_model_s_own_steps_are_those_of_its_timm_config(name: str) -> None:
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    image = picture((300, 200))
    for steps in (data_preprocessing(ModelSpec(name)), own_preprocessing(ModelSpec(name, "x.pth"))):
        assert torch.equal(taken(steps, encoded(image)), create_transform(**config, is_training=False)(image))


def test_a_model_s_config_is_what_timm_resolves_of_the_model() -> None:
    steps, config = data_preprocessing(ModelSpec("test_vit")), resolve_model_data_config(timm.create_model("test_vit"))
    assert config == {
        "input_size": (steps.channels, *steps.size),
        "interpolation": steps.interpolation,
        "mean": steps.mean,
        "std": steps.std,
        "crop_pct": steps.crop_share,
        "crop_mode": steps.resize,
    }


def test_grey_and_alpha_follow_the_channels_that_a_model_has() -> None:
    grey, clear = (data_preprocessing(ModelSpec("test_resnet", args={"in_chans": n})) for n in (1, 4))
    assert (grey.color_mode, grey.mean, clear.color_mode, clear.mean) == ("L", (0.5,), "RGBA", (0.5, 0.5, 0.5, 0.0))
    assert (Preprocessing().changed({"color_mode": "L"}).mean, clear.std[3]) == ((0.449,), 1.0)
    with pytest.raises(ModelError, match="5 channels are those of no colour mode: L, RGB, RGBA"):
        data_preprocessing(ModelSpec("test_resnet", args={"in_chans": 5}))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_files_of_every_mode_become_the_mode_that_is_asked_for(mode: Any) -> None:
    steps = Preprocessing().changed({"size": 16, "color_mode": mode})
    for held in ("L", "RGB", "RGBA", "1"):
        assert taken(steps, encoded(picture((20, 30), held))).shape == (steps.channels, 16, 16)


# --- as a user repeats it -------------------------------------------------------------------------


def test_the_code_for_users_makes_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "your.png"
    ways = itertools.product(("center", "squash", "border"), (24, (24, 40)), ("RGB", "L"), SHAPES[:3])
    for resize, size, mode, shape in ways:
        steps = Preprocessing(resize=resize).changed({"size": size, "color_mode": mode})
        path.write_bytes(encoded(picture(shape, "L" if mode == "L" else "RGB")))
        names: dict[str, Any] = {}
        code = ["import numpy as np", "from PIL import Image, ImageOps", *image_code(steps, 3, str(path))]
        exec("\n".join(code), names)
        ours = Decoder(steps, 64.0).pixels(path.read_bytes(), "x").transpose(2, 0, 1)[None] / np.float32(255)
        assert np.array_equal(names["pixels"], np.broadcast_to(ours, (1, 3, *steps.size))), (resize, size, mode, shape)
        assert names["pixels"].dtype == np.float32


def test_a_record_is_read_back_and_any_other_is_refused() -> None:
    steps = Preprocessing(resize="border", crop_share=0.95).changed({"size": (24, 40), "color_mode": "L"})
    record = json.loads(json.dumps(steps.record()))
    assert Preprocessing.from_record(record) == steps
    for key, value in (("resize", "stretch"), ("crop_share", 2), ("std", [0.0]), ("mean", [float("nan")]), ("size", 0)):
        with pytest.raises((ValueError, TypeError)):
            Preprocessing.from_record(record | {key: value})
    with pytest.raises(KeyError):
        Preprocessing.from_record({})


# --- in a run ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, name, i in itertools.product(("train", "test"), ("cat", "dog"), range(6)):
        path = tmp_path / "data" / split / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture((60, 44), seed=i + 10 * (name == "dog") + 100 * (split == "test"))))
    return tmp_path


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    data = {"name": "image_folder", "root": str(folder / "data"), "batch_size": 4, "validation": 2}
    data |= {"preprocessing": {"size": 32}, "options": {}}
    return tiny_recipe(load_zoo().algorithm("kd"), {"data": data} | changes)


def runner(recipe: Recipe, folder: Path) -> Runner:
    plan = resolve(LoadedRecipe(recipe, folder / "recipe.yaml", Positions()), load_zoo())
    return Runner(plan, load_zoo(), None, Store(folder / "store"))


def test_a_ready_teacher_is_evaluated_through_its_own_steps_decoded_anew(folder: Path) -> None:
    weights = folder / "teacher.pth"
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), weights)
    own = {"crop_share": 1.0, "resize": "squash"}
    teacher = {"name": "test_resnet", "weights": str(weights), "preprocessing": own}
    made = runner(recipe_of(folder, models={"teachers": [teacher]}), folder)
    network = made.build.network(made.plan.teachers[0])
    assert network.inputs.steps is not None
    assert (network.size, network.inputs.steps.resize, network.mean) == ((160, 160), "squash", (0.5, 0.5, 0.5))
    (batch,) = made.build.loader.eval_batches("validation", 8, inputs=network.inputs)
    row = made.data.part("validation").rows[0]
    content = made.data.part("validation").split.content(int(row))  # type: ignore[union-attr]
    assert torch.equal(network.preprocess(batch.inputs)[0], taken(network.inputs.steps, content))
    assert network(next(made.build.loader.train_batches(0, 0)).inputs).logits.shape == (4, 2)  # the student's view
    assert made.data.size == (32, 32)
    student = made.build.network(made.plan.student)
    assert student.inputs.steps == made.data.preprocessing
    lines = made.check()
    assert any("teacher" in line and "160x160 (squash, crop share 1, bilinear, RGB)" in line for line in lines)


def test_a_teacher_that_a_run_delivered_brings_its_steps_along(folder: Path) -> None:
    steps = Preprocessing().changed({"size": 48, "crop_share": 0.6})
    told = {"model": "test_resnet", "preprocessing": {"image": steps.decoding(), "mean": steps.mean, "std": steps.std}}
    (folder / "student.json").write_text(json.dumps(told))
    spec = ModelSpec("test_resnet", str(folder / "student.safetensors"))
    assert own_preprocessing(spec) == steps
    assert own_preprocessing(ModelSpec("test_vit", spec.weights)).size == (160, 160)
    (folder / "student.json").write_text("{}")
    assert own_preprocessing(spec).size == (160, 160)


def test_a_whole_recipe_shows_every_value(folder: Path) -> None:
    teacher = {"name": "resnet18", "weights": "x.pth", "preprocessing": {"size": 288}}
    whole = filled(recipe_of(folder, models={"teachers": [teacher]}), load_zoo())
    assert whole.data.preprocessing is not None
    assert whole.data.preprocessing.model_dump() == {
        "size": (32, 32),
        "crop_share": 0.95,
        "resize": "center",
        "interpolation": "bilinear",
        "color_mode": "RGB",
        "decode": "exact",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    own = whole.models.teachers[0].preprocessing
    assert own is not None
    assert (own.size, own.crop_share, own.interpolation) == ((288, 288), 0.95, "bicubic")
    assert whole.models.student.preprocessing is None
    assert filled(whole, load_zoo()) == whole


def test_networks_that_see_one_view_agree_on_its_colours(folder: Path) -> None:
    student = {"preprocessing": {"color_mode": "L"}}
    with pytest.raises(ModelError, match=r"takes L, and data\.preprocessing\.color_mode is RGB"):
        runner(recipe_of(folder, models={"student": student}), folder).check()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": {"options": {"size": 8}}}, "data.options.size: is 'data.preprocessing.size' now"),
        ({"models": {"student": {"size": 8}}}, "models.student.size: unknown key; it is 'preprocessing.size' now"),
        ({"data": {"preprocessing": {"mean": [0.5]}}}, "mean and std must have one number a channel each"),
        ({"data": {"name": "digits", "preprocessing": {"size": 8}}}, "is for image files, and 'digits' has none"),
    ],
)
def test_what_a_recipe_gets_wrong(changes: dict[str, Any], text: str) -> None:
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "x",
        "algorithm": {"name": "kd"},
        "models": {"teacher": {"name": "test_resnet"}, "student": {"name": "test_resnet"}},
        "data": {"name": "image_folder"},
    }
    for section, keys in changes.items():
        for key, value in keys.items():
            recipe[section][key] = {**recipe[section].get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(RecipeError) as caught:
        resolve(parse_recipe(json.dumps(recipe).encode(), Path("x.yaml")), load_zoo())
    assert text in str(caught.value)
