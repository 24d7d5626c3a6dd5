"""A first recipe for somebody's own images and models, with what the models' own configurations say filled in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdzoo.errors import DataError, ModelError, OutputError, plain
from kdzoo.plan.schema import recipe_schema
from kdzoo.recipe.bundled import recipes_root
from kdzoo.recipe.reading import load_recipe, parse_recipe
from kdzoo.testing.scaffold import recipe_place, write_new

if TYPE_CHECKING:
    from kdzoo.contract.preprocessing import Preprocessing
    from kdzoo.models.weight_files import WeightFile

#: Folders that hold a split, in the order in which they are looked for.
VALIDATION = ("validation", "val")
#: Shares of one folder of classes.
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
#: What YAML may take for something else than text.
NO_TEXT = ("null", "true", "false", "yes", "no", "on", "off")
#: Weights that are no file.
NO_FILE = ("train", "pretrained")
SCHEMA = "kdzoo.schema.json"
#: The order of classes that a teacher learns from timm's script; others sort by name.
NATURAL = {"class_order": "natural"}


@dataclass(frozen=True)
class Wanted:
    """What a recipe is asked for: the images, and both models with their weights."""

    name: str
    data: Path
    teacher: str
    teacher_weights: str
    student: str
    student_weights: str = "train"
    algorithm: str = ""  # empty: that of the bundled quickstart


def write_own_recipe(wanted: Wanted, where: Path) -> list[Path]:
    """Write ``<name>.yaml``, and the schema for editors where there is none; return what was written.

    What can be seen without torch is looked at first. Raises RecipeError, DataError, ModelError and UnknownName, which
    say what would be right, and OutputError when the recipe is there already; nothing is written then.
    """
    from kdzoo.zoo.catalogue import catalogue

    name, path = recipe_place(wanted.name, where)
    if path.exists():
        raise OutputError(f"{path}: exists already; nothing was written")
    options = folder_options(wanted.data)
    for role, weights in (("teacher", wanted.teacher_weights), ("student", wanted.student_weights)):
        _check_there(role, weights)
    cards = catalogue()
    algorithm = wanted.algorithm or load_recipe(recipes_root() / "quickstart.yaml").recipe.algorithm.name
    cards.algorithm(algorithm)
    files = {path: _drafted(replace(wanted, name=name, algorithm=algorithm), path, options)}
    if not (schema := where / SCHEMA).exists():
        files[schema] = json.dumps(recipe_schema(cards), indent=1)
    for file, text in files.items():
        write_new(file, text)
    return list(files)


def _check_there(role: str, weights: str) -> None:
    if weights in NO_FILE or weights.startswith("hf-hub:") or os.path.isfile(os.path.expanduser(weights)):
        return
    raise ModelError(
        f"new recipe: {role}: '{plain(weights, 200)}' is no file; weights are a file, pretrained, "
        "hf-hub:<name>, or train"
    )


# --- the folder -----------------------------------------------------------------------------------


def folder_options(folder: Path) -> dict[str, Any]:
    """Return the options of image_folder for a folder: of splits, or of classes; DataError where it is neither."""
    if not folder.is_dir():
        kind = "is a file; a folder of images would be right" if folder.exists() else "no such folder"
        raise DataError(f"{plain(str(folder), 200)}: {kind}")
    names = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    validation = next((name for name in VALIDATION if name in names), None)
    if "train" in names and "test" in names:
        return {}
    if "train" in names and validation is not None:
        return {"test": validation}
    if "train" in names:
        raise DataError(
            f"{folder}: holds train, but neither test nor val; add one, or give --data {folder / 'train'}, which is "
            "then divided into splits"
        )
    if validation is not None or "test" in names:
        raise DataError(f"{folder}: holds {validation or 'test'}, but no train; it would hold one folder a class")
    if len(names) < 2:
        found = "1 folder" if names else "no folders"
        raise DataError(
            f"{folder}: holds {found}; train and test (or val) would be right, or one folder a class, two at least"
        )
    return {"test_share": TEST_SHARE, "validation_share": VALIDATION_SHARE}


# --- the recipe -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What the folder and the models say of themselves."""

    classes: tuple[str, ...]
    samples: int  # to train on
    data_steps: Preprocessing
    teacher_steps: Preprocessing | None  # None: a teacher that is trained takes the data's
    read: WeightFile | None  # what the teacher's file says
    finetune: bool


def _drafted(wanted: Wanted, path: Path, options: dict[str, Any]) -> str:
    """Look at everything that needs torch, and write the text, which resolves."""
    from kdzoo.plan.resolve import resolve
    from kdzoo.zoo.loading import load_zoo

    zoo = load_zoo()
    cls = zoo.dataset("image_folder")
    splits = cls(cls.Options.model_validate(options)).load(wanted.data)
    labelled = splits.train.targets[splits.train.targets >= 0]
    found = _look_at_models(wanted, splits.classes, len(labelled))
    if found.read is not None and found.read.by_timm:
        ordered = cls(cls.Options.model_validate(options | NATURAL)).load(wanted.data).classes
        options |= NATURAL if ordered != splits.classes else {}
    text = _text(wanted, path, options, found)
    resolve(parse_recipe(text.encode(), path), zoo)
    return text


def _look_at_models(wanted: Wanted, classes: tuple[str, ...], samples: int) -> Found:
    """Build both models; raise UnknownName or ModelError where one is not known or its weights do not fit."""
    from kdzoo.contract.stage import ModelSpec
    from kdzoo.data.inputs import Pixels
    from kdzoo.models.building import build_network, data_preprocessing, own_preprocessing

    student = ModelSpec(wanted.student, wanted.student_weights)
    teacher = ModelSpec(wanted.teacher, wanted.teacher_weights, as_is=wanted.teacher_weights != "train")
    data_steps = data_preprocessing(student)
    inputs = Pixels(data_steps.channels, data_steps.size, data_steps.mean, data_steps.std, preprocessing=data_steps)
    build_network(student, inputs=inputs, num_classes=len(classes), seed=0)
    network = build_network(teacher, inputs=inputs, num_classes=len(classes), seed=0)
    steps = None
    if teacher.as_is and not network.fresh_head:
        stated = network.read_from.steps if network.read_from is not None else {}
        steps = own_preprocessing(teacher).changed(stated)
    return Found(classes, samples, data_steps, steps, network.read_from, network.fresh_head)


RECIPE = """\
# yaml-language-server: $schema={schema}
# {student} from {teacher} on the images in {folder}: {classes} classes, {samples} images to train on.
# Look first: kdzoo check {file}   then: kdzoo run {file}   All keys with their defaults: kdzoo show {file}
# Paths are those of the folder in which kdzoo is started.
version: 1
name: {name}
algorithm: {{name: {algorithm}}}  # kdzoo list names the others
models:
  teacher:
    name: {teacher}
    weights: {teacher_weights}
{about_teacher}  student:
    name: {student}
    weights: {student_weights}
data:
  name: image_folder
  root: {folder}
  options: {options}
  preprocessing:  # of the student's timm config; a smaller size is faster
    {data_steps}
  batch_size: {batch_size}
  augment: timm_light  # none, flip and crop_flip do less, timm_strong and patient more
  workers: 2
train:  # {why}
  epochs: {epochs}
  optimizer: {{name: adamw, lr: {lr}, weight_decay: 0.05}}
  schedule: {{name: cosine, warmup_epochs: {warmup}}}
control: true  # also train the student alone, to see whether the teacher helped
export:
  - {{format: onnx}}
  - {{format: onnx, quantize: int8}}
"""

#: Whether the student has ready weights -> epochs, learning rate, epochs of warm-up, and why.
TRAINING = {
    True: (30, 2e-4, 1, "from ready weights: few epochs at a low rate"),
    False: (100, 1e-3, 5, "from fresh weights; student: weights: pretrained needs a third of the epochs, lr 2e-4"),
}


def _text(wanted: Wanted, path: Path, options: dict[str, Any], found: Found) -> str:
    epochs, lr, warmup, why = TRAINING[wanted.student_weights != "train"]
    remarks = found.read.remarks() if found.read is not None else []
    fitting = [size for size in (64, 32, 16) if found.samples >= 10 * size]
    return RECIPE.format(
        schema=SCHEMA,
        file=path,
        name=_scalar(wanted.name),
        algorithm=_scalar(wanted.algorithm),
        folder=_scalar(str(wanted.data)),
        teacher=_scalar(wanted.teacher),
        teacher_weights=_scalar(wanted.teacher_weights) + (f"  # {', '.join(remarks)}" if remarks else ""),
        about_teacher="".join(f"    {line}\n" for line in _about_teacher(found)),
        student=_scalar(wanted.student),
        student_weights=_scalar(wanted.student_weights),
        classes=len(found.classes),
        samples=f"{found.samples:,}",
        options=_flow(options),
        data_steps=_flow(_steps(found.data_steps)),
        batch_size=fitting[0] if fitting else min(8, found.samples),
        epochs=epochs,
        lr=f"{lr:g}",
        warmup=warmup,
        why=why,
    )


def _about_teacher(found: Found) -> list[str]:
    if found.finetune:
        return ["finetune: true  # its weights are for other classes", "train: {epochs: 30, optimizer: {lr: 0.0002}}"]
    if found.teacher_steps is None:
        return []
    source = "what its file says of its training" if found.read is not None and found.read.steps else "its timm config"
    return [f"preprocessing:  # of {source}", f"  {_flow(_steps(found.teacher_steps))}"]


def _steps(steps: Preprocessing) -> dict[str, Any]:
    """The steps as a recipe writes them."""
    height, width = steps.size
    return {
        "size": height if height == width else [height, width],
        "crop_share": round(steps.crop_share, 6),
        "resize": steps.resize,
        "interpolation": steps.interpolation,
        "color_mode": steps.color_mode,
        "mean": list(steps.mean),
        "std": list(steps.std),
    }


def _flow(value: Any) -> str:
    """Plain values as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _scalar(text: str) -> str:
    """Text as YAML takes it for text."""
    plain_text = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and text.lower() not in NO_TEXT
    return text if plain_text else json.dumps(text)
