"""What the page of a study shows: the rows of its ranking, its failed runs, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdzoo.errors import plain
from kdzoo.report.measurements import Grid, Head, grid, item_text
from kdzoo.report.rounding import NOTHING, counted, duration, significant, sized
from kdzoo.report.study_numbers import corrected, seeds
from kdzoo.report.study_results import Arm, Compared, RankedArm, Study, StudyVerdict
from kdzoo.version import __version__

#: Longest name, and longest error, that is shown whole.
LONGEST_NAME, LONGEST_ERROR = 80, 2000


@dataclass(frozen=True)
class RankCell:
    """One number of an arm: its text, lines below it, what it is sorted by (None last), and how good it is."""

    text: str
    below: tuple[str, ...] = ()
    value: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class RankRow:
    """One arm: its name, a few words about it, and its cells."""

    name: str
    about: str
    cells: tuple[RankCell, ...]
    baseline: bool


@dataclass(frozen=True)
class StudySummary:
    """A study for its page."""

    name: str
    description: str
    about: str
    verdict: StudyVerdict
    heads: tuple[Head, ...]
    rows: tuple[RankRow, ...]
    file: str | None  # the file that size and latency are of
    failed: Grid | None
    runs: Grid
    measured: Grid
    version: str = __version__


def summarize_study(study: Study) -> StudySummary:
    """Say what a study holds."""
    arms, runs = len(study.arms), sum(len(arm.runs) for arm in study.arms)
    rows, columns = [rank_row(study, row) for row in study.ranking], list(heads(study))
    known = [i for i in range(len(columns)) if any(row.cells[i].value is not None for row in rows)]
    return StudySummary(
        name=study.name,
        description=study.description or "",
        about=f"{arms} arm{'s' if arms != 1 else ''} · {runs} run{'s' if runs != 1 else ''}",
        verdict=study.verdict,
        heads=(Head("Arm"), *(columns[i] for i in known)),
        rows=tuple(replace(row, cells=tuple(row.cells[i] for i in known)) for row in rows),
        file=next((row.file for row in study.ranking if row.file), None),
        failed=failed_runs(study),
        runs=all_runs(study),
        measured=grid(["what", "value"], list(how_measured(study))),
    )


def heads(study: Study) -> Iterator[Head]:
    """The heads of the ranking after the arm's."""
    yield Head("Rank")
    yield Head("Accuracy", "%, ± std")
    if shows(study, "over_control"):
        yield Head("Over the control", "points")
    if shows(study, "over_baseline"):
        named = {group.baseline for group in study.groups if group.baseline}
        yield Head(f"Over {plain(named.pop(), 24) if len(named) == 1 else 'the baseline'}", "points")
    yield from (
        Head("Step", "ms"),
        Head("Training", "MAC"),
        Head("Parameters"),
        Head("Size"),
        Head("Latency", "ms, p50"),
    )


def shows(study: Study, which: str) -> bool:
    """Whether any arm has such a difference."""
    return any(getattr(row, which) for row in study.ranking)


def rank_row(study: Study, row: RankedArm) -> RankRow:
    """One arm of the ranking."""
    arm, baseline = study.arm(row.label), study.groups[row.group].baseline
    cells = [
        RankCell(NOTHING if row.rank is None else str(row.rank), value=row.rank),
        number(row.mean, "{:.2f}".format, (*(() if row.std is None else (f"± {row.std:.2f}",)), of_seeds(arm, row))),
    ]
    if shows(study, "over_control"):
        cells.append(difference(row.over_control, study.families.over_control))
    if shows(study, "over_baseline"):
        found = difference(row.over_baseline, study.families.over_baseline)
        cells.append(RankCell("baseline", value=0.0) if row.label == baseline else found)
    cells += [
        number(row.step_ms, significant),
        number(None if row.training_pmacs is None else row.training_pmacs * 1e15, counted),
        number(None if row.params_m is None else row.params_m * 1e6, counted),
        number(row.size_mib, sized),
        number(row.latency_p50_ms, significant),
    ]
    name = plain(row.label, LONGEST_NAME)
    return RankRow(name, about(study, arm, study.groups[row.group].title), tuple(cells), row.label == baseline)


def of_seeds(arm: Arm, row: RankedArm) -> str:
    """How many seeds have a result, and of how many where some have none."""
    return seeds(row.seeds) if row.seeds == len(arm.runs) else f"{row.seeds} of {seeds(len(arm.runs))}"


def about(study: Study, arm: Arm, group: str) -> str:
    """What an arm is, after its name: its group, and what sets it apart that the names of arm and group do not say."""
    parts = [arm.algorithm] if arm.algorithm != arm.label else []
    parts += [arm.student] if arm.student not in group else []
    alike = {k for k, v in arm.settings.items() if all(other.settings.get(k) == v for other in study.arms)}
    settings = [f"{key} {item_text(value)}" for key, value in arm.settings.items() if key not in alike]
    return " · ".join([*([group] if group else []), *parts, *(each for each in settings if each not in group)])


def number(value: float | None, show: Any, below: tuple[str, ...] = ()) -> RankCell:
    return RankCell(NOTHING) if value is None else RankCell(show(value), below, value)


def difference(found: Compared | None, comparisons: int) -> RankCell:
    """A mean difference with its interval, what it says, and how sure that is."""
    if found is None:
        return RankCell(NOTHING)
    ends = () if found.low is None or found.high is None else (f"{found.low:+.2f} to {found.high:+.2f}",)
    p = corrected(found, 1).replace(" ", "\N{NO-BREAK SPACE}")
    says = found.outcome + (f", {p}" if p and comparisons else "")
    tone = {"better": "good", "worse": "bad"}.get(found.outcome, "")
    return RankCell(f"{found.mean:+.2f}", (*ends, says), found.mean, tone)


def failed_runs(study: Study) -> Grid | None:
    """The runs without a result, with their errors; None where there is none."""
    rows = [
        [plain(arm.label, LONGEST_NAME), str(run.seed), run.status, lines(run.error)]
        for arm in study.arms
        for run in arm.runs
        if run.status != "finished"
    ]
    return grid(["arm", "seed", "state", "error"], rows) if rows else None


def lines(error: str | None) -> str:
    """An error as it was printed, or that there is none."""
    return NOTHING if not error else error if len(error) <= LONGEST_ERROR else f"{error[:LONGEST_ERROR]} ..."


def all_runs(study: Study) -> Grid:
    """Every run with its accuracies."""

    def percent(value: float | None) -> str:
        return NOTHING if value is None else f"{value:.2f}"

    rows = [
        [plain(arm.label, LONGEST_NAME), str(run.seed), percent(run.top1_percent), percent(run.control_top1_percent),
         percent(run.teacher_top1_percent), plain(run.folder or run.status, 200)]
        for arm in study.arms
        for run in arm.runs
    ]  # fmt: skip
    return grid(["arm", "seed", "student, %", "control, %", "teacher, %", "folder"], rows)


def how_measured(study: Study) -> Iterator[tuple[str, str]]:
    """What it takes to repeat the study."""
    yield "seeds", ", ".join(map(str, study.seeds))
    yield from (("baseline", study.baseline),) if study.baseline else ()
    told: Sequence[tuple[str, str | None]] = (
        ("command", study.command),
        ("hardware", study.hardware),
        ("commit", study.commit),
        ("time of the last call", duration(study.seconds) if study.seconds else None),
    )
    yield from ((name, value) for name, value in told if value)
    yield from ((f"version of {name}", str(version)) for name, version in study.versions.items())
