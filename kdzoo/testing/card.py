"""The generated half of an algorithm's card: everything that class, docstring and options already say."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from kdzoo.contract.declared import bounds
from kdzoo.zoo.cards import Card, rung

if TYPE_CHECKING:
    from kdzoo.contract.algorithm import Algorithm
    from kdzoo.contract.declared import Count, Paper
    from kdzoo.contract.extension_points import Offer
    from kdzoo.zoo.cards import AlgorithmCard

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
    data = {"labelled": "labelled", "unlabelled": "no labels needed", "none": "none at all"}[needs.data]
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
        ("Least number of classes", str(needs.min_classes)),
        ("Least batch", str(needs.min_batch)),
        ("Keeps a memory per sample", "yes" if needs.sample_index else "no"),
        ("Rung of the contract", f"`{rung(cls)}`"),
    ]


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


def describe_algorithm(cls: type[Algorithm] | AlgorithmCard, offer: Offer) -> str:
    """The card as plain text for a terminal."""
    parts = docstring_parts(cls)
    lines = [f"{cls.name}: {parts[''].splitlines()[0] if parts[''] else ''}", ""]
    lines += [f'paper: {cls.paper.authors}, "{cls.paper.title}", {cls.paper.year}, {cls.paper.url}{_place(cls.paper)}']
    lines += [f"plugin: {offer.plugin} ({offer.distribution} {offer.version})", ""]
    lines += [f"  {name:<28} {value}" for name, value in abilities(cls)]
    if option_rows(cls):
        lines += ["", "options"]
        lines += [f"  {name:<20} {kind}, default {default}. {text}" for name, kind, default, text in option_rows(cls)]
    if cls.default_weights:
        lines += ["", "loss_weights"] + [f"  {name:<20} {weight:g}" for name, weight in cls.default_weights.items()]
    for label in LABELS:
        if parts.get(label):
            lines += ["", f"{label}: {parts[label]}"]
    for check, reason in cls.skip_checks.items():
        lines += ["", f"exempt from '{check}': {reason}"]
    return "\n".join(lines)
