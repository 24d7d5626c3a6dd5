"""The JSON Schema of a recipe with the options of every plugin in it, so that editors complete and check recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kdzoo.contract.extension_points import Offer
from kdzoo.recipe.sections import AlgorithmRecipe, DataRecipe, ExportRecipe, Recipe
from kdzoo.zoo.loading import Zoo

Schema = dict[str, Any]


def recipe_schema(zoo: Zoo) -> Schema:
    """Return the schema; which options are allowed depends on the algorithm, data set and export format named."""
    offers = [*zoo.algorithms.values(), *zoo.datasets.values(), *zoo.exporters.values()]
    models: list[type[BaseModel]] = [Recipe, AlgorithmRecipe, DataRecipe, ExportRecipe]
    models += [offer.thing.Options for offer in offers]
    keys, whole = models_json_schema([(model, "validation") for model in dict.fromkeys(models)])
    definitions: dict[str, Schema] = whole["$defs"]

    def reference(model: type[BaseModel]) -> Schema:
        return dict(keys[model, "validation"])

    def section(model: type[BaseModel]) -> Schema:
        return definitions[reference(model)["$ref"].rpartition("/")[2]]

    def of_algorithm(offer: Offer) -> Schema:
        if offer.thing.delegate is None:
            return {"options": reference(offer.thing.Options), "loss_weights": _terms(offer)}
        # further options and loss terms are those of the algorithm that it names
        return {"options": {**section(offer.thing.Options), "additionalProperties": True}}

    _choose(section(AlgorithmRecipe), "name", zoo.algorithms, of_algorithm)
    _choose(section(DataRecipe), "name", zoo.datasets, lambda offer: {"options": reference(offer.thing.Options)})
    _choose(section(ExportRecipe), "format", zoo.exporters, lambda offer: _exporter(section(offer.thing.Options)))
    recipe = section(Recipe)
    if zoo.trackers:
        recipe["properties"]["trackers"]["items"]["enum"] = sorted(zoo.trackers)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kdzoo recipe",
        **{key: value for key, value in recipe.items() if key != "title"},
        "$defs": definitions,
    }


def _choose(section: Schema, key: str, offers: Mapping[str, Offer], then: Callable[[Offer], Schema]) -> None:
    """Let ``section`` name one of ``offers`` at ``key``, and hold what ``then`` says of that one."""
    if not offers:
        return
    named = section["properties"][key]
    named["enum"] = sorted(offers)
    section["allOf"] = []
    for name, offer in offers.items():
        condition: Schema = {"properties": {key: {"const": name}}}
        if named.get("default") != name:
            condition["required"] = [key]
        section["allOf"].append({"if": condition, "then": {"properties": then(offer)}})


def _terms(offer: Offer) -> Schema:
    weights = offer.thing.default_weights
    terms = {term: {"type": "number", "minimum": 0, "default": weight} for term, weight in weights.items()}
    return {"properties": terms, "additionalProperties": False}


def _exporter(options: Schema) -> Schema:
    """A recipe writes quantize beside the other options of an export, not among them."""
    properties = dict(options.get("properties", {}))
    quantize = properties.pop("quantize", {"type": "null"})
    return {"options": {**options, "properties": properties}, "quantize": quantize}
