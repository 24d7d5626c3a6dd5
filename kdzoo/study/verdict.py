"""What a study shows in words: what to take, how sure that is, what it costs, and what is not decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kdzoo.report.rounding import counted, significant, sized
from kdzoo.report.study_numbers import corrected, interval, names, reached, seeds
from kdzoo.report.study_results import Compared, RankedArm, Study

CAVEAT = (
    "Each interval is Student's t over the differences within seeds, for itself alone, and takes them as normally "
    "distributed. Better or worse is what stays below p = 0.05 after Holm's correction; not decided does not mean "
    "equal. Another data set can rank the arms otherwise."
)


def verdict(study: Study) -> dict[str, Any]:
    """Return the verdict of study.json; ``study`` has its ranking, and its own verdict is ignored."""
    groups = [judged(Side(study, number)) | {"title": group.title} for number, group in enumerate(study.groups)]
    if len(groups) == 1:
        return {"tone": groups[0]["tone"], "headline": groups[0]["headline"], "groups": groups, "caveat": CAVEAT}
    tones = {group["tone"] for group in groups}
    good = sum(group["tone"] == "good" for group in groups)
    headline = f"{good} of {len(groups)} groups have a clear winner"
    return {
        "tone": tones.pop() if len(tones) == 1 else "even",
        "headline": headline,
        "groups": groups,
        "caveat": CAVEAT,
    }


@dataclass(frozen=True)
class Side:
    """One group of a study, and what its arms are compared with: the baseline, else each with its own control."""

    study: Study
    number: int

    @property
    def rows(self) -> list[RankedArm]:
        """The arms that have a result, the best mean first."""
        return [row for row in self.study.in_group(self.number) if row.rank is not None]

    @property
    def baseline(self) -> str | None:
        """The arm that others are compared with, where any is."""
        return self.study.groups[self.number].baseline if any(row.over_baseline for row in self.rows) else None

    @property
    def reference(self) -> str:
        return self.baseline or "the control"

    @property
    def comparisons(self) -> int:
        families = self.study.families
        return families.over_baseline if self.baseline else families.over_control

    def compared(self, row: RankedArm) -> Compared | None:
        return row.over_baseline if self.baseline else row.over_control

    def outcomes(self, outcome: str) -> list[RankedArm]:
        """The arms of which the comparison says so."""
        return [row for row in self.rows if (found := self.compared(row)) and found.outcome == outcome]


def judged(side: Side) -> dict[str, Any]:
    """Judge the arms of one group."""
    rows = side.rows
    if not rows:
        return told(side, "bad", "No run finished", failures(side))
    best = rows[0]
    outcomes = {found.outcome for row in rows if (found := side.compared(row))}
    if not outcomes:
        sentence = (
            f"{first(side, best)}. There is no control and no baseline with the same seeds, so the study cannot say "
            "what is better."
        )
        return told(side, "unknown", "Nothing to compare with", [sentence], best)
    if outcomes == {"upper bound"}:
        take = next(row for row in rows if side.compared(row))
        gap = side.compared(take)
        assert gap is not None
        where = "below" if gap.mean < 0 else "above"
        sentence = (
            f"{first(side, take)}, {abs(gap.mean):.2f} points {where} its control, which is an upper bound and no "
            "competitor."
        )
        return told(side, "unknown", "Held against an upper bound", [sentence], take)
    if outcomes == {"one seed"}:
        found = side.compared(best)
        gap_text = "" if found is None else f", {found.mean:+.2f} points against {side.reference}"
        sentence = f"{first(side, best)}{gap_text}. Another seed gives other numbers: repeat the study with `seeds: 5`."
        return told(side, "unknown", "One seed decides nothing", [sentence], best)
    if side.outcomes("better"):
        return winner(side)
    return no_winner(side)


def told(
    side: Side, tone: str, headline: str, sentences: Iterable[str], row: RankedArm | None = None
) -> dict[str, Any]:
    """A verdict that is about ``row``: what it costs, and what else is not decided, follow the sentences."""
    closed = [*sentences, *(closing(side, row) if row else ())]
    return {"tone": tone, "headline": headline, "sentences": closed, "facts": list(facts(side, row)) if row else []}


def facts(side: Side, take: RankedArm) -> Iterator[list[str]]:
    """The few numbers of an arm that are read first: a value, and what it is of."""
    assert take.mean is not None
    yield [f"{take.mean:.2f} %", f"mean accuracy of {take.label}, {seeds(take.seeds)}"]
    if found := side.compared(take):
        yield [f"{found.mean:+.2f}", f"points over {side.reference}; {interval(found)}"]
    other = next((row for row in side.rows if row.label == side.baseline and row is not take), None)
    if other and other.step_ms and take.step_ms:
        yield [f"{take.step_ms / other.step_ms:.2f} x", f"the step time of {side.baseline}"]
    if take.size_mib is not None:
        yield [sized(take.size_mib), f"the file {take.file}"]
    if take.latency_p50_ms is not None:
        yield [f"{significant(take.latency_p50_ms)} ms", f"latency p50 of the file {take.file}"]


def first(side: Side, row: RankedArm) -> str:
    """The beginning of what is said of the best arm."""
    assert row.mean is not None
    does = "has the highest mean," if len(side.rows) > 1 else "reaches"
    return f"{row.label} {does} {reached(row.mean, row.std)} over {seeds(row.seeds)}"


def difference(side: Side, found: Compared, comparisons: int | None = None) -> str:
    """A difference with its interval and its corrected p."""
    p = corrected(found, side.comparisons if comparisons is None else comparisons)
    return f"{found.mean:+.2f} points ({'; '.join(part for part in (interval(found), p) if part)})"


def winner(side: Side) -> dict[str, Any]:
    """At least one arm is better than what the arms are compared with."""
    better, best = side.outcomes("better"), side.rows[0]
    take = better[0]
    found = side.compared(take)
    assert found is not None
    assert take.mean is not None
    assert best.mean is not None
    sentences = [
        f"{take.label} reaches {reached(take.mean, take.std)} over {seeds(take.seeds)}; against {side.reference} on "
        f"the same seeds that is {difference(side, found)}."
    ]
    tone, headline = "good", f"Take {take.label}" if len(side.rows) > 1 else f"{take.label} is better than its control"
    if side.baseline and take.over_control:
        sentences.append(against_control(side, take))
        if take.over_control.outcome == "worse":
            tone, headline = "bad", f"{take.label} is better than {side.baseline}, and worse than its control"
    if best is not take and best.label != side.baseline:
        sentences.append(
            f"{best.label} has a higher mean, {reached(best.mean, best.std)}, but its difference to {side.reference} "
            "is not decided."
        )
    if better[1:]:
        sentences.append(
            f"{names([row.label for row in better[1:]])} {'is' if len(better) == 2 else 'are'} better than "
            f"{side.reference} too. Which of these {len(better)} is best is not decided: the study compares each with "
            f"{side.reference} alone."
        )
    return told(side, tone, headline, sentences, take)


def no_winner(side: Side) -> dict[str, Any]:
    """No arm is better than what the arms are compared with."""
    best, worse = side.rows[0], side.outcomes("worse")
    compared = [row for row in side.rows if side.compared(row)]
    if len(worse) == len(compared) and side.baseline:
        take = next((row for row in side.rows if row.label == side.baseline), best)
        assert take.mean is not None
        sentences = [
            f"{take.label} reaches {reached(take.mean, take.std)} over {seeds(take.seeds)}, and every arm that was "
            "compared with it is worse."
        ]
        tone, headline = "good", f"Take {take.label}"
        if take.over_control:
            sentences.append(against_control(side, take))
            if take.over_control.outcome == "worse":
                tone, headline = "bad", f"{take.label} is the best arm, and worse than its control"
        return told(side, tone, headline, sentences, take)
    if len(worse) == len(compared):
        single = len(compared) == 1
        headline = f"{best.label} is worse than its control" if single else "Every arm is worse than its control"
        found = side.compared(best) or side.compared(compared[0])
        assert found is not None
        sentence = f"{first(side, best)}, {difference(side, found)} against the control."
        return told(side, "bad", headline, [sentence], best)
    headline = f"Not decided: {best.label} against its control"
    if len(side.rows) > 1:
        headline = f"Not decided: no arm is shown to be better than {side.baseline or 'its control'}"
    found = side.compared(best)
    sentence = (
        first(side, best)
        if found is None
        else f"{first(side, best)}: {difference(side, found)} against {side.reference}"
    )
    sentences = [f"{sentence}."]
    if found and found.low is not None and found.high is not None and (found.low > 0 or found.high < 0):
        sentences.append(
            f"Its own interval leaves 0 out, but not after the correction for {side.comparisons} comparisons."
        )
    if side.baseline and best.over_control:
        sentences.append(against_control(side, best))
    return told(side, "even", headline, sentences, best)


def against_control(side: Side, row: RankedArm) -> str:
    """What is known of an arm and its own control, where the arms are compared with a baseline."""
    found = row.over_control
    assert found is not None
    says = {
        "better": f"{row.label} is better than its control",
        "worse": f"{row.label} is worse than its control, the same student without a teacher",
        "upper bound": f"The control of {row.label} is an upper bound and no competitor",
    }.get(found.outcome, f"{row.label} against its control is not decided")
    return f"{says}: {difference(side, found, side.study.families.over_control)}."


def closing(side: Side, take: RankedArm) -> Iterator[str]:
    """What an arm costs, what is not decided or worse, and which runs are missing."""
    yield from cost(side, take)
    undecided = [row.label for row in side.outcomes("not decided") + side.outcomes("one seed") if row is not take]
    if undecided:
        yield f"Not decided against {side.reference}: {names(undecided)}."
    worse = [row.label for row in side.outcomes("worse") if row is not take]
    if worse and len(worse) < len(side.rows) - 1:
        yield f"Worse than {side.reference}: {names(worse)}."
    lost = [r.label for r in side.rows if r is not take and r.over_control and r.over_control.outcome == "worse"]
    if side.baseline and lost:
        yield f"Worse than {'its control' if len(lost) == 1 else 'their controls'}: {names(lost)}."
    yield from missing(side)


def cost(side: Side, take: RankedArm) -> Iterator[str]:
    """What an arm costs to train, held against the baseline, and what its file costs."""
    other = next((row for row in side.rows if row.label == side.baseline and row is not take), None)
    parts = []
    if take.step_ms is not None:
        more = times(take.step_ms, other.step_ms if other else None, side)
        parts.append(f"a training step takes {significant(take.step_ms)} ms{more}")
    if take.training_pmacs is not None:
        more = times(take.training_pmacs, other.training_pmacs if other else None, side)
        spent = f"{counted(take.training_pmacs * 1e15)}MAC"
        parts.append(f"all training, teacher and search included, takes {spent}{more}")
    if parts:
        yield f"Cost: {'; '.join(parts)}."
    if take.file is not None:
        facts = [sized(take.size_mib)] if take.size_mib is not None else []
        facts += [f"{significant(take.latency_p50_ms)} ms at p50"] if take.latency_p50_ms is not None else []
        facts += [f"{take.file_top1_percent:.2f} %"] if take.file_top1_percent is not None else []
        yield f"Its file ({take.file}): {', '.join(facts)}."


def times(value: float, other: float | None, side: Side) -> str:
    """How often the baseline's value goes into another."""
    return f", {value / other:.2f} times that of {side.baseline}" if other else ""


def failures(side: Side) -> Iterator[str]:
    """What is said where no run has a result."""
    runs = [run for row in side.study.in_group(side.number) for run in side.study.arm(row.label).runs]
    error = next((run.error for run in runs if run.error), None)
    first_line = f" The first error: {error.splitlines()[0]}" if error else ""
    yield f"None of {len(runs)} runs has a result.{first_line}"


def missing(side: Side) -> Iterator[str]:
    """Which runs have no result."""
    runs = [(row.label, run) for row in side.study.in_group(side.number) for run in side.study.arm(row.label).runs]
    without = [(label, run) for label, run in runs if run.status != "finished" or run.top1_percent is None]
    if without:
        listed = names([f"{label} seed {run.seed}" for label, run in without])
        yield (
            f"{len(without)} of {len(runs)} runs {'has' if len(without) == 1 else 'have'} no result ({listed}); each "
            "difference is over the seeds that both sides have."
        )
