"""Short trainings of candidates, and the budget of a study from its candidates to the file that is measured again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdzoo.contract.execution import Executor
from kdzoo.contract.extension_points import Exporter
from kdzoo.contract.stage import Stage
from kdzoo.errors import DivergedError, KdzooError, ModelError, NeedsError, OutOfMemory
from kdzoo.plan.resolve import resolve, spec_of
from kdzoo.recipe.budget_section import BudgetRecipe
from kdzoo.recipe.reading import LoadedRecipe
from kdzoo.recipe.sections import ExportRecipe, ModelRecipe, Recipe
from kdzoo.run.builder import Builder
from kdzoo.run.delivered import delivered_spec
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.storage.uses import Uses
from kdzoo.study.arms import Arm, with_seed
from kdzoo.study.budget import exporter_named
from kdzoo.study.candidates import Candidate
from kdzoo.study.choosing import Choice, choose, measure_again, target_of
from kdzoo.study.driver import run_all
from kdzoo.study.wanted import RunOutcome, Unwatched, WantedRun, Watch
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.offered import Zoo

#: What may be wrong with a candidate itself, so that it goes and the others go on. Anything else ends the study.
OWN_FAULTS = (DivergedError, ModelError, NeedsError, OutOfMemory)


@dataclass(frozen=True)
class Place:
    """Where a study trains, who is told about it, and how it is asked to stop; see ``run_all``."""

    executor: Executor
    out: Path
    zoo: Zoo
    stop: Callable[[], int] = lambda: 0
    watch: Watch | None = None
    uses: Path | None = None

    @property
    def store(self) -> Store:
        """The store of the runs; what is asked of it is recorded as used by the study."""
        return Store(self.out / ".store", None if self.uses is None else Uses(self.uses))

    def say(self, label: str, state: str) -> None:
        (self.watch or Unwatched()).note(f"{label}: {state}")


def choose_student(
    budget: BudgetRecipe, base: LoadedRecipe, students: Mapping[str, ModelRecipe], place: Place
) -> Choice:
    """Measure students by their labels, halve those within the budget by short trainings, and return the choice.

    The short trainings differ from ``base`` in the student and its epochs alone, so the teacher is that of the full
    training. Raises BudgetError where no student is within the budget, NeedsError where none can be scored.
    """
    store = place.store
    build = Builder(resolve(base, place.zoo), store, Ranks(base.recipe.device))
    if not build.data.split_sizes.get("validation"):
        raise NeedsError("budget: candidates are scored on the validation split, and data.validation leaves none")
    target = target_of(build, exporter_named(budget.format, place.zoo), budget.threads)
    candidates = [Candidate(label, spec_of(model)) for label, model in students.items()]
    most = build.train_section(Stage("student", build.plan.student)).epochs

    def train(labels: Sequence[str], epochs: int) -> Mapping[str, float | KdzooError]:
        place.say("budget", f"{len(labels)} candidates for {epochs} epochs each")
        runs = [
            WantedRun(
                label,
                LoadedRecipe(trial_recipe(base.recipe, students[label], label, epochs), base.path, base.positions),
            )
            for label in labels
        ]
        found = run_all(
            runs,
            place.executor,
            place.out,
            place.zoo,
            stop=place.stop,
            watch=place.watch,
            finish=False,
            uses=place.uses,
        )
        return {outcome.run.label: score_of(outcome) for outcome in found}

    return choose(budget, candidates, target, train, most, store, place.say)


def score_of(outcome: RunOutcome) -> float | KdzooError:
    """Return a candidate's accuracy on the validation split in percent, or what is wrong with the candidate.

    Raises what is wrong with anything else.
    """
    if outcome.error is not None:
        if isinstance(outcome.error, OWN_FAULTS):
            return outcome.error
        raise outcome.error
    assert outcome.student is not None, "its stages are there"
    return float(outcome.student.metrics["top1_percent"])


def trial_recipe(base: Recipe, student: ModelRecipe, label: str, epochs: int) -> Recipe:
    """Return a recipe that trains a student for so many epochs, and nothing else anew: neither control nor files."""
    data = base.model_dump(mode="json")
    own = student.model_dump(mode="json")
    own["train"] = {**(own["train"] or {}), **shortened(base, student, epochs)}
    data["models"]["student"] = own
    name = re.sub(r"[^a-z0-9_.-]", "-", f"{label.lower()}-{epochs}-epochs")[-64:].lstrip("_.-")
    return Recipe.model_validate(
        {**data, "name": name, "control": False, "export": [], "trackers": [], "expected": None}
    )


def shortened(base: Recipe, student: ModelRecipe, epochs: int) -> dict[str, Any]:
    """Return what changes in a train section with fewer epochs: whatever counts epochs shrinks with them."""
    train = base.train.merged(student.train)
    share = epochs / train.epochs

    def fewer(count: int) -> int:
        return min(round(count * share), epochs - 1)

    schedule = train.schedule.model_dump(mode="json")
    schedule["warmup_epochs"] = fewer(train.schedule.warmup_epochs)
    schedule["milestones"] = sorted({max(1, fewer(each)) for each in train.schedule.milestones})
    return {"epochs": epochs, "schedule": schedule, "head_epochs": fewer(train.head_epochs)}


def choose_arms(
    budget: BudgetRecipe, arms: Sequence[Arm], seeds: Sequence[int], place: Place
) -> tuple[Choice, list[Arm]]:
    """Choose a student among those of the first arms, and return the choice and the arms that have it.

    The first arms are those that differ from the very first one in their student alone. The returned arms write the
    budget's format too. Short trainings have the first seed.
    """
    first = [arm for arm in arms if _but_its_student(arm) == _but_its_student(arms[0])]
    students = {arm.label: arm.loaded.recipe.models.student for arm in first}
    choice = choose_student(budget, with_seed(first[0].loaded, seeds[0]), students, place)
    chosen = students[choice.winner.label]
    place.say("budget", f"{choice.winner.label} is trained in full")
    kept = [arm for arm in arms if arm.loaded.recipe.models.student == chosen]
    return choice, [
        replace(arm, loaded=replace(arm.loaded, recipe=with_format(arm.loaded.recipe, budget, place.zoo)))
        for arm in kept
    ]


def _but_its_student(arm: Arm) -> dict[str, Any]:
    data = arm.loaded.recipe.model_dump(mode="json", exclude={"name", "expected"})
    del data["models"]["student"]
    return data


def with_format(recipe: Recipe, budget: BudgetRecipe, zoo: Zoo) -> Recipe:
    """Return a recipe whose files include the budget's format."""
    wanted = exporter_named(budget.format, zoo)
    quantize = wanted.label or None
    if any((each.format, each.quantize) == (wanted.name, quantize) for each in recipe.export):
        return recipe
    further = ExportRecipe(format=wanted.name, quantize=quantize)
    export = [each.model_dump(mode="json") for each in (*recipe.export, further)]
    return Recipe.model_validate({**recipe.model_dump(mode="json"), "export": export})


def delivered_again(choice: Choice, outcomes: Sequence[RunOutcome], place: Place) -> list[dict[str, Any]]:
    """Weigh the files that the finished runs of the winner deliver and time them again; see ``measure_again``.

    A file that its verification rejected, or that was not written, has the verdict "rejected" and the reasons.
    """
    finished = [outcome for outcome in outcomes if outcome.status == "finished"]
    exporter = exporter_named(choice.budget.format, place.zoo)
    return [_delivered(choice, outcome, exporter, place) for outcome in finished]


def _delivered(choice: Choice, outcome: RunOutcome, exporter: Exporter, place: Place) -> dict[str, Any]:
    assert outcome.folder is not None, "the run is finished"
    assert outcome.results is not None, "the run is finished"
    about = {"label": outcome.run.label, "seed": outcome.run.seed, "folder": str(outcome.folder)}
    entry = _entry(outcome.results, exporter)
    if entry is None or entry["rejected"]:
        reasons = ["the run writes no such file"] if entry is None else list(entry["rejected"])
        return {**about, "file": None, "verdict": "rejected", "reasons": reasons}
    store = place.store
    build = Builder(resolve(outcome.run.loaded, place.zoo), store, Ranks(outcome.run.loaded.recipe.device))
    folder = RunFolder.view(outcome.folder)
    network = build.network(delivered_spec(folder.read_json("student.json")), load=False)
    target = target_of(build, exporter, choice.budget.threads)
    path = folder.path("export") / entry["file"]
    found = measure_again(choice.budget, target, network, path, store, place.say)
    return {**about, "file": f"export/{entry['file']}", "top1_percent": entry["top1_percent"], **found}


def _entry(results: Mapping[str, Any], exporter: Exporter) -> Mapping[str, Any] | None:
    wanted = (exporter.name, exporter.label or None, "student")
    return next((each for each in results["exports"] if (each["format"], each["quantize"], each["of"]) == wanted), None)
