"""What class, docstring and options say of an algorithm, as its card tells it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import pytest
from pydantic import Field
from tiny_algorithms import PAPER, Alone, Couple, Everything, Match

from kdzoo.api import Algorithm, AlgorithmOptions, Needs
from kdzoo.contract.extension_points import DataSource, ModelFamily, Offer, OfferOptions
from kdzoo.errors import UnknownName
from kdzoo.testing.card import abilities, count, describe, describe_algorithm, docstring_parts, option_rows, rung
from kdzoo.zoo.cards import card_of
from kdzoo.zoo.offered import Zoo


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
        "Stored answers of a teacher": "no; it needs the teacher itself",
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
        "Stored answers of a teacher": "no; it needs the teacher itself",
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


def test_stored_answers_serve_whoever_says_that_they_are_enough() -> None:
    told = "Stored answers of a teacher"
    assert needing(of_teacher="top_k")[told] == "yes; the likeliest classes are enough"
    assert needing(of_teacher="logits")[told] == "yes, of all classes"
    assert needing(of_teacher="logits", pre_logits=True)[told] == "no; it needs the teacher itself"
    assert needing(of_teacher="top_k", teachers=0)[told] == "no use"


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


# --- everything that is offered -----------------------------------------------------------------------


class Dots(DataSource):
    """Dots in
    rows.

    Drawn by hand.
    """

    name, description = "dots", "dots, drawn"

    class Options(OfferOptions):
        noise: float = Field(0.5, ge=0, description="How much.")

    def load(self, root):
        raise AssertionError


FAMILY = ModelFamily("plain_net", ("plain_1", "plain_2"), "plain networks")


def offered(name: str, thing: object) -> Offer:
    return Offer(name, thing, "own", "kdzoo-own", "0.1")


WHOLE = Zoo(
    algorithms={"documented": offered("documented", Documented)},
    models={name: offered(name, FAMILY) for name in FAMILY.models},
    datasets={"dots": offered("dots", Dots)},
    exporters={},
    trackers={},
    plugins=(),
)


def test_the_card_of_an_algorithm_has_the_idea_first_and_results_last() -> None:
    card = replace(
        card_of("algorithm", Documented),
        text="## In one paragraph\n\nShort.\n\n## Notes from running it\n\nFast.\n",
        also_known_as=("docs",),
    )
    text = describe_algorithm(card, offered("documented", card))
    order = [
        "also known as: docs",
        "The idea",
        "in two.",
        "In one paragraph",
        "Can I use it?",
        "options",
        "loss_weights",
    ]
    order += ["loss_weights", "Reads: ", "exempt from", "Notes from running it", "Results", "none of a bundled recipe"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_results_are_those_of_the_bundled_recipes() -> None:
    kd = type("KD", (Documented,), {"name": "kd"})
    text = describe_algorithm(kd, offered("kd", kd))
    assert "\n  digits/kd: student 96.65 +- 0.72 %, trained alone 93.18 %, 3 seeds\n" in text
    assert "\n  digits/takd: student " in text, "a recipe that hands its work to it"


def test_a_data_set_and_a_model_have_cards_too() -> None:
    assert describe("dots", WHOLE).splitlines() == [
        "dots: dots, drawn",
        "",
        "data set of the plugin: own (kdzoo-own 0.1)",
        "",
        "Dots in rows.",
        "",
        "Drawn by hand.",
        "",
        "options",
        "  noise                number, >= 0, default 0.5. How much.",
    ]
    models = ["plain_net: plain networks", "", "plugin: own (kdzoo-own 0.1)", "", "models", "  plain_1", "  plain_2"]
    for name in ("plain_1", "plain_net"):
        assert describe(name, WHOLE).splitlines() == models


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dotz", "unknown name 'dotz'; did you mean 'dots'? `kdzoo list KIND` names what there is"),
        ("documentd", "unknown algorithm 'documentd'; did you mean 'documented'? known: documented"),
        ("\x1b[2J", "unknown algorithm '\\x1b[2J'; known: documented"),
    ],
)
def test_an_unknown_name_is_refused(name: str, says: str) -> None:
    with pytest.raises(UnknownName) as caught:
        describe(name, WHOLE)
    assert str(caught.value) == says
