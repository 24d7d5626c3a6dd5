"""From a study to its arms: the recipe with each algorithm, student and setting, and to runs over the seeds."""

from __future__ import annotations

import copy
import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdzoo.errors import UnknownName, nearest, shown
from kdzoo.models.matching import is_pattern, models_matching, spaced
from kdzoo.plan.opening import known_recipe_of
from kdzoo.plan.resolve import known_problems
from kdzoo.recipe.problems import RecipeProblems, explain
from kdzoo.recipe.reading import LoadedRecipe
from kdzoo.recipe.sections import Recipe
from kdzoo.recipe.study_sections import LoadedStudy, StudyAlgorithm, StudyStudent
from kdzoo.study.wanted import WantedRun
from kdzoo.zoo.offered import Zoo

#: Longest name of a recipe, and characters of the hash that ends one that is cut.
LONGEST_NAME, HASH = 64, 8


@dataclass(frozen=True)
class Arm:
    """One choice of algorithm, student and settings. ``settings`` are the values of the keys that the study varies.

    ``unchanged``: algorithm and student are those of the recipe's file. ``teaching`` is what the study calls its choice
    of algorithm, which arms of several students share; empty: the algorithm's name.
    """

    label: str
    loaded: LoadedRecipe
    settings: Mapping[str, Any]
    unchanged: bool = False
    teaching: str = ""

    def runs(self, seeds: Sequence[int]) -> list[WantedRun]:
        """Return its runs, one a seed."""
        return [WantedRun(self.label, with_seed(self.loaded, seed)) for seed in seeds]


@dataclass(frozen=True)
class _Choice:
    """What an arm takes of each list of the study: the place in it, and what is there; None: as the recipe has it."""

    algorithm: tuple[int, StudyAlgorithm] | None
    student: tuple[int, StudyStudent] | None
    settings: Mapping[str, Any]


def with_seed(loaded: LoadedRecipe, seed: int) -> LoadedRecipe:
    """Return a recipe with another seed."""
    recipe = loaded.recipe.model_copy(update={"seed": seed})
    return LoadedRecipe(recipe, loaded.path, loaded.positions)


def arms_of(loaded: LoadedStudy, zoo: Zoo, overrides: Sequence[str] = ()) -> list[Arm]:
    """Return the arms of a study; ``overrides`` are of its recipes. Raise RecipeError with every problem of the study.

    What is wrong in a recipe itself is raised with the lines of that recipe.
    """
    study, problems = loaded.study, loaded.problems()
    bases = [known_recipe_of(path, overrides) for path in _recipe_files(loaded, problems)]
    algorithms = list(enumerate(study.algorithms))
    students = list(_students(loaded, problems))
    settings = [dict(zip(study.vary, values, strict=True)) for values in itertools.product(*study.vary.values())]
    for base, choice in itertools.product(bases, _by_themselves(algorithms, students, study.vary)):
        _varied(base, choice, (), loaded, zoo, problems)
    problems.raise_if_any()
    of_each: tuple[list[Any], ...] = (algorithms or [None], students or [None], settings)
    choices = [_Choice(*chosen) for chosen in itertools.product(*of_each)]
    arms: list[Arm] = []
    for base, choice in itertools.product(bases, choices):
        parts = _label_parts(choice, len(algorithms), len(students), {k for k, v in study.vary.items() if len(v) > 1})
        recipe = _varied(base, choice, parts, loaded, zoo, problems)
        if recipe is not None:
            label = "-".join([*([base.recipe.name] if len(bases) > 1 or not parts else []), *parts])
            loaded_arm = LoadedRecipe(recipe, base.path, base.positions)
            teaching = (choice.algorithm[1].label or "") if choice.algorithm is not None else ""
            arms.append(Arm(label, loaded_arm, choice.settings, _keeps_models(base, choice), teaching))
    _check_labels(loaded, arms, problems)
    problems.raise_if_any()
    return arms


def _by_themselves(
    algorithms: Sequence[tuple[int, StudyAlgorithm]],
    students: Sequence[tuple[int, StudyStudent]],
    vary: Mapping[str, Sequence[Any]],
) -> Iterator[_Choice]:
    """Each thing that varies alone, so that what is wrong with it is said whatever is wrong with the others."""
    yield from (_Choice(algorithm, None, {}) for algorithm in algorithms)
    yield from (_Choice(None, student, {}) for student in students)
    yield from (_Choice(None, None, {key: value}) for key, values in vary.items() for value in values)


def baseline_of(loaded: LoadedStudy, arms: Sequence[Arm]) -> str | None:
    """Return the label of the arm that others are compared with: the named one, or that of the only recipe as it is."""
    if loaded.study.baseline is not None:
        return loaded.study.baseline
    if len(loaded.study.all_recipes) > 1:
        return None
    unchanged = [arm.label for arm in arms if arm.unchanged]
    return unchanged[0] if unchanged and len(arms) > 1 else None


def _recipe_files(loaded: LoadedStudy, problems: RecipeProblems) -> Iterator[Path]:
    """The study's recipes: files relative to its own, patterns of such, or bundled ones."""
    several = loaded.study.recipe is None
    for index, written in enumerate(loaded.study.all_recipes):
        path = f"recipes.{index}" if several else "recipe"
        place = loaded.path.parent / written
        if is_pattern(written):
            found = [Path(os.path.normpath(name)) for name in sorted(glob.glob(str(place)))]
            if not found:
                problems.add(path, f"no file matches {shown(written)}")
            yield from found
        elif place.exists():
            yield Path(os.path.normpath(place))
        elif written.endswith((".yaml", ".yml")):
            close = nearest(place.name, [near.name for near in place.parent.glob("*.yaml")])
            problems.add(path, f"no such file, got {shown(written)}{close}")
        else:
            yield Path(written)
    if not loaded.study.all_recipes or problems:
        problems.raise_if_any()


def _students(loaded: LoadedStudy, problems: RecipeProblems) -> Iterator[tuple[int, StudyStudent]]:
    """Each student with its place in the list; a pattern stands for all models that match it."""
    for index, student in enumerate(loaded.study.students):
        try:
            names = models_matching([student.name])
        except UnknownName as error:
            problems.add(_entry("students", index, ".name", loaded), str(error))
            continue
        if len(names) > 1 and student.label is not None:
            problems.add(f"students.{index}.label", f"names one student, and {len(names)} models match")
        yield from ((index, each) for name in names for each in _in_space(student, name))


def _in_space(student: StudyStudent, name: str) -> Iterator[StudyStudent]:
    """A student with each combination of its space's values, which its label then says too."""
    for args in spaced(student.space):
        values = [_plain_name(f"{key}-{_brief(value)}") for key, value in args.items()]
        label = "-".join([student.label or name, *values]) if args else student.label
        yield student.model_copy(update={"name": name, "args": {**student.args, **args}, "space": {}, "label": label})


# --- one arm ----------------------------------------------------------------------------------------


def _label_parts(choice: _Choice, algorithms: int, students: int, varied: set[str]) -> list[str]:
    """What sets an arm apart from the others of its recipe, in words that a name may hold."""
    parts = []
    if choice.algorithm is not None and algorithms > 1:
        parts.append(choice.algorithm[1].label or choice.algorithm[1].name)
    if choice.student is not None and students > 1:
        parts.append(choice.student[1].label or choice.student[1].name)
    parts += [f"{key.rpartition('.')[2]}-{_brief(value)}" for key, value in choice.settings.items() if key in varied]
    return [_plain_name(part) for part in parts]


def _brief(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _plain_name(text: str) -> str:
    return re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-.") or "x"


def _run_name(base: str, parts: Sequence[str]) -> str:
    """The name of an arm's recipe; a long one ends in a hash of the whole."""
    name = "-".join([base, *parts]) if parts else f"{base}-varied"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - HASH - 1]}-{hashlib.sha256(name.encode()).hexdigest()[:HASH]}"


def _varied(
    base: LoadedRecipe, choice: _Choice, parts: Sequence[str], loaded: LoadedStudy, zoo: Zoo, problems: RecipeProblems
) -> Recipe | None:
    """The recipe of an arm; None where something of it is wrong, which is reported where the study says it."""
    before = base.recipe.model_dump(mode="json")
    data = copy.deepcopy(before)
    if choice.algorithm is not None:
        _set_algorithm(data, choice.algorithm[1])
    if choice.student is not None:
        _set_student(data, choice.student[1])
    found = [problem for key, value in choice.settings.items() if (problem := _set(data, key, value))]
    if data == before:
        return base.recipe
    data |= {"name": _run_name(before["name"], parts), "expected": None}
    if not found:
        try:
            recipe = Recipe.model_validate(data)
        except ValidationError as error:
            found = explain(error, Recipe, data)
        else:
            found = known_problems(LoadedRecipe(recipe, base.path, base.positions), zoo).found
            if not found:
                return recipe
    for path, message in found:
        problems.add(*_where_written(path, message, choice, loaded))
    return None


def _keeps_models(base: LoadedRecipe, choice: _Choice) -> bool:
    """Whether an arm has the algorithm and the student of its recipe."""
    before = base.recipe.model_dump(mode="json")
    data = copy.deepcopy(before)
    if choice.algorithm is not None:
        _set_algorithm(data, choice.algorithm[1])
    if choice.student is not None:
        _set_student(data, choice.student[1])
    return data == before


def _set_algorithm(data: dict[str, Any], chosen: StudyAlgorithm) -> None:
    same = data["algorithm"]["name"] == chosen.name
    options, weights = (data["algorithm"][part] if same else {} for part in ("options", "loss_weights"))
    data["algorithm"] = {
        "name": chosen.name,
        "options": {**options, **chosen.options},
        "loss_weights": {**weights, **chosen.loss_weights},
    }


def _set_student(data: dict[str, Any], chosen: StudyStudent) -> None:
    student = data["models"]["student"]
    same = student["name"] == chosen.name
    weights = student["weights"] if same or student["weights"] in ("train", "pretrained", "teacher") else "train"
    args = {**(student["args"] if same else {}), **chosen.args}
    student |= {"name": chosen.name, "args": args, "weights": chosen.weights or weights}
    if student["weights"] in ("train", "pretrained", "teacher"):
        student["weights_key"] = None


def _set(data: Any, key: str, value: Any) -> tuple[str, str] | None:
    """Set a key such as ``train.epochs``; return the problem where it leads into a value that has no keys."""
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(data, list) and part.isdecimal() and int(part) < len(data):
            data = data[int(part)]
            continue
        if not isinstance(data, dict):
            return key, f"{part} is no key of {shown(data)}"
        if data.get(part) is None:
            data[part] = {}
        data = data[part]
    if isinstance(data, list) and last.isdecimal() and int(last) < len(data):
        data[int(last)] = value
    elif isinstance(data, dict):
        data[last] = value
    else:
        return key, f"{last} is no key of {shown(data)}"
    return None


def _where_written(path: str, message: str, choice: _Choice, loaded: LoadedStudy) -> tuple[str, str]:
    """Where the study says what a problem of an arm's recipe is about, and the message."""
    for key in choice.settings:
        if path == key or path.startswith(f"{key}.") or key.startswith(f"{path}."):
            return f"vary.{key}", message if path == key else f"{path}: {message}"
    if choice.student is not None and (path == "models.student" or path.startswith("models.student.")):
        return _entry("students", choice.student[0], path.removeprefix("models.student"), loaded), message
    if choice.algorithm is not None and path.startswith("algorithm."):
        return _entry("algorithms", choice.algorithm[0], path.removeprefix("algorithm"), loaded), message
    if choice.algorithm is not None:
        return f"algorithms.{choice.algorithm[0]}", f"{path}: {message}"
    if choice.student is not None:
        return f"students.{choice.student[0]}", f"{path}: {message}"
    return "vary" if choice.settings else "recipe", f"{path}: {message}"


def _entry(group: str, index: int, below: str, loaded: LoadedStudy) -> str:
    """The path of an entry, and below it where it is written as a section."""
    as_section = f"{group}.{index}.name" in loaded.positions.marks
    return f"{group}.{index}{below}" if as_section else f"{group}.{index}"


def _check_labels(loaded: LoadedStudy, arms: Sequence[Arm], problems: RecipeProblems) -> None:
    """Report arms that cannot be told apart, and a baseline that is none of them."""
    labels = [arm.label for arm in arms]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        problems.add("", f"{labels.count(label)} arms are called '{label}'; give their algorithms or students a label")
    names = [arm.loaded.recipe.name for arm in arms]
    for name in sorted({name for name in names if names.count(name) > 1} if not problems else ()):
        problems.add("", f"{names.count(name)} recipes are called '{name}'; give them names of their own")
    baseline = loaded.study.baseline
    if baseline is not None and baseline not in labels and not problems:
        close = nearest(baseline, labels) or ";"
        problems.add("baseline", f"no arm is called {shown(baseline)}{close} known: {', '.join(labels)}")
