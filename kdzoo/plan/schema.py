"""The JSON Schema of a recipe with the options of every plugin in it, so that editors complete and check recipes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kdzoo.contract.extension_points import Offer
from kdzoo.recipe.sections import AlgorithmRecipe, DataRecipe, ExportRecipe, Recipe, TrackerRecipe
from kdzoo.zoo.cards import card_of
from kdzoo.zoo.offered import Zoo

Schema = dict[str, Any]


def recipe_schema(zoo: Zoo) -> Schema:
    """Return the schema; which options are allowed depends on what is named.

    ``zoo`` may be one of cards.
    """
    models: list[type[BaseModel]] = [Recipe, AlgorithmRecipe, DataRecipe, ExportRecipe, TrackerRecipe]
    keys, whole = models_json_schema([(model, "validation") for model in models])
    definitions: dict[str, Schema] = whole["$defs"]

    def section(model: type[BaseModel]) -> Schema:
        return definitions[dict(keys[model, "validation"])["$ref"].rpartition("/")[2]]

    def defined(kind: str, offer: Offer) -> tuple[str, Schema]:
        """Put the options of an offer among the definitions; return what they are called there, and themselves."""
        name = f"{kind}.{offer.name}"
        if name not in definitions:
            options, inner = _told_apart(dict(card_of(kind, offer.thing).schema), name)
            definitions.update(inner)
            definitions[name] = options
        return f"#/$defs/{name}", definitions[name]

    def of_algorithm(offer: Offer) -> Schema:
        reference, options = defined("algorithm", offer)
        if offer.thing.delegate is None:
            return {"options": {"$ref": reference}, "loss_weights": _terms(offer)}
        # further options and loss terms are those of the algorithm that it names
        return {"options": {**options, "additionalProperties": True}}

    def of_data_set(offer: Offer) -> Schema:
        return {"options": {"$ref": defined("data", offer)[0]}}

    _choose(section(AlgorithmRecipe), "name", zoo.algorithms, of_algorithm)
    _choose(section(DataRecipe), "name", zoo.datasets, of_data_set)
    _choose(section(ExportRecipe), "format", zoo.exporters, lambda offer: _exporter(defined("export", offer)[1]))
    _choose(
        section(TrackerRecipe), "name", zoo.trackers, lambda offer: {"options": {"$ref": defined("tracker", offer)[0]}}
    )
    recipe = section(Recipe)
    if zoo.trackers:
        kinds = recipe["properties"]["trackers"]["items"]["oneOf"]
        next(kind for kind in kinds if kind.get("type") == "string")["enum"] = sorted(zoo.trackers)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kdzoo recipe",
        **{key: value for key, value in recipe.items() if key != "title"},
        "$defs": definitions,
    }


def _told_apart(schema: Schema, name: str) -> tuple[Schema, dict[str, Schema]]:
    """Return a schema and its own definitions, renamed so that those of another cannot be mistaken for them."""
    inner = schema.pop("$defs", {})

    def renamed(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: renamed(value) for key, value in part.items()}
        if isinstance(part, list):
            return [renamed(value) for value in part]
        if isinstance(part, str) and part.startswith("#/$defs/"):
            return f"#/$defs/{name}.{part.removeprefix('#/$defs/')}"
        return part

    return renamed(schema), {f"{name}.{key}": renamed(value) for key, value in inner.items()}


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list | tuple),
    "object": lambda value: isinstance(value, Mapping),
}
_LIMITS: Mapping[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
    "minLength": lambda value, limit: len(value) >= limit,
    "maxLength": lambda value, limit: len(value) <= limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "maxItems": lambda value, limit: len(value) <= limit,
    "enum": lambda value, known: value in known,
    "const": lambda value, known: value == known,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value looks right by a JSON Schema; of a keyword that is not known here, it does not."""
    if "anyOf" in schema:
        return any(fits(value, part) for part in schema["anyOf"])
    if not all(key in _LIMITS or key in ("type", "items", *_WORDS) for key in schema):
        return False
    if "type" in schema and not _KINDS.get(schema["type"], lambda value: False)(value):
        return False
    if "type" not in schema and not {"enum", "const"} & schema.keys():
        return schema.keys() <= set(_WORDS)
    if not all(limit(value, schema[key]) for key, limit in _LIMITS.items() if key in schema):
        return False
    return (
        all(fits(item, schema["items"]) for item in value)
        if isinstance(value, list | tuple) and "items" in schema
        else True
    )


_WORDS = ("title", "description", "default", "examples")  # which say nothing of the value


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
