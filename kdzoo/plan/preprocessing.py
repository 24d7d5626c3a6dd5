"""The steps from image files to pixels that a recipe leaves to timm's data configs, written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from pydantic_core import to_jsonable_python

from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.contract.stage import ModelSpec
from kdzoo.errors import KdzooError
from kdzoo.recipe.sections import ModelRecipe, PreprocessingRecipe, Recipe


def fill_preprocessing(data: dict[str, Any], recipe: Recipe) -> None:
    """Write the steps of the data, and of each teacher that is used with ready weights, into the recipe's ``data``.

    What cannot be known, such as a model that nobody offers, stays as it is written.
    """
    from kdzoo.models.building import data_preprocessing, own_preprocessing  # takes seconds to import

    models = recipe.models
    _fill(data["data"], recipe.data.preprocessing, partial(data_preprocessing, _spec(models.student)))
    ready = [models.teacher] if models.teacher else list(models.teachers)
    sections = [data["models"]["teacher"]] if models.teacher else data["models"]["teachers"]
    for model, section in zip(ready, sections, strict=True):
        if model.weights == "train" or model.finetune or model.weights.startswith(("hf-hub:", "answers:")):
            continue
        _fill(section, model.preprocessing, partial(own_preprocessing, _spec(model)))


def _spec(model: ModelRecipe) -> ModelSpec:
    return ModelSpec(model.name, model.weights, model.args)


def _fill(section: dict[str, Any], given: PreprocessingRecipe | None, known: Callable[[], Preprocessing]) -> None:
    try:
        steps = known()
    except KdzooError:
        return
    whole = steps.changed(given.given() if given is not None else {})
    section["preprocessing"] = to_jsonable_python(asdict(whole))
