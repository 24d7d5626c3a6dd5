"""Short trainings of candidates by the driver of studies: which are trained, what scores them, what is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from kdzoo.contract.execution import Executor, Pending, Resources
from kdzoo.contract.extension_points import Exporter, Offer, OfferOptions
from kdzoo.data.data_set import TestGate
from kdzoo.errors import DivergedError, NeedsError, OutputError
from kdzoo.evaluation.steadiness import Timing
from kdzoo.recipe.budget_section import BudgetRecipe
from kdzoo.recipe.reading import LoadedRecipe, parse_recipe
from kdzoo.recipe.sections import ModelRecipe
from kdzoo.recipe.study_sections import parse_study_file
from kdzoo.report.budget_text import budget_text, missed_budget
from kdzoo.storage.uses import Uses
from kdzoo.study import candidates
from kdzoo.study.arms import arms_of
from kdzoo.study.trials import Place, choose_arms, choose_student, delivered_again, score_of, trial_recipe, with_format
from kdzoo.study.wanted import RunOutcome, WantedRun
from kdzoo.zoo.loading import load_zoo
from kdzoo.zoo.offered import Zoo

RECIPE = b"""
version: 1
name: tiny
algorithm: {name: kd}
models:
  teacher: {name: digits_cnn_small, train: {epochs: 1}}
  student: {name: digits_cnn_tiny}
data: {name: digits, batch_size: 64, validation: 100, train_limit: 256}
train: {epochs: 8, steps_per_epoch: 2, schedule: {name: multistep, milestones: [4, 6], warmup_epochs: 1}}
threads: 1
"""
STUDENTS = {
    "tiny": ModelRecipe(name="digits_cnn_tiny"),
    "small": ModelRecipe(name="digits_cnn_small"),
    "large": ModelRecipe(name="digits_cnn"),
    "odd": ModelRecipe(name="digits_cnn_tiny", args={"stages": "none"}),
}


class Done(Pending):
    """A task that was carried out when it was submitted."""

    name = "done"

    def __init__(self, answer: Any, error: Exception | None) -> None:
        self.answer, self.error = answer, error

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.answer

    def told(self) -> Mapping[str, Any]:
        return {}

    def log(self) -> str:
        return ""


class Here(Executor):
    """Carries tasks out in this process, and remembers their names."""

    name = "here"
    shares_files = True

    def __init__(self, place: Path) -> None:
        super().__init__("", 1, place)
        self.names: list[str] = []

    def submit(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], resources: Resources) -> Done:
        self.names.append(name)
        try:
            return Done(function(self, *arguments), None)
        except Exception as error:
            return Done(None, error)

    def stop(self) -> int:
        return 0

    def tell(self, said: Mapping[str, Any]) -> None: ...
    def open(self) -> None: ...
    def workers(self) -> int:
        return 1

    def ask_to_stop(self) -> None: ...
    def close(self) -> None: ...


class Weights(Exporter):
    """Writes the weights alone."""

    name = "weights"
    suffix = ".safetensors"

    class Options(OfferOptions):
        pass

    def export(self, model: Any, example: Any, path: Path, metadata: Any, calibration: Any) -> None:
        assert calibration[0].shape == (64, 1, 8, 8), "training samples of the recipe"
        save_file(model.state_dict(), path)

    def load(self, path: Path, threads: int) -> Callable[[Any], Any]:
        return lambda inputs: inputs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place in which every file is as fast as another, and the test split cannot be read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(candidates, "timed", lambda call: Timing(1.0, 1.0, 1.0, 0.0))
    zoo = load_zoo()
    offered = {**zoo.exporters, "weights": Offer("weights", Weights, "test", "test", "0")}
    return Place(Here(tmp_path), tmp_path, dataclasses.replace(zoo, exporters=offered), uses=tmp_path)


def base() -> LoadedRecipe:
    return parse_recipe(RECIPE, Path("tiny.yaml"))


def names(place: Place) -> list[str]:
    assert isinstance(place.executor, Here)
    return place.executor.names


def test_only_candidates_within_the_budget_are_trained_and_a_killed_study_repeats_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(gate: TestGate) -> None:
        raise AssertionError("a choice that sees the test split")

    monkeypatch.setattr(TestGate, "open", refuse)
    budget = BudgetRecipe(params_m=0.02, format="weights", trial_epochs=2)
    choice = choose_student(budget, base(), STUDENTS, place)
    record = choice.record()
    outcomes = {row["label"]: row["outcome"] for row in record["candidates"]}
    assert outcomes.pop("large") == "over the budget"
    assert outcomes.pop("odd") == "failed"
    assert sorted(outcomes.values()) == ["chosen", "halved"]
    assert sorted(names(place)) == [
        "small-2-epochs seed 0: student",
        "tiny-2-epochs seed 0: student",
        "tiny-2-epochs seed 0: teacher",
    ]
    names(place).clear()
    assert choose_student(budget, base(), STUDENTS, place).record() == record
    assert names(place) == [], "all of it is stored"
    used = {name.split("/")[0] for name in Uses(tmp_path).read()}
    assert {"candidate", "stage"} <= used, "what a study decided by is not collected"


def test_a_short_training_changes_the_student_and_its_epochs_alone():
    full = base().recipe
    short = trial_recipe(full, STUDENTS["tiny"], "A/tiny", 2)
    assert short.name == "a-tiny-2-epochs"
    assert (short.control, short.export, short.train) == (False, (), full.train)
    assert short.models.teacher == full.models.teacher
    train = short.train.merged(short.models.student.train)
    assert train.epochs == 2
    assert (train.schedule.milestones, train.schedule.warmup_epochs) == ((1,), 0)
    assert train.optimizer == full.train.optimizer


def test_a_choice_needs_a_validation_split(place: Place):
    loaded = dataclasses.replace(base(), recipe=base().recipe.model_copy(deep=True))
    data = loaded.recipe.data.model_copy(update={"validation": 0})
    loaded = dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"data": data}))
    with pytest.raises(NeedsError, match=r"scored on the validation split, and data.validation leaves none"):
        choose_student(BudgetRecipe(params_m=1.0, format="weights"), loaded, STUDENTS, place)


def test_a_fault_of_a_candidate_is_its_own_and_any_other_ends_the_choice():
    def outcome(error: Exception) -> RunOutcome:
        return RunOutcome(WantedRun("a", base()), "failed", error=error)

    diverged = DivergedError("not finite")
    assert score_of(outcome(diverged)) is diverged
    with pytest.raises(OutputError):
        score_of(outcome(OutputError("disk full")))


def test_the_format_of_the_budget_is_among_the_files_once(place: Place):
    zoo: Zoo = place.zoo
    budget = BudgetRecipe(params_m=1.0, format="onnx-int8")
    once = with_format(base().recipe, budget, zoo)
    assert [(each.format, each.quantize) for each in once.export] == [("onnx", "int8")]
    assert with_format(once, budget, zoo) is once


STUDY = b"""
version: 1
name: tiny-study
recipe: tiny.yaml
seeds: [3, 4]
algorithms: [kd, {name: dkd, label: other}]
students:
  - digits_cnn
  - {name: slimmable_cnn, args: {stages: 2, depth: 1}, space: {width: [4, 8]}}
budget: {params_m: 0.01, format: weights, trial_epochs: 1}
"""


def test_the_arms_of_the_chosen_student_are_left_and_write_the_format(place: Place, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_bytes(RECIPE)
    loaded = parse_study_file(STUDY, tmp_path / "study.yaml")
    arms = arms_of(loaded, place.zoo)
    assert [arm.label for arm in arms[:3]] == ["kd-digits_cnn", "kd-slimmable_cnn-width-4", "kd-slimmable_cnn-width-8"]
    assert [arm.loaded.recipe.models.student.args.get("width") for arm in arms] == [None, 4, 8, None, 4, 8]
    assert loaded.study.budget is not None
    choice, kept = choose_arms(loaded.study.budget, arms, loaded.study.all_seeds, place)
    assert {name.split(" seed ")[1] for name in names(place)} == {"3: teacher", "3: student"}
    assert len(names(place)) == 3, "the teacher, and two students that are within the budget"
    width = choice.winner.label[-1]
    assert [arm.label for arm in kept] == [f"{how}-slimmable_cnn-width-{width}" for how in ("kd", "other")]
    assert all([each.format for each in arm.loaded.recipe.export] == ["weights"] for arm in kept)
    said = budget_text(choice.record(), 80)
    assert "2 of 3 candidates could be chosen; kd-slimmable_cnn-width-" in " ".join(said.split())
    assert "kd-digits_cnn: parameters 0.1405 M, 1305% over 0.01 M." in said
    assert max(map(len, said.splitlines())) <= 80
    assert budget_text({}) == ""


def test_a_rejected_file_is_not_timed(place: Place, tmp_path: Path):
    budget = BudgetRecipe(params_m=1.0, format="onnx")
    entry = {"format": "onnx", "quantize": None, "of": "student", "rejected": ["2 points lost"], "file": None}
    outcome = RunOutcome(WantedRun("a", base()), "finished", tmp_path, {"exports": [entry]})
    choice: Any = dataclasses.make_dataclass("Chosen", ["budget"])(budget)
    (found,) = delivered_again(choice, [outcome], place)
    assert (found["verdict"], found["reasons"]) == ("rejected", ["2 points lost"])
    assert missed_budget({"budget": {"again": [found, {**found, "seed": 1, "verdict": "undecided"}]}}) == ["a seed 0"]
    assert missed_budget({}) == []
