"""Whatever the bytes: a recipe or a RecipeError, nothing else, and soon."""

from __future__ import annotations

import random
import time
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdzoo.errors import RecipeError
from kdzoo.recipe.reading import MAX_BYTES, dump_recipe, parse_recipe, recipe_hash
from kdzoo.recipe.sections import Recipe

VALID = """\
version: 1
name: valid
algorithm: {name: some_kd, options: {temperature: 4.0, layers: [1, 2], deep: {a: null}}, loss_weights: {task: 0.1}}
models:
  teacher: {name: large, train: {epochs: 3}}
  student: {name: small, args: {depth: 8}}
data: {name: digits, batch_size: 64, validation: 0.2}
train: {epochs: 2, optimizer: {lr: 1e-3}, schedule: {name: multistep, milestones: [1, 2]}}
export: [{format: onnx}, {format: onnx, quantize: int8}]
cache: {views: 2}
description: "quoted"
"""
PIECES = [
    *("!!python/object/apply:os.system ", "&a ", "*a", "<<: ", "---\n", "%TAG ! a:\n", "\\U00110000"),
    *("'", '"', "[", "]", "{", "}", ": ", "- ", "? ", "| ", "> ", "#", ",", "\t", "\n"),
    *("\0", "\x1b", "\ufeff", "\u2028", "\ud7ff", "\U0001f600", "é"),
    *("1e999", "012", ".nan", "true", "null", "-1", "9" * 50),
]

quick = settings(max_examples=200, derandomize=True, deadline=None)


def outcome(content: bytes, overrides: tuple[str, ...] = ()) -> Recipe | None:
    """Return the recipe, or None where it is refused; fail for anything else and for anything slow."""
    begin = time.process_time()
    try:
        recipe = parse_recipe(content, Path("x.yaml"), overrides).recipe
    except RecipeError as error:
        recipe = None
        text = str(error)
        assert text.startswith("x.yaml: ")
        assert all(line.isprintable() for line in text.split("\n")), "control characters are escaped"
        assert len(text) < 40_000
    assert time.process_time() - begin < 1
    return recipe


@quick
@given(st.binary(max_size=2000))
def test_any_bytes(content):
    outcome(content)


@quick
@given(st.text(max_size=2000))
def test_any_text(text):
    outcome(text.encode("utf-8", "surrogatepass"))


@quick
@given(st.lists(st.sampled_from([*PIECES, *"abc123 \n"]), max_size=300))
def test_any_heap_of_yaml(pieces):
    outcome("".join(pieces).encode())


@quick
@given(st.sampled_from(PIECES), st.integers(1, MAX_BYTES))
def test_one_piece_over_and_over(piece, size):
    content = piece.encode()
    outcome((content * (size // len(content) + 1))[:size])


@quick
@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_mutated_recipes(rng: random.Random, changes: int):
    text = VALID
    for _ in range(changes):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([0, 0, 1, 1, 3, 20]))
        kind = rng.randrange(3)
        middle = rng.choice(PIECES) if kind == 0 else text[start:end] * 2 if kind == 1 else ""
        text = text[:start] + middle + text[end:]
    recipe = outcome(text.encode())
    if recipe is not None:
        assert outcome(dump_recipe(recipe).encode()) == recipe


@quick
@given(st.from_regex(r"[a-z0-9_.]{0,30}=?.{0,30}", fullmatch=True))
def test_any_override(override):
    outcome(VALID.encode(), (override,))


paths = st.sampled_from(
    [
        "train.epochs",
        "export.0.quantize",
        "export.2",
        "cache",
        "algorithm.options.x.0.y",
        "models.teacher",
        "description",
    ]
)


@quick
@given(paths, st.text(max_size=40))
def test_any_value_of_an_override(path, value):
    outcome(VALID.encode(), (f"{path}={value}",))


# --- what is read back ------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
recipes = st.builds(
    lambda options, args, description, lr, milestones: {
        "version": 1,
        "name": "round-trip",
        "description": description,
        "algorithm": {"name": "some_kd", "options": options},
        "models": {"student": {"name": "small", "args": args}},
        "data": {"name": "digits"},
        "train": {
            "optimizer": {"lr": lr},
            "schedule": {"name": "multistep", "milestones": sorted(milestones)},
        },
    },
    options=st.dictionaries(words, values, max_size=4),
    args=st.dictionaries(words, values, max_size=4),
    description=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]) | st.just("\n"), max_size=50),
    lr=st.floats(1e-300, 1000),
    milestones=st.sets(st.integers(1, 1000), min_size=1, max_size=4),
)


@quick
@given(recipes)
def test_dump_and_load(data):
    recipe = Recipe.model_validate(data)
    dumped = dump_recipe(recipe)
    assert outcome(dumped.encode()) == recipe
    assert recipe_hash(parse_recipe(dumped.encode(), Path("x.yaml")).recipe) == recipe_hash(recipe)


def shuffled(data, rng: random.Random):
    if isinstance(data, dict):
        items = [(key, shuffled(value, rng)) for key, value in data.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in data] if isinstance(data, list) else data


@quick
@given(recipes, st.randoms(use_true_random=False))
def test_the_hash_does_not_know_the_order_of_keys(data, rng):
    assert recipe_hash(Recipe.model_validate(shuffled(data, rng))) == recipe_hash(Recipe.model_validate(data))


def test_the_fuzzed_recipe_is_valid():
    assert outcome(VALID.encode()) is not None
    assert yaml.safe_load(VALID)["name"] == "valid"
