"""A recipe with the defaults of what it names written out."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_jsonable_python

from kdzoo.plan.preprocessing import fill_preprocessing
from kdzoo.recipe.sections import Recipe
from kdzoo.zoo.offered import Zoo


def filled(recipe: Recipe, zoo: Zoo) -> Recipe:
    """Return a recipe with the defaults of its plugins' options, its loss weights and its preprocessing written out.

    ``zoo`` may be one of cards. What it does not offer stays as it is written.
    """
    data = recipe.model_dump(mode="json")
    section, weights = data["algorithm"], dict[str, float]()
    name: Any = recipe.algorithm.name
    seen = set[str]()
    while name in zoo.algorithms and name not in seen:
        cls = zoo.algorithms[name].thing
        seen.add(name)
        section["options"] = {**_defaults(cls), **section["options"]}
        weights = {**cls.default_weights, **weights}
        name = section["options"].get(cls.delegate) if cls.delegate else None
        usual = cls.delegate_defaults.get(name, {})
        section["options"] = {**usual.get("options", {}), **section["options"]}
        weights = {**usual.get("loss_weights", {}), **weights}
    section["loss_weights"] = {**weights, **section["loss_weights"]}
    if recipe.data.name in zoo.datasets:
        options = data["data"]["options"]
        data["data"]["options"] = {**_defaults(zoo.datasets[recipe.data.name].thing), **options}
    for export in data["export"]:
        if export["format"] in zoo.exporters:
            defaults = _defaults(zoo.exporters[export["format"]].thing)
            defaults.pop("quantize", None)  # it is written next to the options
            export["options"] = {**defaults, **export["options"]}
    for tracker in data["trackers"]:
        if not isinstance(tracker, str) and tracker["name"] in zoo.trackers:
            tracker["options"] = {**_defaults(zoo.trackers[tracker["name"]].thing), **tracker["options"]}
    if not isinstance(recipe.data.augmentation, str):
        data["data"]["augment"] = recipe.data.augmentation.model_dump(mode="json")
    if recipe.data.name in zoo.datasets and zoo.datasets[recipe.data.name].thing.encoded:
        fill_preprocessing(data, recipe)
    return Recipe.model_validate(data)


def _defaults(cls: Any) -> dict[str, Any]:
    fields = cls.Options.model_fields.items()
    given = {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    return dict(to_jsonable_python(given))
