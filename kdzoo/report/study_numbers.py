"""How the numbers of a study are worded and rounded, alike in the verdict, on the page and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from kdzoo.report.study_results import Compared

#: Names that a sentence lists before it counts the others.
MOST_NAMES = 6


def reached(mean: float, std: float | None) -> str:
    """A mean accuracy with its standard deviation: 91.20 ± 0.21 %."""
    return f"{mean:.2f} %" if std is None else f"{mean:.2f} ± {std:.2f} %"


def interval(found: Compared) -> str:
    """The interval of a difference, or why there is none."""
    if found.low is None or found.high is None:
        return "no interval from one seed" if found.seeds == 1 else "no interval, as every seed shows the same"
    return f"{found.level * 100:.0f} % interval {found.low:+.2f} to {found.high:+.2f}"


def p_text(p: float) -> str:
    """A p as a statement: p = 0.012, p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def corrected(found: Compared, comparisons: int) -> str:
    """The p of a difference after the correction for so many comparisons; empty where it has none."""
    if found.p_holm is None:
        return ""
    return p_text(found.p_holm) + (f" after Holm for {comparisons} comparisons" if comparisons > 1 else "")


def seeds(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}"


def names(labels: Sequence[str]) -> str:
    """Names as a sentence lists them: a, b and c; of many the first, and how many more."""
    shown = list(labels[:MOST_NAMES])
    if len(labels) > MOST_NAMES:
        shown.append(f"{len(labels) - MOST_NAMES} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
