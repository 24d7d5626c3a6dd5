"""From a study's file to its arms: what they are called, what they keep of the recipe, and every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdzoo.errors import RecipeError
from kdzoo.recipe.bundled import recipes_root
from kdzoo.recipe.study_sections import load_study
from kdzoo.study.arms import Arm, arms_of, baseline_of
from kdzoo.zoo.loading import load_zoo

KD = recipes_root() / "digits" / "kd.yaml"
HEAD = f"version: 1\nname: some-study\nrecipe: {KD}\n"


@pytest.fixture
def study(tmp_path: Path) -> Any:
    def written(text: str) -> Any:
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return load_study(path)

    return written


def refusal(study: Any, text: str) -> list[str]:
    """The lines of the error, without the file's name."""
    with pytest.raises(RecipeError) as caught:
        arms_of(study(text), load_zoo())
    first, *rest = str(caught.value).splitlines()
    assert first.rpartition(": ")[2] == f"{len(rest)} problem{'s' if len(rest) != 1 else ''}"
    return rest


def arms(study: Any, text: str) -> dict[str, Arm]:
    return {arm.label: arm for arm in arms_of(study(text), load_zoo())}


def test_arms_are_every_combination_of_what_varies(study: Any) -> None:
    found = arms(
        study,
        HEAD + "algorithms: [kd, {name: dkd, options: {temperature: 8.0}, label: dkd-8}]\n"
        "students: [digits_cnn_tiny, {name: digits_cnn_tiny, args: {drop_rate: 0.1}, label: Dropping}]\n"
        "vary: {train.epochs: [10, 20], train.optimizer.lr: [0.1]}\n",
    )
    assert list(found)[:3] == ["kd-digits_cnn_tiny-epochs-10", "kd-digits_cnn_tiny-epochs-20", "kd-dropping-epochs-10"]
    assert len(found) == 8
    last = found["dkd-8-dropping-epochs-20"]
    recipe = last.loaded.recipe
    assert recipe.name == "digits-kd-dkd-8-dropping-epochs-20"
    assert (recipe.algorithm.name, recipe.algorithm.options) == ("dkd", {"temperature": 8.0})
    assert recipe.models.student.args == {"drop_rate": 0.1}
    assert (recipe.train.epochs, recipe.train.optimizer.lr) == (20, 0.1)
    assert recipe.expected is None
    assert last.settings == {"train.epochs": 20, "train.optimizer.lr": 0.1}
    assert [run.seed for run in last.runs([3, 5])] == [3, 5]


def test_an_arm_like_its_recipe_keeps_the_name_and_is_the_baseline(study: Any) -> None:
    loaded = study(HEAD + "seeds: [4, 1]\nalgorithms: [dkd, kd]\n")
    found = arms_of(loaded, load_zoo())
    assert [(arm.label, arm.loaded.recipe.name) for arm in found] == [("dkd", "digits-kd-dkd"), ("kd", "digits-kd")]
    assert found[1].loaded.recipe.algorithm.options == {"temperature": 4.0}  # as the recipe has it
    assert baseline_of(loaded, found) == "kd"
    assert loaded.study.all_seeds == (4, 1)


def test_several_recipes_are_arms_of_their_own(study: Any) -> None:
    pattern = f"recipes: ['{KD.parent}/dk*.yaml', digits/kd]\n"
    loaded = study("version: 1\nname: some-study\n" + pattern + "seeds: 2\n")
    found = arms_of(loaded, load_zoo())
    assert [arm.label for arm in found] == ["digits-dkd", "digits-kd"]
    assert baseline_of(loaded, found) is None


def test_a_pattern_stands_for_all_students_that_match(study: Any) -> None:
    found = arms(study, HEAD + "students: ['digits_cnn*']\n")
    assert "digits_cnn_tiny" in found
    assert len(found) > 1


def test_a_long_name_ends_in_a_hash(study: Any) -> None:
    long = "a" * 60
    found = arms(study, HEAD + f"algorithms: [kd, {{name: dkd, label: {long}-1}}, {{name: dkd, label: {long}-2}}]\n")
    names = [arm.loaded.recipe.name for arm in found.values()]
    assert [len(name) for name in names] == [9, 64, 64]
    assert len(set(names)) == 3


def test_overrides_are_of_the_recipe(study: Any) -> None:
    (arm,) = arms_of(study(HEAD), load_zoo(), ["train.epochs=2"])
    assert arm.loaded.recipe.train.epochs == 2
    assert (arm.label, arm.loaded.recipe.name) == ("digits-kd", "digits-kd")


# --- problems -------------------------------------------------------------------------------------


def test_every_problem_comes_out_at_once_with_its_line(study: Any) -> None:
    found = refusal(
        study,
        HEAD + "algorithms: [kd, dkdd, {name: dkd, options: {alfa: 1.0}}, takd]\n"
        "students: [digits_cnn_tinny, 'mobilnet*']\n"
        "vary: {train.epoch: [10], train.optimizer.lr: [-1, 0.1]}\n",
    )
    assert [line.partition(" known:")[0].partition(" takes")[0] for line in found] == [
        "  line 4 algorithms.1: unknown algorithm 'dkdd'; did you mean 'dkd'?",
        "  line 4 algorithms.2.options.alfa: unknown key;",
        "  line 4 algorithms.3: models.assistants: 'takd'",
        "  line 5 students.0: unknown model 'digits_cnn_tinny'; did you mean 'digits_cnn_tiny'?",
        "  line 5 students.1: no model matches 'mobilnet*'; did you mean 'mobilevit_s'?",
        "  line 6 vary.train.epoch: unknown key; did you mean 'epochs'?",
        "  line 6 vary.train.optimizer.lr: must be greater than 0, got -1",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 2\n", "line 4 seed: unknown key; did you mean 'seeds'?"),
        ("seeds: 0\n", "line 4 seeds: must be at least 1 or a list, got 0"),
        ("seeds: [1, 1]\n", "line 4 seeds.1: repeats seed 1"),
        ("algorithms: [{nam: kd}]\n", "line 4 algorithms.0.name: required, but missing"),
        ("vary: {seed: [1]}\n", "line 4 vary.seed: cannot be varied; it is what 'seeds' is for"),
        ("algorithms: [dkd, dkd]\n", "line 1 2 arms are called 'dkd'; give their algorithms or students a label"),
        (
            "algorithms: [kd, dkd]\nbaseline: kdd\n",
            "line 5 baseline: no arm is called 'kdd'; did you mean 'kd'? known: kd, dkd",
        ),
    ],
)
def test_what_is_wrong_is_said_where_it_is_written(study: Any, text: str, problem: str) -> None:
    assert f"  {problem}" in refusal(study, HEAD + text)


def test_a_missing_recipe_names_the_nearest(study: Any) -> None:
    text = f"version: 1\nname: some-study\nrecipe: {KD.parent}/kdd.yaml\n"
    (line,) = refusal(study, text)
    assert line.startswith("  line 3 recipe: no such file, got ")
    assert line.endswith("; did you mean 'kd.yaml'?")


def test_a_recipe_is_no_study() -> None:
    with pytest.raises(RecipeError, match=r"is a recipe and no study; `kdzoo run .*kd\.yaml` runs it"):
        load_study(KD)


@pytest.mark.parametrize("path", sorted((recipes_root() / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_studies_are_valid_and_their_baseline_is_an_arm(path: Path) -> None:
    loaded = load_study(path)
    found = arms_of(loaded, load_zoo())
    assert found
    one = len(loaded.study.all_recipes) == 1 and loaded.study.budget is None and len(found) > 1
    assert baseline_of(loaded, found) in [*(arm.label for arm in found), *([] if one else [None])]
    assert path.read_text().startswith("# ")
