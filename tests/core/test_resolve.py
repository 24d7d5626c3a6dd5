"""From a recipe to a plan, over a zoo of this file's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from kdzoo.api import Algorithm, AlgorithmChoice, AlgorithmOptions, Needs, Paper
from kdzoo.api.data import DataError, DataSource, OfferOptions
from kdzoo.api.export import Exporter, NeedsError, Tracker
from kdzoo.api.models import ModelFamily
from kdzoo.contract.extension_points import Offer
from kdzoo.contract.stage import ModelSpec
from kdzoo.errors import PluginError, RecipeError, UnknownName
from kdzoo.plan.filled import filled
from kdzoo.plan.resolve import (
    Plan,
    ResolvedTracker,
    further_problems,
    resolve,
    resolve_algorithm,
    resolve_choice,
    unmet_needs,
)
from kdzoo.plan.schema import recipe_schema
from kdzoo.plan.stored_answers import why_not_logits, why_not_without_network
from kdzoo.recipe.reading import dump_recipe, parse_recipe
from kdzoo.zoo.finding import PluginInfo
from kdzoo.zoo.offered import Zoo

PAPER = Paper("A paper", "An author", 2020, "https://example.org")


class Soft(Algorithm):
    name, paper = "soft", PAPER
    default_weights = {"task": 0.1, "soft": 0.9}
    needs = Needs(min_batch=2)

    class Options(AlgorithmOptions):
        temperature: float = Field(4.0, gt=0, description="Temperature.")
        layers: tuple[int, ...] = Field((), description="Layers.")
        mode: Literal["a", "b"] = Field("a", description="Mode.")

    def losses(self, ctx):
        return {}


class Chain(Algorithm):
    name, paper = "chain", PAPER
    needs = Needs(teachers=1, assistants=(1, None))
    delegate = "via"

    class Options(AlgorithmOptions):
        via: str = Field("soft", description="Algorithm of each step.")

    @classmethod
    def stages(cls, plan):
        yield from ()


class Crowd(Algorithm):
    name, paper = "crowd", PAPER
    needs = Needs(teachers=(2, 3), peers=2)

    def losses(self, ctx):
        return {}


class Dots(DataSource):
    name = "dots"

    class Options(OfferOptions):
        noise: float = Field(0.0, ge=0, description="Noise.")

    def __init__(self, options):
        super().__init__(options)
        if options.noise == 13:
            raise DataError("noise: 13 brings bad luck; choose another")

    def load(self, root): ...


class Paperback(Exporter):
    name, suffix = "paperback", ".txt"

    class Options(OfferOptions):
        quantize: Literal["int8"] | None = Field(None, description="Quantize.")
        pages: int = Field(1, ge=1, description="Pages.")

    @property
    def label(self):
        return self.options.quantize or ""

    def export(self, model, example, path, metadata, calibration): ...

    def load(self, path, threads): ...


class Hardcover(Paperback):
    name, suffix = "hardcover", ".book"

    class Options(OfferOptions):
        pages: int = Field(1, ge=1, description="Pages.")

    label = ""


class Diary(Tracker):
    name = "diary"
    missing: str | None = None

    class Options(OfferOptions):
        place: str = Field("desk", description="Where it is kept.")

    @classmethod
    def check(cls, options):
        if cls.missing:
            raise NeedsError(cls.missing)

    def start(self, folder): ...

    def log(self, stage, step, values): ...

    def close(self): ...


def offer(thing, name: str = "", plugin: str = "own") -> Offer:
    return Offer(name or thing.name, thing, plugin, f"{plugin}-dist", "1.0")


def by_name(*things, plugin: str = "own") -> dict[str, Offer]:
    return {thing.name: offer(thing, plugin=plugin) for thing in things}


FAMILY = ModelFamily("tiny", ("tiny_1",))
ZOO = Zoo(
    algorithms=by_name(Soft, Chain, Crowd),
    models={"tiny_1": offer(FAMILY, "tiny_1", "nets")},
    datasets=by_name(Dots, plugin="data"),
    exporters=by_name(Paperback, Hardcover, plugin="books"),
    trackers=by_name(Diary, plugin="books"),
    plugins=(),
)
RECIPE = """\
version: 1
name: x
algorithm: {name: soft}
models:
  teacher: {name: tiny_1, weights: file.pt, preprocessing: {mean: [0.5], std: [0.2], size: 32}}
  student: {name: small, args: {depth: 8}, train: {epochs: 3}}
data: {name: dots}
trackers: [diary]
"""
CHAIN = RECIPE.replace("name: soft", "name: chain").replace("  student:", "  assistants: [{name: middle}]\n  student:")


def plan(text: str = RECIPE, *overrides: str, zoo: Zoo = ZOO) -> Plan:
    return resolve(parse_recipe(text.encode(), Path("x.yaml"), overrides), zoo)


def refusal(text: str, *overrides: str, zoo: Zoo = ZOO) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(text, *overrides, zoo=zoo)
    return str(caught.value)


# --- what comes out ---------------------------------------------------------------------------------


def test_a_plan():
    found = plan(RECIPE, "algorithm.options.temperature=2", "algorithm.loss_weights.soft=1", "data.options.noise=0.5")
    assert found.path == Path("x.yaml")
    assert found.algorithm.cls is Soft
    assert found.algorithm.options == Soft.Options(temperature=2.0)
    assert found.algorithm.loss_weights == {"task": 0.1, "soft": 1.0}
    assert found.algorithm.choice == AlgorithmChoice("soft", {"temperature": 2}, {"soft": 1.0})
    assert found.algorithm.offer is ZOO.algorithms["soft"]
    assert found.delegate is None
    assert found.student == ModelSpec("small", "train", {"depth": 8}, {"epochs": 3})
    assert found.teachers == (ModelSpec("tiny_1", "file.pt", {}, {}, (0.5,), (0.2,), 32, as_is=True),)
    assert found.assistants == found.peers == found.exporters == ()
    assert isinstance(found.source, Dots)
    assert found.source.options.noise == 0.5
    assert found.trackers == (ResolvedTracker(Diary, Diary.Options()),)


def test_provenance_names_what_is_used():
    assert plan(RECIPE, "export=[{format: hardcover}]").provenance == {
        "own": {"distribution": "own-dist", "version": "1.0"},
        "nets": {"distribution": "nets-dist", "version": "1.0"},
        "data": {"distribution": "data-dist", "version": "1.0"},
        "books": {"distribution": "books-dist", "version": "1.0"},
    }
    assert "nets" not in plan(RECIPE, "models.teacher={name: large}").provenance


def test_lists_become_tuples():
    assert plan(RECIPE, "algorithm.options.layers=[1, 2]").algorithm.options.layers == (1, 2)


def test_exports():
    text = RECIPE + "export: [{format: paperback, quantize: int8, options: {pages: 3}}, {format: paperback}]\n"
    first, second = plan(text).exporters
    assert (first.label, first.options.pages, second.label) == ("int8", 3, "")


def test_a_delegate_gets_what_is_not_the_algorithms_own():
    found = plan(
        CHAIN, "algorithm.options.temperature=2", "algorithm.loss_weights.soft=1", "algorithm.options.via=soft"
    )
    assert found.algorithm.choice == AlgorithmChoice("chain", {"via": "soft"}, {})
    assert found.algorithm.loss_weights == {}
    assert found.delegate.cls is Soft
    assert found.delegate.choice == AlgorithmChoice("soft", {"temperature": 2}, {"soft": 1.0})
    assert found.delegate.loss_weights == {"task": 0.1, "soft": 1.0}


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "override", "line"),
    [
        (
            RECIPE,
            "algorithm.name=sft",
            "-o algorithm.name: unknown algorithm 'sft'; did you mean 'soft'? known: chain, crowd, soft",
        ),
        (RECIPE, "data.name=dot", "-o data.name: unknown data set 'dot'; did you mean 'dots'? known: dots"),
        (
            RECIPE,
            "trackers=[dairy]",
            "-o trackers.0: unknown tracker 'dairy'; did you mean 'diary'? known: diary",
        ),
        (
            RECIPE,
            "trackers=[{name: dairy}]",
            "-o trackers.0.name: unknown tracker 'dairy'; did you mean 'diary'? known: diary",
        ),
        (
            RECIPE,
            "trackers=[{name: diary, options: {palce: bed}}]",
            "-o trackers.0.options.palce: unknown key; did you mean 'place'?",
        ),
        (RECIPE, "trackers=[{name: diary, option: {}}]", "-o trackers.0.option: unknown key; did you mean 'options'?"),
        (RECIPE, "trackers=[diary, {name: diary}]", "-o trackers.1: repeats trackers.0"),
        (
            RECIPE,
            "export=[{format: pdf}]",
            "-o export.0.format: unknown export format 'pdf'; known: hardcover, paperback",
        ),
        (
            RECIPE,
            "algorithm.options.tempreature=2",
            "-o algorithm.options.tempreature: unknown key; did you mean 'temperature'?",
        ),
        (RECIPE, "algorithm.options.temperature=0", "-o algorithm.options.temperature: must be greater than 0, got 0"),
        (RECIPE, "algorithm.options.temperature=true", "-o algorithm.options.temperature: must be a number, got true"),
        (
            RECIPE,
            "algorithm.options.temperature='2'",
            "-o algorithm.options.temperature: must be a number, got '2', which is text; write it without quotes",
        ),
        (RECIPE, "algorithm.options.mode=c", "-o algorithm.options.mode: must be 'a' or 'b', got 'c'"),
        (
            RECIPE,
            "algorithm.options.layers=[1, x]",
            "-o algorithm.options.layers.1: must be a whole number, got 'x'",
        ),
        (
            RECIPE,
            "algorithm.loss_weights.sof=1",
            "-o algorithm.loss_weights.sof: unknown loss term; did you mean 'soft'?",
        ),
        (RECIPE, "algorithm.loss_weights.x=1", "-o algorithm.loss_weights.x: unknown loss term; known: task, soft"),
        (
            RECIPE,
            "models.teacher=null",
            "line 4 models.teachers: 'soft' takes exactly 1 teacher, the recipe names none",
        ),
        (RECIPE, "models.peers=[{name: a}]", "-o models.peers: 'soft' takes no peers, the recipe names 1"),
        (RECIPE, "data.batch_size=1", "-o data.batch_size: 'soft' needs at least 2 samples in a batch, got 1"),
        (
            CHAIN,
            "models.assistants=[]",
            "-o models.assistants: 'chain' takes at least 1 assistant, the recipe names none",
        ),
        (
            RECIPE,
            "cache={views: 1, keep: {top_k: 3}}",
            "-o cache.keep.top_k: 'soft' does not declare that the likeliest classes are enough for it, and only 3 are "
            "kept; leave it out",
        ),
        (
            RECIPE,
            "models.teacher.weights='answers:x'",
            "-o models.teacher.weights: 'soft' needs the teacher's network, not only its answers to the training "
            "samples",
        ),
        (
            CHAIN,
            "cache={views: 1, keep: {top_k: 3}}",
            "-o cache.keep.top_k: 'soft' does not declare that the likeliest classes are enough for it, and only 3 are "
            "kept; leave it out",
        ),
        (CHAIN, "data.batch_size=1", "-o data.batch_size: 'soft' needs at least 2 samples in a batch, got 1"),
        (CHAIN, "algorithm.options.vai=soft", "-o algorithm.options.vai: unknown key; did you mean 'via'?"),
        (
            CHAIN,
            "algorithm.options.temprature=1",
            "-o algorithm.options.temprature: unknown key; did you mean 'temperature'?",
        ),
        (CHAIN, "algorithm.options.temperature=-1", "-o algorithm.options.temperature: must be greater than 0, got -1"),
        (
            CHAIN,
            "algorithm.options.via=sof",
            "-o algorithm.options.via: unknown algorithm 'sof'; did you mean 'soft'? known: chain, crowd, soft",
        ),
        (
            CHAIN,
            "algorithm.options.via=chain",
            "-o algorithm.options.via: 'chain' hands its work to another algorithm itself; name that one",
        ),
        (CHAIN, "algorithm.options.via=3", "-o algorithm.options.via: must be text, got 3"),
        (CHAIN, "algorithm.loss_weights.x=1", "-o algorithm.loss_weights.x: unknown loss term; known: task, soft"),
        (RECIPE, "data.options.noise=-1", "-o data.options.noise: must be at least 0, got -1"),
        (
            RECIPE,
            "data.options.noise=13",
            "-o data.options.noise data.options: noise: 13 brings bad luck; choose another",
        ),
        (
            RECIPE,
            "export=[{format: paperback, quantize: int4}]",
            "-o export.0.quantize: must be 'int8', got 'int4'",
        ),
        (
            RECIPE,
            "export=[{format: hardcover, quantize: int8}]",
            "-o export.0.quantize: 'hardcover' does not quantize",
        ),
        (
            RECIPE,
            "export=[{format: paperback, options: {quantize: int8}}]",
            "-o export.0.options.quantize: belongs one level up, at export.0.quantize",
        ),
        (
            RECIPE,
            "export=[{format: paperback}, {format: paperback, options: {pages: 2}}]",
            "-o export.1: writes the same file as export.0",
        ),
        (
            RECIPE,
            "export=[{format: hardcover, options: {page: 2}}]",
            "-o export.0.options.page: unknown key; did you mean 'pages'?",
        ),
    ],
)
def test_one_problem(text, override, line):
    assert refusal(text, override) == f"x.yaml: 1 problem\n  {line}"


def test_a_format_for_students_trained_in_integers_is_refused_for_one_in_floats():
    few = type("FewBits", (Soft,), {"name": "few", "quantizer": "bits"})
    as_trained = type("AsTrained", (Paperback,), {"name": "as_trained", "needs_quantizer": True})
    zoo = dataclasses.replace(ZOO, algorithms=by_name(Soft, few), exporters=by_name(as_trained))
    export = "export=[{format: as_trained}]"
    assert refusal(RECIPE, export, zoo=zoo) == (
        "x.yaml: 1 problem\n  -o export.0: writes the quantizer that the student was trained in, and 'soft' "
        "trains it in floats; algorithms that do not: few"
    )
    assert plan(RECIPE, "algorithm.name=few", export, zoo=zoo).exporters[0].needs_quantizer


def test_all_problems_come_at_once_with_their_lines():
    text = RECIPE.replace("{name: soft}", "{name: crowd, options: {a: 1}}").replace("name: dots", "name: dot")
    text = text.replace("diary", "a, b") + "export:\n  - {format: pdf}\n  - {format: paperback, options: {pages: 0}}\n"
    assert refusal(text) == (
        "x.yaml: 8 problems\n"
        "  line 3  algorithm.options.a: unknown key; known: none\n"
        "  line 4  models.peers: 'crowd' takes exactly 2 peers, the recipe names none\n"
        "  line 5  models.teacher: 'crowd' takes 2 to 3 teachers, the recipe names 1\n"
        "  line 7  data.name: unknown data set 'dot'; did you mean 'dots'? known: dots\n"
        "  line 8  trackers.0: unknown tracker 'a'; known: diary\n"
        "  line 8  trackers.1: unknown tracker 'b'; known: diary\n"
        "  line 10 export.0.format: unknown export format 'pdf'; known: hardcover, paperback\n"
        "  line 11 export.1.options.pages: must be at least 1, got 0"
    )


def test_broken_plugins_are_noted_once():
    broken = PluginInfo("bad", "bad-dist", "2.0", "broken", "ImportError: no module")
    zoo = dataclasses.replace(ZOO, plugins=(broken,))
    assert refusal(RECIPE.replace("soft", "sotf").replace("dots", "dot"), zoo=zoo) == (
        "x.yaml: 2 problems\n"
        "  line 3 algorithm.name: unknown algorithm 'sotf'; did you mean 'soft'? known: chain, crowd, soft\n"
        "  line 7 data.name: unknown data set 'dot'; did you mean 'dots'? known: dots\n"
        "  note: plugin 'bad' (bad-dist 2.0) failed to load: ImportError: no module"
    )


def test_a_name_that_two_plugins_claim():
    zoo = dataclasses.replace(ZOO, refused={("algorithm", "twin"): "plugin 'a' and plugin 'b'"})
    assert refusal(RECIPE, "algorithm.name=twin", zoo=zoo) == (
        "x.yaml: 1 problem\n  -o algorithm.name: algorithm 'twin': plugin 'a' and plugin 'b'"
    )
    with pytest.raises(PluginError, match="algorithm 'twin': plugin 'a' and plugin 'b'"):
        resolve_choice(AlgorithmChoice("twin"), zoo)


# --- a stage's own choice ---------------------------------------------------------------------------


def test_a_stage_names_an_algorithm():
    found = resolve_choice(AlgorithmChoice("soft", {"layers": (1,)}, {"task": 0.5}), ZOO)
    assert found.options.layers == (1,)
    assert found.loss_weights == {"task": 0.5, "soft": 0.9}
    chosen, delegate = resolve_algorithm("chain", {"temperature": 3}, {}, ZOO)
    assert (chosen.cls, delegate.cls, delegate.options.temperature) == (Chain, Soft, 3)


def test_a_stage_names_no_algorithm():
    with pytest.raises(UnknownName) as caught:
        resolve_choice(AlgorithmChoice("sotf"), ZOO)
    assert str(caught.value) == "unknown algorithm 'sotf'; did you mean 'soft'? known: chain, crowd, soft"


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (
            AlgorithmChoice("soft", {"temperatur": 1, "mode": "c"}, {"x": 1}),
            "algorithm 'soft': options.temperatur: unknown key; did you mean 'temperature'?; "
            "loss_weights.x: unknown loss term; known: task, soft; options.mode: must be 'a' or 'b', got 'c'",
        ),
        (
            AlgorithmChoice("soft", {"layers": object}),
            "algorithm 'soft': options: must be plain values, got a mapping: "
            "Object of type type is not JSON serializable",
        ),
    ],
)
def test_a_stages_options_are_checked(choice, text):
    with pytest.raises(RecipeError) as caught:
        resolve_choice(choice, ZOO)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("needs", "top_k", "why"),
    [
        (Needs(of_teacher="top_k"), 3, None),
        (Needs(of_teacher="logits"), None, None),
        (Needs(), None, None),
        (
            Needs(of_teacher="logits"),
            3,
            "'soft' reads the teacher's logits of all classes, and only the likeliest 3 are kept",
        ),
        (Needs(features=True), None, "'soft' reads features of the teacher, and only logits are kept"),
        (
            Needs(pre_logits=True, of_teacher="top_k"),
            3,
            "'soft' reads the embedding before the classifier of the teacher, and only logits are kept",
        ),
    ],
)
def test_which_algorithms_can_do_with_kept_logits(needs: Needs, top_k: int | None, why: str | None) -> None:
    assert why_not_logits(type("Asked", (Soft,), {"needs": needs}), top_k) == why


@pytest.mark.parametrize(
    ("needs", "without"),
    [
        (Needs(of_teacher="top_k"), True),
        (Needs(of_teacher="logits"), True),
        (Needs(), False),
        (Needs(of_teacher="logits", makes_images=True), False),
        (Needs(of_teacher="logits", data="none"), False),
    ],
)
def test_which_algorithms_can_do_without_a_teachers_network(needs: Needs, without: bool) -> None:
    assert (why_not_without_network(type("Asked", (Soft,), {"needs": needs})) is None) is without


def test_unmet_needs():
    recipe = parse_recipe(RECIPE.encode(), Path("x.yaml")).recipe
    assert unmet_needs(Soft, recipe) == []
    assert unmet_needs(Chain, recipe) == [
        ("models.assistants", "'chain' takes at least 1 assistant, the recipe names none")
    ]


# --- the schema -------------------------------------------------------------------------------------


def then(section: dict, key: str, name: str) -> dict:
    (found,) = [branch for branch in section["allOf"] if branch["if"]["properties"][key]["const"] == name]
    return found["then"]["properties"]


def test_the_schema_holds_every_plugins_options():
    schema = recipe_schema(ZOO)
    definitions = schema["$defs"]

    def follow(part: dict) -> dict:
        return definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else part

    algorithm, data, export = definitions["AlgorithmRecipe"], definitions["DataRecipe"], definitions["ExportRecipe"]
    assert algorithm["properties"]["name"]["enum"] == ["chain", "crowd", "soft"]
    soft = then(algorithm, "name", "soft")
    assert follow(soft["options"])["properties"]["temperature"]["description"] == "Temperature."
    assert follow(soft["options"])["additionalProperties"] is False
    assert list(soft["loss_weights"]["properties"]) == ["task", "soft"]
    chain = then(algorithm, "name", "chain")
    assert (list(chain["options"]["properties"]), chain["options"]["additionalProperties"]) == (["via"], True)
    assert list(follow(then(data, "name", "dots")["options"])["properties"]) == ["noise"]
    assert list(then(export, "format", "paperback")["options"]["properties"]) == ["pages"]
    assert then(export, "format", "hardcover")["quantize"] == {"type": "null"}
    assert {"diary"} == {
        name for kind in schema["properties"]["trackers"]["items"]["oneOf"] for name in kind.get("enum", [])
    }
    tracker = then(definitions["TrackerRecipe"], "name", "diary")
    assert list(follow(tracker["options"])["properties"]) == ["place"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["version", "name", "algorithm", "models", "data"]


def test_the_schema_of_an_empty_zoo():
    definitions = recipe_schema(Zoo({}, {}, {}, {}, {}, ()))["$defs"]
    assert "allOf" not in definitions["AlgorithmRecipe"]
    assert "enum" not in definitions["DataRecipe"]["properties"]["name"]


def test_what_plugins_find_comes_out_with_what_is_wrong_in_the_recipe_itself():
    text = RECIPE.replace("{name: soft}", "{name: soft, options: {tempreature: 2}}").replace("dots", "dotz")
    with pytest.raises(RecipeError) as caught:
        parse_recipe(
            (text + "train: {epochs: 0}\n").encode(),
            Path("x.yaml"),
            also=lambda data, problems: further_problems(data, problems, ZOO),
        )
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "x.yaml",
        "  line 3 algorithm.options.tempreature",
        "  line 7 data.name",
        "  line 9 train.epochs",
    ]


# --- defaults ---------------------------------------------------------------------------------------


def test_a_tracker_has_options_and_may_say_that_it_cannot_work_here(monkeypatch):
    found = plan(RECIPE, "trackers=[{name: diary, options: {place: bed}}]")
    assert found.trackers == (ResolvedTracker(Diary, Diary.Options(place="bed")),)
    assert found.provenance["books"] == {"distribution": "books-dist", "version": "1.0"}
    monkeypatch.setattr(Diary, "missing", "needs the library ink")
    with pytest.raises(RecipeError, match=r"line 8 trackers\.0: needs the library ink$"):
        plan(RECIPE)


def test_every_default_of_a_plugin_is_filled_in():
    given = ["algorithm.options.layers=[1]", "algorithm.loss_weights.soft=3", "export=[{format: paperback}]"]
    given.append("trackers=[{name: diary}]")
    loaded = parse_recipe(RECIPE.encode(), Path("x.yaml"), given)
    whole = filled(loaded.recipe, ZOO)
    assert whole.algorithm.options == {**json.loads(Soft.Options().model_dump_json()), "layers": [1]}
    assert whole.algorithm.loss_weights == {**Soft.default_weights, "soft": 3}
    assert whole.data.options == json.loads(ZOO.datasets["dots"].thing.Options().model_dump_json())
    assert whole.all_trackers[0].options == {"place": "desk"}
    assert whole.export[0].options == {"pages": ZOO.exporters["paperback"].thing.Options().pages}
    assert filled(whole, ZOO) == whole
    again = parse_recipe(dump_recipe(whole).encode(), Path("x.yaml"))
    plan, before = resolve(again, ZOO), resolve(loaded, ZOO)
    assert again.recipe == whole
    assert (plan.algorithm.options, plan.algorithm.loss_weights) == (
        before.algorithm.options,
        before.algorithm.loss_weights,
    )


def test_an_algorithm_may_have_other_defaults_for_its_delegate():
    usual = {"soft": {"options": {"temperature": 1.0}, "loss_weights": {"soft": 2.0}}}
    chain = type("Usual", (Chain,), {"delegate_defaults": usual})
    zoo = dataclasses.replace(
        ZOO, algorithms={**ZOO.algorithms, "chain": dataclasses.replace(ZOO.algorithms["chain"], thing=chain)}
    )
    _, soft = resolve_algorithm("chain", {"via": "soft"}, {"task": 0.5}, zoo)
    assert soft is not None
    assert (soft.options.temperature, soft.loss_weights) == (1.0, {"task": 0.5, "soft": 2.0})
    _, soft = resolve_algorithm("chain", {"via": "soft", "temperature": 3.0}, {"soft": 0.7}, zoo)
    assert soft is not None
    assert (soft.options.temperature, soft.loss_weights) == (3.0, {"task": 0.1, "soft": 0.7})
    whole = filled(parse_recipe(CHAIN.encode(), Path("x.yaml"), ["algorithm.options={}"]).recipe, zoo).algorithm
    assert (whole.options["temperature"], whole.loss_weights["task"], whole.loss_weights["soft"]) == (1.0, 0.1, 2.0)


def test_the_defaults_of_a_delegate_are_filled_in_too():
    whole = filled(parse_recipe(CHAIN.encode(), Path("x.yaml")).recipe, ZOO)
    assert whole.algorithm.options.keys() == {*Chain.Options.model_fields, *Soft.Options.model_fields}
    assert whole.algorithm.loss_weights == {**Soft.default_weights, **Chain.default_weights}


def test_what_is_not_offered_stays_as_it_is_written():
    recipe = parse_recipe(RECIPE.encode(), Path("x.yaml")).recipe
    assert filled(recipe, Zoo({}, {}, {}, {}, {}, ())) == recipe
