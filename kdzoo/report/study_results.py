"""study.json as typed data: what a study measured, and how its arms rank.

Shares are in percent where the name says so. A measurement that was not made is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kdzoo.report.results import Part, parsed

#: What a comparison over seeds says. "not decided" is no "equal": the seeds cannot tell.
Outcome = Literal["better", "worse", "not decided", "one seed", "upper bound"]


class ArmFile(Part):
    """One exported file of a run. Milliseconds are for a batch of one."""

    label: str
    format: str | None = None
    quantize: str | None = None
    top1_percent: float | None = None
    size_mib: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None


class TrainingCompute(Part):
    """Multiply-accumulates of all training, in 10^15."""

    student: float | None = None
    teacher: float | None = None
    search: float | None = None
    total: float | None = None


class ArmRun(Part):
    """One run: an arm with one seed."""

    seed: int
    folder: str | None = None
    status: Literal["finished", "failed", "stopped"]
    error: str | None = None
    top1_percent: float | None = None
    control_top1_percent: float | None = None
    teacher_top1_percent: float | None = None
    params_m: float | None = None
    macs_g: float | None = None
    step_ms: float | None = None
    training_seconds: float | None = None
    training_pmacs: TrainingCompute | None = None
    files: list[ArmFile] = []


class Arm(Part):
    """One choice of algorithm, student and settings, run over seeds.

    ``teaching`` is what the study calls its choice of algorithm, whatever the student; empty: the algorithm's name.
    ``settings`` holds the values of the keys that the study varies; ``upper_bound`` says that the control is no
    competitor. Arms on other ``data`` are not ranked together.
    """

    label: str
    algorithm: str
    student: str
    recipe: str
    data: str = ""
    teaching: str = ""
    settings: dict[str, Any] = {}
    upper_bound: bool = False
    runs: list[ArmRun]

    @property
    def finished(self) -> list[ArmRun]:
        """Its runs that have a result."""
        return [run for run in self.runs if run.status == "finished" and run.top1_percent is not None]


class Measured(Part):
    """A study before its arms are ranked."""

    name: str
    description: str | None = None
    seeds: list[int]
    baseline: str | None = None
    hardware: str | None = None
    commit: str | None = None
    command: str | None = None
    versions: dict[str, Any] = {}
    seconds: float | None = None
    arms: list[Arm]


class Compared(Part):
    """A mean difference in points over the seeds that both sides have, and what it says."""

    mean: float
    low: float | None = None
    high: float | None = None
    level: float
    p: float | None = None
    p_holm: float | None = None
    seeds: int
    outcome: Outcome


class RankedArm(Part):
    """One row of the ranking; ``group`` is the place of its group, within which it has its rank.

    ``file`` is the exported file that size and latency are of. Costs are means over finished seeds.
    """

    label: str
    group: int
    rank: int | None = None
    seeds: int
    mean: float | None = None
    std: float | None = None
    control: float | None = None
    teacher: float | None = None
    over_control: Compared | None = None
    over_baseline: Compared | None = None
    step_ms: float | None = None
    training_seconds: float | None = None
    training_pmacs: float | None = None
    params_m: float | None = None
    macs_g: float | None = None
    file: str | None = None
    file_top1_percent: float | None = None
    size_mib: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None


class Group(Part):
    """Arms that one decides between: ``title`` says what they have in common, empty where there is one group.

    ``baseline`` is the arm that the others of the group are compared with.
    """

    title: str
    baseline: str | None = None


class FrontPoint(Part):
    """The file of an arm, its means over finished seeds, and whether no other is both better and cheaper."""

    label: str
    file: str
    top1_percent: float
    cost: float
    on_front: bool


class Front(Part):
    """Every file of arms that answer the same question, by accuracy and by one cost."""

    title: str
    cost: Literal["latency_p50_ms", "size_mib"]
    points: list[FrontPoint]


class GroupVerdict(Part):
    """What one group of arms shows."""

    title: str
    tone: Literal["good", "even", "bad", "unknown"]
    headline: str
    sentences: list[str]
    facts: list[list[str]] = []  # pairs: a value, and what it is of


class StudyVerdict(Part):
    """What a study shows in words: what to take, how sure that is, what it costs, and what is not decided."""

    tone: Literal["good", "even", "bad", "unknown"]
    headline: str
    groups: list[GroupVerdict]
    caveat: str = ""


class Families(Part):
    """How many comparisons Holm's correction is for."""

    over_control: int
    over_baseline: int


class Study(Measured):
    """A study with its ranking."""

    groups: list[Group]
    ranking: list[RankedArm]
    families: Families
    fronts: list[Front]
    verdict: StudyVerdict

    def arm(self, label: str) -> Arm:
        return next(arm for arm in self.arms if arm.label == label)

    def in_group(self, number: int) -> list[RankedArm]:
        """The rows of one group, the best mean first."""
        return [row for row in self.ranking if row.group == number]


def parse_study(content: Mapping[str, Any], place: Path | str = "study.json") -> Study:
    """Return the content of a study.json as typed data; ReportError names the first part that is not right."""
    return parsed(Study, content, place, "a study")


def parse_measured(content: Mapping[str, Any], place: Path | str = "study") -> Measured:
    """Return what a study measured as typed data; ReportError as ``parse_study``."""
    return parsed(Measured, content, place, "a study")
