"""What offered things say of themselves, as plain data that is read without importing a plugin or torch.

A zoo of cards is a ``Zoo`` in which each offer's thing is a card in place of the class. Its ``Options`` know the names
of the options and no more: what a value must be, only the plugin's own class knows.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, create_model

from kdzoo.contract.declared import Needs, Paper
from kdzoo.contract.extension_points import ModelFamily, Offer, OfferOptions
from kdzoo.errors import PluginError
from kdzoo.zoo.finding import PluginInfo
from kdzoo.zoo.installed import loose_sources, state_of
from kdzoo.zoo.offered import Zoo, merged_zoo

Schema = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A data set, export format, quantizer, tracker or executor."""

    name: str
    description: str = ""
    doc: str = ""  # the class's docstring, without its indentation
    text: str = ""  # the hand-written half of its page: the .md file that goes with its module
    fields: tuple[str, ...] = ()  # names of the options
    schema: Mapping[str, Any] = field(default_factory=dict)  # JSON Schema of the options
    open: bool = False  # whether names of options that are not in ``fields`` may be right too
    encoded: bool = False  # of a data set: whether its samples are image files

    @cached_property
    def Options(self) -> type[BaseModel]:  # noqa: N802 as the class has it
        """A stand-in for the class's options that takes any value."""
        properties, required = self.schema.get("properties", {}), self.schema.get("required", ())
        kinds: dict[str, Any] = {
            name: (Any, ... if name in required and not self.open else properties.get(name, {}).get("default"))
            for name in self.fields
        }
        base = type("CardOptions", (OfferOptions,), {"model_config": {"extra": "allow"}}) if self.open else OfferOptions
        return create_model("Options", __base__=base, **kinds)


_NO_PAPER, _NO_NEEDS = Paper("", "", 0, ""), Needs()


@dataclass(frozen=True)
class AlgorithmCard(Card):
    """An algorithm."""

    paper: Paper = _NO_PAPER
    needs: Needs = _NO_NEEDS
    default_weights: Mapping[str, Any] = field(default_factory=dict)
    also_known_as: tuple[str, ...] = ()
    delegate: str | None = None
    delegate_defaults: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    rung: str = "losses"  # the lowest that the class overrides
    plans_stages: bool = False
    skip_checks: Mapping[str, str] = field(default_factory=dict)
    quantizer: str | None = None
    upper_bound: str = ""
    losses: Mapping[str, str] = field(default_factory=dict)  # the module of each of its loss functions, by name


CARDS: Mapping[str, Any] = {"algorithm": AlgorithmCard, "model": ModelFamily}


def card_of(kind: str, thing: Any) -> Any:
    """Return the card of an offered thing; raise PluginError where it cannot be said in plain data."""
    if kind == "model" or isinstance(thing, Card):
        return thing
    doc = inspect.cleandoc(thing.__doc__ or "")
    about: dict[str, Any] = {
        "name": thing.name,
        "description": getattr(thing, "description", ""),
        "doc": doc,
        "text": _text_of(thing),
        "encoded": getattr(thing, "encoded", False),
    }
    if options := getattr(thing, "Options", None):
        about |= _options_of(thing.name, options)
    if kind != "algorithm":
        return Card(**about)
    return AlgorithmCard(
        **about,
        paper=thing.paper,
        needs=thing.needs,
        default_weights=dict(thing.default_weights),
        also_known_as=tuple(thing.also_known_as),
        delegate=thing.delegate,
        delegate_defaults=thing.delegate_defaults,
        rung=rung(thing),
        plans_stages=plans_stages(thing),
        skip_checks=dict(thing.skip_checks),
        quantizer=thing.quantizer,
        upper_bound=thing.upper_bound,
        losses=losses_of(thing),
    )


def losses_of(cls: Any) -> Mapping[str, str]:
    """Return the module of each loss function that an algorithm's class or card names, by its name."""
    if isinstance(cls, AlgorithmCard):
        return cls.losses
    return {function.__name__: function.__module__ for function in cls.loss_functions}


def rung(cls: Any) -> str:
    """Return the lowest rung that an algorithm's class overrides: losses, step or stages."""
    if isinstance(cls, AlgorithmCard):
        return cls.rung
    from kdzoo.contract.algorithm import Algorithm

    if cls.losses is not Algorithm.losses:
        return "losses"
    return "step" if cls.step is not Algorithm.step else "stages"


def plans_stages(cls: Any) -> bool:
    """Whether an algorithm overrides the topmost rung, so that it cannot be a stage of another."""
    if isinstance(cls, AlgorithmCard):
        return cls.plans_stages
    from kdzoo.contract.algorithm import Algorithm

    return cls.stages.__func__ is not Algorithm.stages.__func__  # type: ignore[attr-defined]


def _options_of(name: str, options: type[BaseModel]) -> dict[str, Any]:
    try:
        schema = options.model_json_schema()
    except Exception as error:  # a plugin's own types may have none
        raise PluginError(f"'{name}': the options have no JSON Schema: {error}") from error
    checks = options.__pydantic_decorators__
    early = any(check.info.mode != "after" for check in checks.model_validators.values())
    early = early or bool(checks.root_validators)
    aliased = any(each.alias or each.validation_alias for each in options.model_fields.values())
    loose = options.model_config.get("extra") != "forbid"
    return {"fields": tuple(options.model_fields), "schema": schema, "open": early or aliased or loose}


def _text_of(cls: type) -> str:
    """The file beside the class's module with the same stem, if there is one."""
    module = sys.modules.get(cls.__module__)
    source = getattr(module, "__file__", None)
    path = Path(source).with_suffix(".md") if source else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""


# --- as JSON ----------------------------------------------------------------------------------------


def written_offer(kind: str, offer: Offer) -> dict[str, Any]:
    """Return an offer and its card as JSON content; raises as ``card_of``."""
    return {
        "kind": kind,
        "name": offer.name,
        "owner": [offer.plugin, offer.distribution, offer.version],
        "card": asdict(card_of(kind, offer.thing)),
    }


def read_offer(content: Mapping[str, Any]) -> tuple[tuple[str, str], Offer]:
    """Return what ``written_offer`` wrote: (kind, name) and the offer; raise ValueError for anything else."""
    kind, name = content["kind"], content["name"]
    card = _adapter(CARDS.get(kind, Card)).validate_python(content["card"])
    return (kind, name), Offer(name, card, *content["owner"])


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def body_of(zoo: Zoo) -> dict[str, Any] | None:
    """Return a loaded zoo as JSON content; None where something in it has no card."""
    try:
        offers = [written_offer(kind, offer) for (kind, _), offer in zoo.offers().items()]
    except PluginError:
        return None
    body = {
        "plugins": [asdict(plugin) for plugin in zoo.plugins],
        "refused": [[*key, cause] for key, cause in zoo.refused.items()],
        "offers": offers,
        "sources": state_of(loose_sources()),
    }
    try:
        return dict(json.loads(json.dumps(body)))
    except (TypeError, ValueError):
        return None


def zoo_of(body: Mapping[str, Any]) -> Zoo:
    """Return the zoo of cards that ``body_of`` wrote."""
    plugins = tuple(PluginInfo(**plugin) for plugin in body["plugins"])
    refused = {(kind, name): cause for kind, name, cause in body["refused"]}
    return merged_zoo(dict(map(read_offer, body["offers"])), plugins, refused)


def cards_of(zoo: Zoo) -> Zoo:
    """Return the zoo of cards of what is loaded; a thing that has none gets one that says its name."""
    offers = {}
    for (kind, name), offer in zoo.offers().items():
        try:
            card = card_of(kind, offer.thing)
        except PluginError:
            card = offer.thing if kind == "algorithm" else Card(name, open=True)
        offers[kind, name] = type(offer)(name, card, offer.plugin, offer.distribution, offer.version)
    return merged_zoo(offers, zoo.plugins, zoo.refused)
