"""Which arms of a study one decides between: groups, each with a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdzoo.report.study_results import Arm, Measured

#: Sections of a recipe that the control takes no part in; a setting elsewhere says what an arm is compared within.
TEACHING = ("algorithm", "models", "export")
#: The part of the models that the control shares.
STUDENT = "models.student"


@dataclass(frozen=True)
class ArmGroup:
    """Arms that one decides between, and the one that the others are compared with."""

    title: str
    arms: list[Arm]
    baseline: Arm | None


def grouped(study: Measured) -> list[ArmGroup]:
    """Split arms into groups that are worth a ranking of their own.

    Arms on other data, or with an upper bound as their control, are never ranked together. On the same data, arms of
    one student and one set of training settings form a group, because their controls are the same. Where that leaves
    one arm in each, the study asks for the best student or setting: all of them form one group.
    """
    found: list[list[Arm]] = []
    for question in split(study.arms, question_of):
        contexts = split(question, context_of)
        found += contexts if any(len(arms) > 1 for arms in contexts) else [question]
    return [ArmGroup(title(arms, study.arms), arms, baseline_of(arms, study)) for arms in found]


def split(arms: Sequence[Arm], key: Callable[[Arm], Any]) -> list[list[Arm]]:
    """Arms by a key, in the order in which the keys appear."""
    found: dict[Any, list[Arm]] = {}
    for arm in arms:
        found.setdefault(key(arm), []).append(arm)
    return list(found.values())


def question_of(arm: Arm) -> tuple[str, bool]:
    """What an arm's accuracy is an answer to."""
    return arm.data, arm.upper_bound


def context_of(arm: Arm) -> tuple[str, ...]:
    """What an arm shares with its control."""
    return arm.student, *(f"{key} {value}" for key, value in settings(arm, teaching=False).items())


def settings(arm: Arm, teaching: bool) -> dict[str, Any]:
    """Those of what varies that say how the arm is taught, or those that its control shares."""
    return {key: value for key, value in sorted(arm.settings.items()) if is_teaching(key) == teaching}


def is_teaching(key: str) -> bool:
    """Whether a key of a recipe is about the teaching alone."""
    return key.split(".")[0] in TEACHING and not f"{key}.".startswith(f"{STUDENT}.")


def title(arms: Sequence[Arm], all_arms: Sequence[Arm]) -> str:
    """What some arms have in common and others of the study have not, in words."""
    everywhere = set.intersection(*(set(parts(arm)) for arm in all_arms))
    shared = set.intersection(*(set(parts(arm)) for arm in arms))
    return ", ".join(part for part in parts(arms[0]) if part in shared - everywhere)


def parts(arm: Arm) -> list[str]:
    """What an arm is compared within, in words."""
    student, *others = context_of(arm)
    bound = "held against an upper bound" if arm.upper_bound else "held against an equal control"
    return [*([f"data {arm.data}"] if arm.data else []), f"student {student}", *others, bound]


def baseline_of(arms: Sequence[Arm], study: Measured) -> Arm | None:
    """The study's baseline, or in another group the one arm that is taught as the baseline is."""
    named = next((arm for arm in study.arms if arm.label == study.baseline), None)
    if named is None or named in arms:
        return named
    alike = [arm for arm in arms if taught(arm) == taught(named) and arm.upper_bound == named.upper_bound]
    return alike[0] if len(alike) == 1 else None


def taught(arm: Arm) -> tuple[str, dict[str, Any]]:
    """How an arm is taught, whatever its student."""
    return arm.teaching or arm.algorithm, settings(arm, teaching=True)
