"""What class, docstring and options say of an algorithm, as its card tells it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import pytest
from pydantic import Field
from tiny_algorithms import PAPER, Alone, Couple, Everything, Match

from kdzoo.api import Algorithm, AlgorithmOptions, Needs
from kdzoo.contract.extension_points import Offer
from kdzoo.testing.card import abilities, count, describe_algorithm, docstring_parts, option_rows, rung


class Documented(Match):
    """Makes the student match.

    The idea, in a line or
    in two.

    Reads: logits of both,
        each (N, K).
    Loss terms: ``match``: squared logits; ``other``: 0.
    Trains: nothing.   State: none.
    Raises: nothing.
    Source: An author, "A paper", https://example.org: Reads: like this.
    Differs from the paper: 1. a thing.
        2. another.
    Defaults from: the paper.
    """

    name = "documented"
    skip_checks: ClassVar = {"bf16": "because this is so"}

    class Options(AlgorithmOptions):
        temperature: float = Field(4.0, gt=0, le=100, description="Softens.")
        layers: int = Field(3, ge=1, lt=9, description="How many.")
        mode: Literal["a", "b"] = Field("a", description="Which.")
        limit: float | None = Field(None, description="At most.")


class Staged(Match):
    name, losses = "staged", Algorithm.losses

    @classmethod
    def stages(cls, plan):
        raise AssertionError


def test_a_docstring_is_read_by_its_labels() -> None:
    assert docstring_parts(Documented) == {
        "": "Makes the student match.\n\nThe idea, in a line or\nin two.",
        "Reads": "logits of both,\n    each (N, K).",
        "Loss terms": "``match``: squared logits; ``other``: 0.",
        "Trains": "nothing.",
        "State": "none.",
        "Raises": "nothing.",
        "Source": 'An author, "A paper", https://example.org: Reads: like this.',
        "Differs from the paper": "1. a thing.\n    2. another.",
        "Defaults from": "the paper.",
    }


def test_a_class_without_a_docstring_has_no_parts() -> None:
    assert docstring_parts(type("Bare", (), {"__doc__": None})) == {"": ""}


@pytest.mark.parametrize(
    ("cls", "lowest"),
    [(Match, "losses"), (Couple, "step"), (Everything, "step"), (Staged, "stages"), (Alone, "losses")],
)
def test_the_rung_is_the_lowest_that_is_overridden(cls: type[Algorithm], lowest: str) -> None:
    assert rung(cls) == lowest


@pytest.mark.parametrize(
    ("wanted", "words"), [(0, "none"), (1, "1"), (3, "3"), ((1, None), "1 or more"), ((0, 2), "0 to 2")]
)
def test_counts_in_words(wanted: int | tuple[int, int | None], words: str) -> None:
    assert count(wanted) == words


def needing(base: type[Algorithm] = Match, **needs: object) -> dict[str, str]:
    return dict(abilities(type("Needing", (base,), {"name": "needing", "needs": Needs(**needs)})))


def test_abilities_of_the_simplest() -> None:
    assert needing() == {
        "Teachers": "1",
        "Assistants": "none",
        "Peers": "none",
        "Training data": "labelled",
        "Reads feature levels": "no",
        "Reads the embedding": "no",
        "Teacher cache": "yes",
        "Least number of classes": "2",
        "Least batch": "1",
        "Keeps a memory per sample": "no",
        "Rung of the contract": "`losses`",
    }


def test_abilities_follow_what_is_declared() -> None:
    told = needing(
        teachers=(2, None), assistants=1, peers=(1, 3), features=True, pre_logits=True, sample_index=True,
        data="unlabelled", min_classes=3, min_batch=2,
    )  # fmt: skip
    assert told == {
        "Teachers": "2 or more",
        "Assistants": "1",
        "Peers": "1 to 3",
        "Training data": "no labels needed",
        "Reads feature levels": "yes; convnet and transformer levels are paired by stride",
        "Reads the embedding": "yes",
        "Teacher cache": "yes",
        "Least number of classes": "3",
        "Least batch": "2",
        "Keeps a memory per sample": "yes",
        "Rung of the contract": "`losses`",
    }


def test_the_cache_serves_whoever_is_handed_a_teacher_s_answers() -> None:
    assert needing(Everything)["Teacher cache"] == "yes"  # a step of its own reads them all the same
    assert needing(Staged)["Teacher cache"] == "through its stages"
    assert needing(teachers=0)["Teacher cache"] == "no use"
    assert needing(data="none")["Teacher cache"] == "no use"
    assert needing(data="none")["Training data"] == "none at all"


def test_options_tell_kind_bounds_default_and_description() -> None:
    assert option_rows(Documented) == [
        ("temperature", "number, > 0, <= 100", "4.0", "Softens."),
        ("layers", "integer, >= 1, < 9", "3", "How many."),
        ("mode", "a or b", "a", "Which."),
        ("limit", "number or null", "None", "At most."),
    ]


def test_the_place_in_the_paper_is_told() -> None:
    placed = type("Placed", (Documented,), {"paper": replace(PAPER, equation="equation 3"), "__doc__": "Makes."})
    text = describe_algorithm(placed, Offer("placed", placed, "own", "kdzoo-own", "0.1"))
    assert text.splitlines()[2].endswith("2020, https://example.org, equation 3")


def test_the_whole_card_on_a_terminal() -> None:
    text = describe_algorithm(Documented, Offer("documented", Documented, "own", "kdzoo-own", "0.1"))
    assert text.splitlines()[:4] == [
        "documented: Makes the student match.",
        "",
        f'paper: {PAPER.authors}, "{PAPER.title}", 2020, https://example.org',
        "plugin: own (kdzoo-own 0.1)",
    ]
    for line in (
        "  Teacher cache                yes",
        "  temperature          number, > 0, <= 100, default 4.0. Softens.",
        "  match                0.5",
        "Trains: nothing.",
        "exempt from 'bf16': because this is so",
    ):
        assert line in text.splitlines()
