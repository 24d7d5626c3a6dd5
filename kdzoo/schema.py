"""The JSON Schema of a recipe with the options of every plugin in it, so that editors complete and check recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kdzoo.offers import Offer
from kdzoo.recipe import AlgorithmRecipe, DataRecipe, ExportRecipe, Recipe
from kdzoo.zoo import Zoo

Schema = dict[str, Any]


def recipe_schema(zoo: Zoo) -> Schema:
    """Return the schema; which options are allowed depends on the algorithm, data set and export format named."""
    offers = [*zoo.algorithms.values(), *zoo.datasets.values(), *zoo.exporters.values()]
    models: list[type[BaseModel]] = [Recipe, AlgorithmRecipe, DataRecipe, ExportRecipe]
    models += [offer.thing.Options for offer in offers]
    keys, whole = models_json_schema([(model, "validation") for model in dict.fromkeys(models)])
    definitions: dict[str, Schema] = whole["$defs"]

    def section(model: type[BaseModel]) -> Schema:
        return definitions[keys[model, "validation"]["$ref"].rpartition("/")[2]]

    algorithm, data, export = section(AlgorithmRecipe), section(DataRecipe), section(ExportRecipe)
    _name(algorithm["properties"]["name"], zoo.algorithms)
    algorithm["allOf"] = [
        _when("name", name, _algorithm(offer, section(offer.thing.Options))) for name, offer in zoo.algorithms.items()
    ]
    _name(data["properties"]["name"], zoo.datasets)
    data["allOf"] = [
        _when("name", name, {"options": section(offer.thing.Options)}) for name, offer in zoo.datasets.items()
    ]
    _name(export["properties"]["format"], zoo.exporters)
    export["allOf"] = [
        _when("format", name, _exporter(section(offer.thing.Options)), is_default=name == ExportRecipe().format)
        for name, offer in zoo.exporters.items()
    ]
    recipe = section(Recipe)
    _name(recipe["properties"]["trackers"]["items"], zoo.trackers)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kdzoo recipe",
        **{key: value for key, value in recipe.items() if key != "title"},
        "$defs": definitions,
    }


def _name(place: Schema, offers: Mapping[str, Offer]) -> None:
    place["enum"] = sorted(offers)


def _when(key: str, name: str, properties: Schema, is_default: bool = False) -> Schema:
    condition: Schema = {"properties": {key: {"const": name}}}
    if not is_default:
        condition["required"] = [key]
    return {"if": condition, "then": {"properties": properties}}


def _algorithm(offer: Offer, options: Schema) -> Schema:
    cls = offer.thing
    if cls.delegate is not None:  # further options and loss terms are those of the algorithm it names
        return {"options": {**options, "additionalProperties": True}}
    terms = {term: {"type": "number", "minimum": 0, "default": weight} for term, weight in cls.default_weights.items()}
    return {"options": options, "loss_weights": {"properties": terms, "additionalProperties": False}}


def _exporter(options: Schema) -> Schema:
    """A recipe writes quantize beside the other options of an export, not among them."""
    properties = dict(options.get("properties", {}))
    quantize = properties.pop("quantize", {"type": "null"})
    return {"options": {**options, "properties": properties}, "quantize": quantize}
