"""The generated half of an algorithm's card: everything that class, docstring and options already say."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from kdzoo.contract.declared import bounds
from kdzoo.errors import UnknownName, nearest, shown
from kdzoo.plan.stored_answers import why_not_logits, why_not_without_network
from kdzoo.recipe.bundled import bundled_recipes, recipes_root
from kdzoo.recipe.reading import load_recipe
from kdzoo.zoo.cards import Card, card_of, rung

if TYPE_CHECKING:
    from kdzoo.contract.algorithm import Algorithm
    from kdzoo.contract.declared import Count, Paper
    from kdzoo.contract.extension_points import Offer
    from kdzoo.zoo.cards import AlgorithmCard
    from kdzoo.zoo.offered import Zoo

LABELS = (
    "Reads",
    "Loss terms",
    "Trains",
    "State",
    "Stages",
    "Raises",
    "Source",
    "Differs from the paper",
    "Defaults from",
)


def docstring_parts(cls: Any) -> dict[str, str]:
    """The docstring of a class or card by its labels; what comes before the first is under ``""``."""
    parts: dict[str, list[str]] = {"": []}
    current = ""
    doc = cls.doc if isinstance(cls, Card) else inspect.cleandoc(cls.__doc__ or "")
    for line in doc.splitlines():
        found = _label_of(line)
        if found:
            current = found
            line = line[len(found) + 1 :].strip()
            parts[current] = []
        for label in LABELS:  # two short labels may share a line
            marker = f"   {label}:"
            if marker in line:
                before, line = line.split(marker, 1)
                parts[current].append(before)
                current, line = label, line.strip()
                parts[current] = []
        parts[current].append(line)
    return {label: "\n".join(lines).strip() for label, lines in parts.items()}


def _label_of(line: str) -> str:
    return next((label for label in LABELS if line.startswith(f"{label}:")), "")


def count(wanted: Count) -> str:
    """A declared number in words."""
    least, most = bounds(wanted)
    if least == most:
        return str(least) if least else "none"
    return f"{least} or more" if most is None else f"{least} to {most}"


def abilities(cls: type[Algorithm] | AlgorithmCard) -> list[tuple[str, str]]:
    """The "Can I use it?" table, from what the class declares."""
    needs = cls.needs
    data = {
        "labelled": "labelled",
        "any": "labelled, or in part",
        "unlabelled": "no labels needed",
        "none": "none at all",
    }[needs.data]
    cached = rung(cls) != "stages" and needs.data != "none" and cls.needs.teachers != 0
    return [
        ("Teachers", count(needs.teachers)),
        ("Assistants", count(needs.assistants)),
        ("Peers", count(needs.peers)),
        ("Training data", data),
        (
            "Reads feature levels",
            "yes; convnet and transformer levels are paired by stride" if needs.features else "no",
        ),
        ("Reads the embedding", "yes" if needs.pre_logits else "no"),
        ("Teacher cache", "yes" if cached else ("through its stages" if rung(cls) == "stages" else "no use")),
        ("Stored answers of a teacher", _from_stored(cls)),
        ("Least number of classes", str(needs.min_classes)),
        ("Least batch", str(needs.min_batch)),
        ("Keeps a memory per sample", "yes" if needs.sample_index else "no"),
        ("Rung of the contract", f"`{rung(cls)}`"),
    ]


def _from_stored(cls: type[Algorithm] | AlgorithmCard) -> str:
    """Whether logits on disk can stand for the teacher."""
    if cls.needs.teachers == 0:
        return "no use"
    if why_not_logits(cls, None) or why_not_without_network(cls):  # type: ignore[arg-type]
        return "no; it needs the teacher itself"
    return "yes; the likeliest classes are enough" if cls.needs.of_teacher == "top_k" else "yes, of all classes"


def option_rows(cls: type[Algorithm] | AlgorithmCard) -> list[tuple[str, str, str, str]]:
    """Name, type, default and description of each option."""
    schema = cls.schema if isinstance(cls, Card) else cls.Options.model_json_schema()
    rows = []
    for name, field in schema.get("properties", {}).items():
        rows.append((name, _kind(field), str(field.get("default", "required")), field.get("description", "")))
    return rows


def _kind(field: dict[str, Any]) -> str:
    kind = field.get("type") or " or ".join(part.get("type", "?") for part in field.get("anyOf", [])) or "any"
    if "enum" in field:
        kind = " or ".join(map(str, field["enum"]))
    bounds = [("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<=")]
    limits = ", ".join(f"{sign} {field[key]:g}" for key, sign in bounds if key in field)
    return f"{kind}, {limits}" if limits else kind


def _place(paper: Paper) -> str:
    return f", {paper.equation}" if paper.equation else ""


def describe(name: str, zoo: Zoo) -> str:
    """Everything that is known of an offered name as plain text: each thing that has it, in turn.

    Raises UnknownName if nothing has it, and PluginError if two plugins claim it.
    """
    found = [(kind, offer) for (kind, known), offer in zoo.offers().items() if known == name]
    if not found:
        found = [("model", offer) for offer in zoo.models.values() if offer.thing.name == name][:1]
    if not found:
        aliases = {alias: own for own, offer in zoo.algorithms.items() for alias in offer.thing.also_known_as}
        others = {known for kind, known in zoo.offers() if kind != "algorithm"}
        if name in aliases or ("algorithm", name) in zoo.refused or not (close := nearest(name, sorted(others))):
            zoo.algorithm(name)
        raise UnknownName(f"unknown name {shown(name)}{close} `kdzoo list KIND` names what there is")
    return "\n\n".join(_described(kind, offer) for kind, offer in found)


def _described(kind: str, offer: Offer) -> str:
    if kind == "algorithm":
        return describe_algorithm(offer.thing, offer)
    if kind == "model":
        return _described_family(offer)
    return _described_thing(kind, offer)


def _described_family(offer: Offer) -> str:
    family = offer.thing
    lines = [f"{family.name}: {family.description or 'models'}", "", _origin(offer), "", "models"]
    return "\n".join([*lines, *(f"  {name}" for name in family.models)])


def _described_thing(kind: str, offer: Offer) -> str:
    card = card_of(kind, offer.thing)
    first, _, rest = card.doc.partition("\n\n")
    lines = [f"{offer.name}: {card.description or _flat(first)}", "", f"{kind} of the {_origin(offer)}"]
    lines += ["", _flat(first)] if card.description and first else []
    lines += ["", rest] if rest else []
    lines += _option_lines(card)
    for title, text in hand_written(card.text).items():
        lines += ["", title, "", text]
    return "\n".join(lines)


def _origin(offer: Offer) -> str:
    return f"plugin: {offer.plugin} ({offer.distribution} {offer.version})"


def _flat(text: str) -> str:
    return " ".join(text.split())


def _option_lines(card: Any) -> list[str]:
    rows = option_rows(card)
    lines = [f"  {name:<20} {kind}, default {default}. {text}" for name, kind, default, text in rows]
    return ["", "options", *lines] if rows else []


def hand_written(text: str) -> dict[str, str]:
    """The sections of the hand-written half of a card, by their titles."""
    parts = re.split(r"(?m)^## (.+)$", text)
    return {title.strip(): part.strip() for title, part in zip(parts[1::2], parts[2::2], strict=True)}


def describe_algorithm(cls: type[Algorithm] | AlgorithmCard, offer: Offer) -> str:
    """The card of an algorithm as plain text for a terminal."""
    card = card_of("algorithm", cls)
    parts, notes = docstring_parts(card), hand_written(card.text)
    summary, _, idea = parts[""].partition("\n\n")
    paper = card.paper
    lines = [f"{card.name}: {_flat(summary)}", ""]
    lines += [f'paper: {paper.authors}, "{paper.title}", {paper.year}, {paper.url}{_place(paper)}']
    lines += [_origin(offer)]
    lines += [f"also known as: {', '.join(card.also_known_as)}"] if card.also_known_as else []
    lines += ["", "The idea", "", idea] if idea else []
    for title in [title for title in notes if title in BEFORE]:
        lines += ["", title, "", notes[title]]
    lines += ["", "Can I use it?", ""]
    lines += [f"  {name:<28} {value}" for name, value in abilities(card)]
    lines += _option_lines(card)
    if card.default_weights:
        lines += ["", "loss_weights"] + [f"  {name:<20} {weight:g}" for name, weight in card.default_weights.items()]
    for via, usual in card.delegate_defaults.items():
        given = {**usual.get("options", {}), **usual.get("loss_weights", {})}
        lines += ["", f"through {via}, by default: " + ", ".join(f"{name} {value:g}" for name, value in given.items())]
    for label in LABELS:
        if parts.get(label) and not (label == "Differs from the paper" and DIFFERS in notes):
            lines += ["", f"{label}: {parts[label]}"]
    for check, reason in card.skip_checks.items():
        lines += ["", f"exempt from '{check}': {reason}"]
    for title in [title for title in notes if title not in BEFORE]:
        lines += ["", title, "", notes[title]]
    return "\n".join([*lines, "", "Results", "", *(_results(card.name) or ["  none of a bundled recipe"])])


#: Hand-written sections that come before the tables; the others come after them.
DIFFERS = "How ours differs from the paper"
BEFORE = ("In one paragraph", "When to use it, when not")


def _results(algorithm: str) -> list[str]:
    """The published results of the bundled recipes that use an algorithm, a line each."""
    lines = []
    for path in bundled_recipes():
        if (
            not re.search(rf"\b{re.escape(algorithm)}\b", text := path.read_text(encoding="utf-8"))
            or "expected:" not in text
        ):
            continue
        recipe = load_recipe(path).recipe
        found = recipe.expected
        if found is None or algorithm not in (recipe.algorithm.name, *recipe.algorithm.options.values()):
            continue
        name = path.relative_to(recipes_root()).with_suffix("")
        control = found.control_top1_percent
        alone = "" if control is None else f", trained alone {control:.2f} %"
        lines.append(f"  {name}: student {found.top1_percent:.2f} +- {found.std:.2f} %{alone}, {found.seeds} seeds")
    return lines


# --- lists ------------------------------------------------------------------------------------------


def offer_rows(zoo: Zoo, kind: str) -> list[dict[str, Any]]:
    """What the plugins offer of one kind, e.g. ``algorithms``, for a list; ``zoo`` is one of cards."""
    rows = []
    for name, offer in sorted(getattr(zoo, kind).items()):
        thing = offer.thing
        rows.append(
            {
                "name": name,
                "family": thing.name if kind == "models" else offer.plugin,
                "plugin": offer.plugin,
                "distribution": offer.distribution,
                "version": offer.version,
                "description": thing.description or _flat(getattr(thing, "doc", "").split("\n\n")[0]),
            }
        )
        if kind == "algorithms":
            rows[-1] |= {
                "paper": f"{thing.paper.authors} {thing.paper.year}",
                "url": thing.paper.url,
                "also_known_as": list(thing.also_known_as),
            }
    return rows


def recipe_rows() -> list[dict[str, Any]]:
    """The bundled recipes, for a list."""
    rows = []
    for path in bundled_recipes():
        recipe = load_recipe(path).recipe
        rows.append(
            {
                "name": str(path.relative_to(recipes_root())),
                "family": recipe.algorithm.name,
                "plugin": "",
                "version": str(recipe.version),
                "description": recipe.description,
                "path": str(path),
            }
        )
    return rows
