"""Knowledge distillation over teacher assistants."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from kdzoo.api import AlgorithmName, Needs, Paper, StageResult
from kdzoo_assistant.comparison import Assisted, AssistedOptions


class TAKD(Assisted):
    """Makes the student match an assistant of intermediate size that has learnt to match the teacher.

    A student far smaller than its teacher learns less from it than from a smaller teacher. So the knowledge passes down
    in steps: teacher -> assistant 0 -> assistant 1 -> ... -> student, each step an ordinary distillation by the
    algorithm that ``via`` names. The recipe lists the assistants from the largest to the smallest. Other options and
    loss weights than this class's own go to that algorithm, the same for every step. For comparison the teacher itself
    also teaches the student (``compare_direct``); ``assistants: each`` compares assistants of several sizes.

    Reads: what the algorithm that ``via`` names reads.
    Loss terms: those of the algorithm that ``via`` names.
    Trains: nothing of its own; one stage for each assistant and each student. State: none.
    Raises: NeedsError for ``assistants: each`` without a validation split.
    Source: Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, "Improved Knowledge Distillation via Teacher
        Assistant", AAAI 2020, https://arxiv.org/abs/1902.03393, and the authors' code.
    Differs from the paper: 1. the divergence is averaged over samples; the authors' code averages over samples and
        classes: their lambda is ``loss_weights: {task: 1 - lambda, kd: lambda / K}`` here, for K classes. 2.
        temperature and weights are the same for the whole chain; the authors' code sets them for every step. 3. an
        assistant is selected on validation data, as the recipe says; the authors' code keeps the epoch that does best
        on test data.
    Defaults from: the paper (``via``); that algorithm (everything else).
    """

    name = "takd"
    paper = Paper(
        title="Improved Knowledge Distillation via Teacher Assistant",
        authors="Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh",
        year=2020,
        url="https://arxiv.org/abs/1902.03393",
    )
    needs = Needs(teachers=1, assistants=(1, None), data="any")
    delegate = "via"
    also_known_as = ("teacher_assistant", "ta_kd")

    class Options(AssistedOptions):
        via: AlgorithmName = Field(
            "kd",
            description="Algorithm of every step of the chain; it must need exactly one teacher.",
        )

    @classmethod
    def guides(cls, teacher: StageResult, assistants: Sequence[StageResult]) -> tuple[StageResult, ...]:
        return (assistants[-1] if assistants else teacher,)
