"""Teachers that a run knows by their stored answers only, as its results show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdzoo.contract.stage import StageResult
from kdzoo.errors import NeedsError
from kdzoo.run.builder import Builder
from kdzoo.run.delivered import teacher_role


class AbsentTeachers:
    """Their entries in the results and what they chose on the test split, both from when they answered.

    The test gate must be open. Where the test split is another than theirs, ``warnings`` say so, and how far anything
    agrees with them is not known; raises NeedsError where that is all there is to measure.
    """

    def __init__(self, teachers: Sequence[StageResult], build: Builder) -> None:
        self._count, self._classes = len(teachers), len(build.data.classes)
        numbered = [(i, teacher) for i, teacher in enumerate(teachers) if teacher.model.answers is not None]
        self._answers = {teacher_role(i, self._count): build.teachers.answers(t.model) for i, t in numbered}
        test_split = build.data.test_fingerprint if self._answers else ""
        self._chosen = [answers.chosen(test_split) for answers in self._answers.values()]
        self.warnings: list[str] = []
        if any(chosen is None for chosen in self._chosen):
            text = "the test split is another than the one on which the teacher was measured when it answered"
            if any(answers.entry()["top1_percent"] is None for answers in self._answers.values()):
                raise NeedsError(f"{text}, and without labels there is nothing else to measure; let it answer again")
            self.warnings.append(f"{text}, so its accuracy does not compare, and no agreement with it is known")

    def entries(self) -> dict[str, dict[str, Any]]:
        """Their entries by label."""
        found = {}
        for role, answers in self._answers.items():
            entry = answers.entry()
            found[role.label] = role.entry(entry["model"]) | entry | {"label": role.label}
        return found

    def reference(self, measured: Sequence[np.ndarray]) -> np.ndarray | None:
        """Logits (N, K) that stand for all teachers together, those with ``measured`` logits among them; None: unknown.

        Of an absent teacher only the class that it chose is known, so each teacher then has one vote.
        """
        if len(measured) == self._count:
            return np.mean(measured, axis=0) if measured else None
        known = [chosen for chosen in self._chosen if chosen is not None]
        if len(known) < len(self._chosen):
            return None
        votes = [*known, *(logits.argmax(axis=1) for logits in measured)]
        counted: np.ndarray = sum(np.eye(self._classes, dtype=np.float32)[vote] for vote in votes)  # type: ignore[assignment]
        return counted
