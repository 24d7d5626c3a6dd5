"""What one run shows about its student, in words, and no more than that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kdzoo.contract.classification import paired_difference
from kdzoo.report.measurements import p50
from kdzoo.report.results import Network, Results

Tone = Literal["good", "even", "bad", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """A headline, the sentence behind it, a few ratios (value, what of), and what the run cannot say."""

    tone: Tone
    headline: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    caveat: str = ""


#: What the interval of a paired difference says of the run that it was measured in.
HEADLINES: Mapping[Tone, str] = {
    "good": "In this run the distilled student is better",
    "even": "In this run no difference can be shown",
    "bad": "In this run the distilled student is worse",
}

CAVEAT = (
    "The interval covers the choice of test samples alone. Another seed gives other numbers, and one run cannot say "
    "how far apart they are: whether this algorithm helps here, only several seeds can show."
)


#: Points below what is stated of a teacher, in addition to chance, at which something must be wrong with it here.
FAR = 3.0


def verdict(results: Results) -> Verdict:
    """Judge student against control on the same test samples; ratios are against the best teacher.

    A teacher that falls short of what its file states comes first: nothing that it taught is worth much then.
    """
    judged, samples = judged_by_control(results), samples_of(results)
    stated = {stage.name: stage for stage in results.stages if stage.stated_top1_percent is not None}
    for teacher in results.taught_by:
        stage = stated.get(teacher.label.replace(" ", "_"))
        if stage is None or stage.stated_top1_percent is None or not samples:
            continue
        if short := shortfall(teacher.quality, stage.stated_top1_percent, stage.stated_by, samples):
            sentence = f"The {teacher.label} reaches {teacher.quality:.2f} %, {short}. {CAUSES} {judged.sentence}"
            headline = "The teacher is far below what its file states"
            return replace(judged, tone="bad", headline=headline, sentence=sentence)
    return judged


#: What makes a good teacher look bad.
CAUSES = "Look at its preprocessing, at the order of the classes, and at which weights of the file are used."


def shortfall(percent: float, stated: float, by: str, samples: int) -> str:
    """Say that an accuracy on so many samples is far below a stated one; empty where it is not."""
    return f"far below the {stated:.2f} % that {by} states" if percent < stated - FAR - chance(stated, samples) else ""


def judged_by_control(results: Results) -> Verdict:
    """Judge student against control, where there is one that it is meant to beat."""
    student, control = results.student, results.control
    ratios = tuple(compared_with_teacher(results))
    if student.top1_percent is None:
        return agreement(results, ratios)
    reached = reaches(results)
    guess, samples = results.data.most_common_class_percent, samples_of(results)
    if guess is not None and samples and student.quality <= guess + chance(guess, samples):
        sentence = f"{reached}; naming the most common class each time would reach {guess:.2f} %."
        return Verdict("bad", "The student does not do better than guessing", sentence, ratios)
    if control is None:
        why = "The run has no control, so it cannot say whether distillation helped."
        if results.data.labelled == 0:
            why = "No training sample has a label, so there is no control: labels alone would teach nothing."
        sentence = f"{reached}. {why}"
        return Verdict("unknown", "No control, no verdict", sentence, ratios)
    gain = f"{student.quality - control.quality:+.2f}"
    if results.data_handed == "none":
        facts = ((gain, "points against the same network trained on the data"), *ratios)
        sentence = (
            f"{reached} and was handed no training sample; the control, the same network trained on them, reaches "
            f"{control.quality:.2f} %."
        )
        return Verdict("unknown", "Trained without data", sentence, facts)
    if results.upper_bound:
        other = f"the same network trained {results.upper_bound}"
        facts = ((gain, f"points against {other}"), *ratios)
        sentence = f"{reached}; the control, {other}, is an upper bound and reaches {control.quality:.2f} %."
        return Verdict("unknown", "Held against an upper bound", sentence, facts)
    return against_equal(results, control, reached, ratios)


def agreement(results: Results, ratios: tuple[tuple[str, str], ...]) -> Verdict:
    """Say what a run can tell where no test sample has a label."""
    agreed = f"{results.student.quality:.2f} %"
    samples = samples_of(results)
    on = f" of {samples:,} test samples" if samples else " of the test samples"
    sentence = (
        f"The distilled student chooses the teacher's class on {agreed}{on}. None of them has a label, so the run "
        "cannot say how often either of the two is right."
    )
    facts = ((agreed, "agreement with the teacher"), *ratios)
    return Verdict("unknown", "Agreement with the teacher, not accuracy", sentence, facts)


def against_equal(results: Results, control: Network, reached: str, ratios: tuple[tuple[str, str], ...]) -> Verdict:
    """Judge the student against a control that it is meant to beat: the same budget, the same data, no teacher."""
    gain = results.student.quality - control.quality
    network = "the same network" if results.same_network else "the recipe's student, another network,"
    facts = ((f"{gain:+.2f}", f"points against {network} trained alone"), *ratios)
    labels = "" if results.data.labelled is None else f" on {results.data.labelled:,} labels"
    others = ""
    if results.data.labelled and results.data.train and results.data_handed == "any":
        number = results.data.train - results.data.labelled
        others = f" The student also learned from {number:,} samples without a label."
    more = "more" if gain >= 0 else "less"
    than = f"{abs(gain):.2f} points {more} than {network} trained alone under the same budget{labels}"
    teacher, samples = results.best_teacher, samples_of(results)
    weak, caveat = "", CAVEAT if results.paired else ""
    tone: Tone
    if teacher is not None and teacher.quality <= control.quality:
        weak = f" The teacher itself reaches {teacher.quality:.2f} %, the control {control.quality:.2f} %."
    if results.paired is None:
        tone, headline = "unknown", "A difference without an interval"
        sentence = f"{reached}, {than}. The run did not keep on which samples they differ."
    else:
        _, low, high = paired_difference(results.paired.model_dump())
        tone = "good" if low > 0 else "bad" if high < 0 else "even"
        headline = HEADLINES[tone]
        sentence = f"{reached}, {than}; 95 % interval of the difference {low:+.2f} to {high:+.2f} points."
    if weak and teacher is not None:
        far = bool(samples) and worse(teacher.quality, control.quality, samples or 1)
        tone = "bad" if far or tone == "bad" else "even"
        headline = f"The teacher is {'worse' if far else 'no better'} than the control"
        sentence = f"{weak.strip()} {sentence}"
    return Verdict(tone, headline, sentence + others, facts, caveat)


def reaches(results: Results) -> str:
    """The beginning of every sentence."""
    samples = samples_of(results)
    on = f" on {samples:,} test samples" if samples else ""
    return f"The distilled student reaches {results.student.quality:.2f} %{on}"


def samples_of(results: Results) -> int | None:
    """How many test samples there are, where the run says so."""
    return sum(results.paired.model_dump().values()) if results.paired else results.data.test_samples


def chance(percent: float, samples: int) -> float:
    """Points above ``percent`` that the choice of test samples alone explains: two standard errors."""
    return 2 * (percent * (100 - percent) / samples) ** 0.5


def worse(percent: float, than: float, samples: int) -> bool:
    """Whether one accuracy is below another by more than the choice of test samples explains."""
    return percent < than - (chance(percent, samples) ** 2 + chance(than, samples) ** 2) ** 0.5


def compared_with_teacher(results: Results) -> Iterator[tuple[str, str]]:
    """Compare the student, and its smallest file, with the best teacher."""
    student, teacher = results.student, results.best_teacher
    if teacher is None:
        return
    above = student.quality - teacher.quality
    if student.top1_percent is None:
        pass  # the agreement of a teacher with itself says nothing
    elif above > 0 or not teacher.quality:
        yield f"{above:+.2f}", "points against the teacher"
    else:
        yield f"{100 * student.quality / teacher.quality:.1f} %", "of the teacher's accuracy"
    yield from ratio(teacher.params_m, student.params_m, "fewer parameters", "more parameters")
    files = [
        (size, entry.label)
        for entry in results.entries()
        if entry.network == "student" and not entry.rejected and (size := entry.size_mib)
    ]
    if files:
        size, label = min(files, key=lambda pair: pair[0])
        yield from ratio(teacher.size_mib, size, f"smaller file ({label})", f"larger file ({label})")
    yield from ratio(p50(teacher), p50(student), "faster at batch 1", "slower at batch 1")


def ratio(theirs: float | None, ours: float | None, less: str, more: str) -> Iterator[tuple[str, str]]:
    """How many times less or more ours is; nothing where one of them is not known."""
    if theirs and ours:
        times, what = (theirs / ours, less) if theirs >= ours else (ours / theirs, more)
        yield f"{times:.1f}\N{MULTIPLICATION SIGN}", what
