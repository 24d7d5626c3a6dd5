"""Recipes: what is read, what is refused and in which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from kdzoo.errors import RecipeError, UnknownName
from kdzoo.recipe.problems import Positions, RecipeProblems, explain
from kdzoo.recipe.reading import dump_recipe, load_recipe, parse_recipe, recipe_hash
from kdzoo.recipe.sections import Recipe
from kdzoo.recipe.train_sections import TrainRecipe
from kdzoo.recipe.yaml_text import scalar

BAD = sorted((Path(__file__).parents[1] / "fixtures" / "bad_recipes").glob("*.yaml"))
NAMES = "1 to 64 of a-z, 0-9, '_', '.' and '-', the first a letter or digit"
SMALL = """\
version: 1
name: small
algorithm: {name: some_kd}
models:
  teacher: {name: large}
  student: {name: small}
data: {name: digits}
"""
FULL = """\
# every section
version: 1
name: takd-r110
description: |
  Two lines
  of text.
algorithm:
  name: some_takd
  options: {via: some_kd, temperature: 4.0}
  loss_weights: {task: 0.1, kd: 1}
models:
  teachers:
    - {name: cifar_resnet110, weights: train, train: {epochs: 3, optimizer: {lr: 0.2}}}
    - {name: cifar_resnet56, weights: a/file.safetensors, preprocessing: {mean: [0.5], std: [0.25], size: 64}}
  assistants: [{name: cifar_resnet20, args: {depth: 20}}]
  student: {name: cifar_resnet8}
data: {name: cifar10, root: /data, batch_size: 64, augment: crop_flip, validation: 5000}
train:
  epochs: 160
  optimizer: {name: sgd, lr: 1e-1, momentum: 0.9, weight_decay: 5e-4}
  schedule: {name: multistep, milestones: [80, 120]}
cache: {views: 4}
control: false
export: [{format: onnx}, {format: onnx, quantize: int8}]
trackers: []
device: cuda:1
precision: bf16
threads: 2
seed: 7
expected: {top1_percent: 90, std: 0.3, seeds: 3}
"""


def parse(text: str, *overrides: str) -> Recipe:
    return parse_recipe(text.encode(), Path("x.yaml"), overrides).recipe


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, *overrides)
    return str(caught.value)


# --- what is refused --------------------------------------------------------------------------------


def test_there_are_bad_recipes():
    assert len(BAD) >= 50


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_recipe_is_refused_in_these_words(path):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(path.read_bytes(), Path(path.name))
    assert f"{caught.value}\n" == path.with_suffix(".txt").read_text()


def test_too_large():
    text = SMALL + "#" * 256 * 1024
    assert refusal(text) == "x.yaml: 1 problem\n  line 1 larger than 256 KiB; a recipe is a page long"


def test_too_many_values():
    text = SMALL + "trackers: [" + "a, " * 10_000 + "]\n"
    assert refusal(text) == "x.yaml: 1 problem\n  line 8 more than 10000 values; a recipe is a page long"


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{" * 200_000, "- " * 100_000, "? " * 100_000, "- a\n" * 60_000, "'" * 200_000]
)
def test_a_hostile_file_is_refused_fast(text):
    assert refusal(text).startswith("x.yaml: 1 problem\n  line ")


def test_no_such_file(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "quickstar.yaml")
    assert str(caught.value) == f"{tmp_path}/quickstar.yaml: no such file; did you mean 'quickstart.yaml'?"
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match=r"pipe\.yaml: cannot be read: it is a pipe; a file would be right$"):
        load_recipe(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match=r"nowhere/x\.yaml: no such file$"):
        load_recipe(tmp_path / "nowhere" / "x.yaml")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_path_that_is_none():
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("a\0b"))
    assert str(caught.value) == "a\\x00b: cannot be read: embedded null byte"


# --- scalars ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("-0.25", -0.25),
        ("+3", 3),
        ("0", 0),
        ("-7", -7),
        ("0.0", 0.0),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        *((word, word) for word in ("no", "on", "yes", "off", "No", "True", "TRUE", "y", "Null", "nan", "inf")),
        *((word, word) for word in ("2026-11-21", "2001-12-14t21:59:43.10-05:00", "1e", "e3", ".", "-", "1.2.3", "=")),
        *((word, word) for word in ("0.1.0", "12a", "cuda:1", "1-2", "hf-hub:a/b", "٣", "1e-3x")),
    ],
)
def test_plain_scalars(text, value):
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["012", "-01", "0x1f", "0o7", "0b1", "1_000", "1:30", "12:30:45", "1_0.5", "01e3", "00.5"]
)
def test_unclear_numbers(text):
    with pytest.raises(ValueError) as caught:
        scalar(text)
    assert str(caught.value) == f"unclear number '{text}'; write it in plain decimals, or in quotes if it is text"


@pytest.mark.parametrize("text", [".inf", "-.inf", "+.INF", ".nan", ".NaN"])
def test_endless_numbers(text):
    with pytest.raises(ValueError) as caught:
        scalar(text)
    assert str(caught.value) == f"must be a finite number, got '{text}'"


def test_quoted_scalars_are_text():
    assert parse(SMALL + "description: '012'\n").description == "012"
    assert parse(SMALL + 'description: "true"\n').description == "true"


# --- what is read -----------------------------------------------------------------------------------


def test_defaults():
    recipe = parse(SMALL)
    assert recipe.train == TrainRecipe()
    assert (recipe.data.batch_size, recipe.data.validation, recipe.device) == (128, 0.1, "auto")
    assert recipe.models.all_teachers == (recipe.models.teacher,)
    assert recipe.cache is recipe.expected is recipe.threads is None


def test_a_full_recipe():
    recipe = parse(FULL)
    assert recipe.description == "Two lines\nof text.\n"
    assert recipe.models.all_teachers == recipe.models.teachers
    assert recipe.models.teachers[0].train == {"epochs": 3, "optimizer": {"lr": 0.2}}
    own = recipe.models.teachers[1].preprocessing
    assert own is not None
    assert own.given() == {"mean": (0.5,), "std": (0.25,), "size": 64}
    assert recipe.train.optimizer.lr == 0.1
    assert recipe.train.schedule.milestones == (80, 120)
    assert recipe.data.validation == 5000
    assert recipe.algorithm.loss_weights == {"task": 0.1, "kd": 1.0}
    assert recipe.expected.top1_percent == 90.0


def test_a_byte_order_mark_is_no_text():
    assert parse("\ufeff" + SMALL).version == 1


@pytest.mark.parametrize(("text", "kind"), [("0", int), ("0.0", float), ("1", int), ("0.5", float), ("500", int)])
def test_validation_is_a_share_or_a_number(text, kind):
    assert type(parse(SMALL, f"data.validation={text}").data.validation) is kind


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError):
        parse(SMALL).seed = 3


def test_every_key_is_described():
    def sections(model: type[BaseModel]):
        yield model
        for info in model.model_fields.values():
            for kind in (info.annotation, *getattr(info.annotation, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    yield from sections(kind)

    found = set(sections(Recipe))
    assert len(found) >= 11
    for model in found:
        assert model.__doc__
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name}"


def test_positions():
    positions = parse_recipe(FULL.encode(), Path("x.yaml"), ["train.epochs=4", "cache.max_gib=1"]).positions
    assert positions.where("algorithm.options.temperature") == "line 9"
    assert positions.at("algorithm.options.temperature") == (9, 27)
    assert positions.where("models.teachers.1.preprocessing.mean.0") == "line 14"
    assert positions.where("models.student.weights") == "line 16", "what is not written stands at its parent"
    assert positions.where("train.epochs") == "-o train.epochs"
    assert positions.where("cache.max_gib") == "-o cache.max_gib"
    assert positions.where("nothing.like.it") == "line 1"


# --- a model's own training -------------------------------------------------------------------------


def test_a_models_overrides_are_merged():
    recipe = parse(FULL)
    train = recipe.train.merged(recipe.models.teachers[0].train)
    assert (train.epochs, train.optimizer.lr, train.optimizer.momentum) == (3, 0.2, 0.9)
    assert recipe.train.merged(None) == recipe.train == recipe.train.merged({})


def test_overrides_that_do_not_fit():
    with pytest.raises(RecipeError) as caught:
        TrainRecipe().merged({"epochs": 0, "optimizer": {"learning": 1}})
    assert str(caught.value) == (
        "train.optimizer.learning: unknown key; known: decay_free, layer_decay, lr, momentum, name, options, "
        "weight_decay\n"
        "train.epochs: must be at least 1, got 0"
    )


def test_options_are_replaced_not_merged():
    train = parse(SMALL, "train.optimizer.options.nesterov=true").train
    assert train.merged({"optimizer": {"options": {"dampening": 0}}}).optimizer.options == {"dampening": 0}


REPDISTILLER = {
    "epochs": 240,
    "optimizer": {"name": "momentum", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "decay_free": "nothing"},
    "schedule": {"name": "multistep", "milestones": [150, 180, 210], "decay_rate": 0.1},
}


def test_a_preset_is_what_it_spells():
    named, spelled = TrainRecipe(preset="repdistiller"), TrainRecipe.model_validate(REPDISTILLER)
    assert named.model_dump(exclude={"preset"}) == spelled.model_dump(exclude={"preset"})
    assert TrainRecipe(preset="timm") == TrainRecipe()


def test_what_a_recipe_says_comes_before_its_preset():
    train = TrainRecipe.model_validate({"preset": "repdistiller", "epochs": 20, "optimizer": {"lr": 0.1}})
    assert (train.epochs, train.optimizer.name, train.optimizer.lr) == (20, "momentum", 0.1)
    other = TrainRecipe.model_validate({"preset": "repdistiller", "schedule": {"name": "cosine"}})
    assert (other.schedule.name, other.schedule.milestones, other.optimizer.name) == ("cosine", (), "momentum")
    assert TrainRecipe.model_validate(train.model_dump()) == train


def test_a_model_may_have_another_preset():
    train = TrainRecipe(epochs=7).merged({"preset": "repdistiller", "optimizer": {"lr": 0.2}})
    assert (train.epochs, train.optimizer.lr, train.optimizer.decay_free) == (240, 0.2, "nothing")


def test_an_unknown_preset_is_refused():
    with pytest.raises(RecipeError, match=r"train\.preset: must be 'timm' or 'repdistiller'"):
        TrainRecipe().merged({"preset": "repdistilled"})


# --- overrides --------------------------------------------------------------------------------------


def test_overrides_reach_everything():
    recipe = parse(
        FULL,
        "train.epochs=2",
        "train.optimizer.lr=1e-3",
        "export.0.quantize=int8",
        "export.1.quantize=null",
        "export.2.format=other",
        "cache.views=2",
        "trackers=[a, b]",
        "algorithm.options.temperature=2",
        "models.teachers.0.train.epochs=1",
        "expected=null",
        "description=a = b",
        "seed=1",
        "seed=2",
    )
    assert (recipe.train.epochs, recipe.train.optimizer.lr, recipe.cache.views) == (2, 1e-3, 2)
    assert [(e.format, e.quantize) for e in recipe.export] == [("onnx", "int8"), ("onnx", None), ("other", None)]
    assert recipe.trackers == ("a", "b")
    assert recipe.algorithm.options == {"via": "some_kd", "temperature": 2}
    assert recipe.models.teachers[0].train == {"epochs": 1, "optimizer": {"lr": 0.2}}
    assert (recipe.expected, recipe.description, recipe.seed) == (None, "a = b", 2)


def test_overrides_make_what_is_not_written():
    recipe = parse(SMALL, "train.optimizer.options.nesterov=true", "export.0.format=onnx", "cache.views=2")
    assert recipe.train.optimizer.options == {"nesterov": True}
    assert recipe.export[0].format == "onnx"
    assert recipe.cache.views == 2


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epochs=0", "-o train.epochs: must be at least 1, got 0"),
        ("train.epoch=2", "-o train.epoch: unknown key; did you mean 'epochs'?"),
        ("trian.epochs=2", "-o trian.epochs trian: unknown key; did you mean 'train'?"),
        ("train.epochs=no", "-o train.epochs: must be a whole number, got 'no'"),
        (
            "train.epochs='2'",
            "-o train.epochs: must be a whole number, got '2', which is text; write it without quotes",
        ),
        (
            "train.epochs=012",
            "-o train.epochs: unclear number '012'; write it in plain decimals, or in quotes if it is text",
        ),
        ("train.epochs.x=2", "-o train.epochs.x: train.epochs is 160; it has no keys"),
        ("export.3.format=onnx", "-o export.3.format: export is a list of 2; '3' is none of its indices, from 0"),
        ("export.x=onnx", "-o export.x: export is a list of 2; 'x' is none of its indices, from 0"),
        ("export.0={fromat: onnx}", "-o export.0.fromat: unknown key; did you mean 'format'?"),
        ("train.epochs", "-o train.epochs: cannot read 'train.epochs'; write -o KEY=VALUE, e.g. -o train.epochs=2"),
        ("=2", "-o cannot read '=2'; write -o KEY=VALUE, e.g. -o train.epochs=2"),
        ("train..x=2", "-o train..x: cannot read 'train..x=2'; write -o KEY=VALUE, e.g. -o train.epochs=2"),
        ("seed=[1", "-o seed: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed=!!int 3", "-o seed: tag 'tag:yaml.org,2002:int' is not allowed; a recipe holds plain values only"),
        ("seed=\x1b", "-o seed: control character '\\x1b'"),
        ("name=../x", f"-o name: must be {NAMES}, got '../x'"),
        ("data.root=\"a\\nb\"", "-o data.root: must be one line without control characters, got 'a\\nb'"),
        ("models={}", "-o models.student: required, but missing"),
    ],
)  # fmt: skip
def test_a_bad_override_is_refused_in_these_words(override, line):
    assert refusal(FULL, override) == f"x.yaml: 1 problem\n  {line}"


def test_file_and_overrides_in_one_message():
    text = FULL.replace("epochs: 160", "epochs: -1").replace("seed: 7", "sed: 7")
    assert refusal(text, "train.optimizer.lr=0", "control=on") == (
        "x.yaml: 4 problems\n"
        "  line 19 train.epochs: must be at least 1, got -1\n"
        "  line 29 sed: unknown key; did you mean 'seed'?\n"
        "  -o train.optimizer.lr: must be greater than 0, got 0\n"
        "  -o control: must be true or false, got 'on'"
    )


# --- writing and comparing --------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_dump_and_load(text):
    recipe = parse(text)
    dumped = dump_recipe(recipe)
    assert parse(dumped) == recipe
    assert Recipe.model_validate(yaml.safe_load(dumped)) == recipe
    assert "&id" not in dumped


def test_dumped_text_stays_text():
    words = [
        "012",
        "1e-3",
        "no",
        "true",
        "null",
        "",
        "1:30",
        "<<",
        "=",
        " a ",
        "# a",
        "2026-11-21",
        ".inf",
        "ä",
        "- a",
        "'",
    ]
    recipe = parse(SMALL)
    options = {f"o{i}": word for i, word in enumerate(words)} | {"no": "key", "1": "key", "<<": "key"}
    recipe = recipe.model_copy(update={"algorithm": recipe.algorithm.model_copy(update={"options": options})})
    assert parse(dump_recipe(recipe)) == recipe


def test_the_hash_counts_content_not_layout():
    shuffled = "\n".join(reversed(SMALL.replace("models:\n  teacher: {name: large}\n  student: {name: small}", (
        "models: {student: {name: small}, teacher: {name: large, weights: train}}")).splitlines()))  # fmt: skip
    assert recipe_hash(parse(shuffled)) == recipe_hash(parse(SMALL))
    assert recipe_hash(parse(SMALL, "seed=1")) != recipe_hash(parse(SMALL))
    assert len(recipe_hash(parse(SMALL))) == 64


# --- a plugin's own options -------------------------------------------------------------------------


class Inner(BaseModel, extra="forbid"):
    width: int = Field(1, multiple_of=2)


class Plugin(BaseModel, extra="forbid"):
    word: str = Field("a", pattern="^[a-c]+$", min_length=1, max_length=3)
    many: tuple[Inner, ...] = ()
    either: int | bool | None = None
    even: int = 0

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"{value} is odd; choose an even number")
        return value


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"word": "xyz"}, ("word", "must be text that matches ^[a-c]+$, got 'xyz'")),
        ({"word": "aaaa"}, ("word", "must be text of at most 3 characters, got 'aaaa'")),
        ({"many": [{}, {"width": 3}]}, ("many.1.width", "must be a multiple of 2, got 3")),
        ({"many": [{"with": 2}]}, ("many.0.with", "unknown key; did you mean 'width'?")),
        ({"either": "x"}, ("either", "must be a whole number or true or false, got 'x'")),
        ({"even": 3}, ("even", "3 is odd; choose an even number")),
    ],
)
def test_pydantic_in_plain_words(data, found):
    with pytest.raises(ValidationError) as caught:
        Plugin.model_validate_json(json.dumps(data), strict=True)
    assert explain(caught.value, Plugin, data) == [found]


def test_notes_come_once_and_last():
    problems = RecipeProblems("x.yaml", Positions({"a": (2, 1), "b": (1, 1)}))
    problems.add("a", "is wrong\nnote: see there")
    problems.add("b", "is wrong too\nnote: see there")
    assert str(problems) == (
        "x.yaml: 2 problems\n  line 1 b: is wrong too\n  line 2 a: is wrong\n  note: see there"
    )  # fmt: skip


# --- light ------------------------------------------------------------------------------------------


def test_reading_a_recipe_needs_no_torch():
    code = "import sys, kdzoo.recipe; print({'torch', 'timm', 'numpy', 'pluggy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("set()\n", "")


# --- hints ------------------------------------------------------------------------------------------


def test_a_key_that_was_renamed_says_its_new_name():
    assert refusal(SMALL, "models.student.reads=image") == (
        "x.yaml: 1 problem\n  -o models.student.reads: unknown key; it is called 'modality' now"
    )
    assert "it is called" not in refusal(SMALL, "reads=image")


@pytest.mark.parametrize(
    ("options", "path", "number"),
    [
        ("{temperature: 4,0}", "temperature", "4,0"),
        ("{a: 1, temperature: -4,25, b: 2}", "temperature", "-4,25"),
        ("{a: {temperature: 4,0}}", "a.temperature", "4,0"),
    ],
)
def test_a_decimal_comma_is_recognised(options, path, number):
    text = SMALL.replace("{name: some_kd}", f"{{name: some_kd, options: {options}}}")
    assert options in text
    assert refusal(text).splitlines()[1:] == [
        f"  line {text[: text.index('options')].count(chr(10)) + 1} algorithm.options.{path}: must be one number, "
        f"got {number}; write it with a point: {number.replace(',', '.')}"
    ]


def test_a_decimal_comma_of_a_line_of_its_own_is_recognised():
    assert refusal(SMALL, "train.optimizer.lr=0,1") == (
        "x.yaml: 1 problem\n  -o train.optimizer.lr: must be a number, got '0,1'; write it with a point: 0.1"
    )


def test_keys_that_are_numbers_are_no_decimals():
    for options in ("{a: x, 0: }", "{a: 4, 0: 1}", "{a: true, 0: }", '{a: 4, "0": }'):
        text = SMALL.replace("{name: some_kd}", f"{{name: some_kd, options: {options}}}")
        assert "0" in parse(text).algorithm.options


def test_more_views_than_epochs_are_refused():
    must = "must be at most 2, the number of epochs: further views would never be seen, got 3"
    text = SMALL.replace("data:", "cache: {views: 3}\ndata:")
    assert refusal(text, "train.epochs=2").splitlines()[1].endswith(f"cache.views: {must}")
    assert parse(text, "train.epochs=3").cache.views == 3
    assert parse(text, "train.epochs=2", "models.student.train.epochs=3").cache.views == 3


@pytest.mark.parametrize("key", ["models.student.weights", "data.root"])
def test_a_name_that_no_file_can_have_is_refused(key):
    assert refusal(SMALL, f"{key}=some/{'x' * 256}").startswith(
        f"x.yaml: 1 problem\n  -o {key}: must be a name that a file can have, at most 255 bytes between slashes "
        "and not 256, got 'some/xxx"
    )
    assert parse(SMALL, f"{key}=some/{'x' * 255}")


# --- errors that come later -------------------------------------------------------------------------


def test_an_error_that_names_a_key_gets_file_and_line():
    loaded = parse_recipe(SMALL.encode(), Path("x.yaml"), ["train.optimizer.name=sdg"])
    name = loaded.recipe.models.student.name
    line = 1 + next(i for i, line in enumerate(SMALL.splitlines()) if "student" in line)
    for kind, said, shown in (
        (
            RecipeError,
            "train.optimizer.name: unknown optimizer 'sdg'",
            "-o train.optimizer.name: unknown optimizer 'sdg'",
        ),
        (
            UnknownName,
            f"unknown model '{name}'; did you mean 'x'?",
            f"line {line} models.student.name: unknown model '{name}'; did you mean 'x'?",
        ),
    ):
        with pytest.raises(kind) as caught, loaded.located():
            raise kind(said)
        assert str(caught.value) == f"x.yaml: 1 problem\n  {shown}"
    for said in ("something else: 3", "unknown model 'of another recipe'", "x.yaml: 1 problem\n  line 3", "nokey.x: y"):
        with pytest.raises(RecipeError) as caught, loaded.located():
            raise RecipeError(said)
        assert str(caught.value) == said


@pytest.mark.parametrize(
    ("opening", "closing"), [("{a: ", "}"), ("[", "]"), ("{a: [", "]}")], ids=["mappings", "lists", "both in turn"]
)
def test_values_are_nested_at_most_32_levels_deep(opening: str, closing: str) -> None:
    levels = opening.count("{") + opening.count("[")

    def nested(depth: int) -> bytes:
        return (opening * (depth // levels) + "1" + closing * (depth // levels)).encode()

    for depth in (2, 30, 34):
        with pytest.raises(RecipeError) as caught:
            parse_recipe(nested(depth), Path("x.yaml"))
        assert ("nested more than 32 levels deep" in str(caught.value)) is (depth > 32)
