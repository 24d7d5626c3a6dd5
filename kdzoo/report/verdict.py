"""Whether distillation was worth it, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdzoo.contract.classification import paired_difference
from kdzoo.report.tables import LATENCY, entries

Tone = Literal["good", "even", "bad", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """Whether distillation was worth it: a headline, the sentence behind it, and a few ratios (value, what of)."""

    tone: Tone
    headline: str
    sentence: str
    facts: tuple[tuple[str, str], ...]


#: What the interval of a paired difference says.
HEADLINES: Mapping[Tone, str] = {
    "good": "Distillation was worth it",
    "even": "No difference that this test set can show",
    "bad": "Distillation made it worse",
}


def verdict(results: Mapping[str, Any]) -> Verdict:
    """Judge student against control on the same test samples; ratios are against the best teacher."""
    student, control = results["student"], results.get("control")
    samples = (results.get("data") or {}).get("test_samples")
    paired = results.get("paired")
    reached = f"The distilled student reaches {student['top1_percent']:.2f} %"
    if paired:
        samples = sum(paired.values())
    if samples:
        reached += f" on {samples:,} test samples"
    compared = tuple(ratios(results))
    guess = (results.get("data") or {}).get("most_common_class_percent")
    if guess is not None and samples and student["top1_percent"] <= guess + chance(guess, samples):
        sentence = f"{reached}; naming the most common class each time would reach {guess:.2f} %."
        return Verdict("bad", "The student does not do better than guessing", sentence, compared)
    if not control:
        sentence = f"{reached}. The run has no control, so it cannot say whether distillation was worth it."
        return Verdict("unknown", "No control, no verdict", sentence, compared)
    gain = student["top1_percent"] - control["top1_percent"]
    if results.get("data_handed") == "none":
        fact = f"{gain:+.2f}", "points against the same network trained on the data"
        sentence = (
            f"{reached} and was handed no training sample; the control, the same network trained on them, reaches "
            f"{control['top1_percent']:.2f} %."
        )
        return Verdict("unknown", "Trained without data", sentence, (fact, *compared))
    if results.get("upper_bound"):
        other = f"the same network trained {results['upper_bound']}"
        fact = f"{gain:+.2f}", f"points against {other}"
        sentence = f"{reached}; the control, {other}, is an upper bound and reaches {control['top1_percent']:.2f} %."
        return Verdict("unknown", "Held against an upper bound", sentence, (fact, *compared))
    network = "the same network" if results.get("same_network", True) else "the recipe's student, another network,"
    fact = f"{gain:+.2f}", f"points against {network} trained alone"
    labelled = (results.get("data") or {}).get("labelled")
    labels = "" if labelled is None else f" on {labelled:,} labels"
    more = "more" if gain >= 0 else "less"
    than = f"{abs(gain):.2f} points {more} than {network} trained alone under the same budget{labels}"
    if not paired:
        sentence = f"{reached}, {than}. The run did not keep on which samples they differ."
        return Verdict("unknown", "A difference without an interval", sentence, (fact, *compared))
    _, low, high = paired_difference(paired)
    tone: Tone = "good" if low > 0 else "bad" if high < 0 else "even"
    sentence = f"{reached}, {than}; 95 % interval of the difference {low:+.2f} to {high:+.2f} points."
    return Verdict(tone, HEADLINES[tone], sentence, (fact, *compared))


def chance(percent: float, samples: int) -> float:
    """Points above ``percent`` that the choice of test samples alone explains: two standard errors."""
    return 2 * (percent * (100 - percent) / samples) ** 0.5


def ratios(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Compare the student, and the smallest file, with the best teacher."""
    rows = entries(results)
    teachers = [entry for role, entry in rows if role == "teacher" and not entry.get("file")]
    if not teachers:
        return []
    student, teacher = results["student"], max(teachers, key=lambda entry: entry["top1_percent"])
    facts = []
    if teacher["top1_percent"]:
        kept = 100 * student["top1_percent"] / teacher["top1_percent"]
        facts.append((f"{kept:.1f} %", "of the teacher's accuracy"))
    facts += ratio(teacher.get("params_m"), student.get("params_m"), "fewer parameters", "more parameters")
    files = [entry for role, entry in rows if role in ("student", "export") and entry.get("size_mib")]
    if files:
        smallest = min(files, key=lambda entry: entry["size_mib"])
        facts += ratio(
            teacher.get("size_mib"),
            smallest["size_mib"],
            f"smaller file ({smallest['label']})",
            f"larger file ({smallest['label']})",
        )
    theirs, ours = (LATENCY.value(entry) for entry in (teacher, student))
    facts += ratio(theirs, ours, "faster at batch 1", "slower at batch 1")
    return facts


def ratio(theirs: float | None, ours: float | None, less: str, more: str) -> list[tuple[str, str]]:
    if not theirs or not ours:
        return []
    times, what = (theirs / ours, less) if theirs >= ours else (ours / theirs, more)
    return [(f"{times:.1f}\N{MULTIPLICATION SIGN}", what)]


CAVEAT = (
    "The interval covers the choice of test samples. Another training seed moves the result too; only runs with "
    "several seeds show how much."
)
