"""What a study tells the ranking of its arms."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdzoo.recipe.reading import load_recipe
from kdzoo.recipe.study_sections import load_study
from kdzoo.study.arms import Arm, arms_of
from kdzoo.study.measuring import measured
from kdzoo.zoo.loading import load_zoo

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="module")
def zoo():
    return load_zoo()


def told(arms, zoo):
    content = measured("made-up", "", arms, [], zoo, baseline=None, seconds=1.0)
    return {arm["label"]: arm for arm in content["arms"]}


def test_arms_that_share_a_choice_of_algorithm_say_so(tmp_path, zoo):
    (tmp_path / "study.yaml").write_text(
        f"""version: 1
name: made-up
recipe: {RECIPES / "digits" / "kd.yaml"}
algorithms: [kd, {{name: kd, label: kd-8, options: {{temperature: 8.0}}}}]
students: [digits_cnn_tiny, digits_cnn]
"""
    )
    arms = told(arms_of(load_study(tmp_path / "study.yaml"), zoo), zoo)
    taught = {label: (arm["teaching"] or arm["algorithm"], arm["student"]) for label, arm in arms.items()}
    assert taught == {
        "kd-digits_cnn_tiny": ("kd", "digits_cnn_tiny"),
        "kd-digits_cnn": ("kd", "digits_cnn"),
        "kd-8-digits_cnn_tiny": ("kd-8", "digits_cnn_tiny"),
        "kd-8-digits_cnn": ("kd-8", "digits_cnn"),
    }
    assert {arm["data"] for arm in arms.values()} == {"digits"}


def test_a_control_that_saw_what_the_arm_did_not_is_no_competitor(zoo):
    names = ("kd", "lwf", "dafl")  # dafl is handed no data, and the control of lwf sees all tasks at once
    arms = told([Arm(name, load_recipe(RECIPES / "digits" / f"{name}.yaml"), {}) for name in names], zoo)
    assert {label: arm["upper_bound"] for label, arm in arms.items()} == {"kd": False, "lwf": True, "dafl": True}
