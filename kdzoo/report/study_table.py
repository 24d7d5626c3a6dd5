"""A study's ranking and verdict as text for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdzoo.errors import plain
from kdzoo.report.rounding import NOTHING, counted, significant, sized
from kdzoo.report.study_numbers import p_text
from kdzoo.report.study_results import Compared, RankedArm, Study, parse_study
from kdzoo.report.tables import text_table, wrapped

#: Longest name that is shown whole.
LONGEST_NAME = 64
#: Columns after rank and arm, and the order in which they are left out where there is no room.
SPARE = ("compute", "step\nms", "size", "p50\nms", "p Holm", "seeds", "over the control\n95 %")


def study_table(study: Mapping[str, Any], width: int | None = None) -> str:
    """Return a study's ranking as aligned text of at most ``width`` characters a line, the verdict below it.

    Where the table is too wide it has fewer columns; no word is broken. Raise ReportError where ``study`` is not as
    study.json holds it.
    """
    return "\n".join(text for text, _ in study_parts(study, width))


def study_parts(study: Mapping[str, Any], width: int | None = None) -> list[tuple[str, str]]:
    """Return what ``study_table`` consists of, each text with its tone: that of a verdict, ``bad``, or none."""
    parsed = parse_study(study)
    tables = [group_table(parsed, number, width) for number in range(len(parsed.groups))]
    parts = [(f"{table}\n", "") for table in tables]
    below = [*notes(parsed, tables), *said(parsed)]
    return [*parts, *((filled(text, width), tone) for text, tone in below)]


def group_table(study: Study, number: int, width: int | None) -> str:
    """The arms of one group, the best mean first."""
    rows = study.in_group(number)
    baseline = study.groups[number].baseline
    columns: dict[str, list[str]] = {
        "": [NOTHING if row.rank is None else str(row.rank) for row in rows],
        "arm": [arm_name(row.label, width) for row in rows],
        "seeds": [seed_text(study, row) for row in rows],
        "accuracy\n% ± std": [accuracy(row) for row in rows],
    }
    if any(row.over_control for row in rows):
        columns["over the control\n95 %"] = [gain(row.over_control) for row in rows]
    if baseline is not None:
        name = plain(baseline, LONGEST_NAME) if len(baseline) <= 12 else "baseline"
        columns[f"over {name}\n95 %"] = ["baseline" if r.label == baseline else gain(r.over_baseline) for r in rows]
    judged = [row.over_baseline if baseline else row.over_control for row in rows]
    columns["p Holm"] = [
        NOTHING if found is None or found.p_holm is None else p_short(found.p_holm) for found in judged
    ]
    columns["step\nms"] = [number_text(row.step_ms) for row in rows]
    columns["compute"] = [
        NOTHING if row.training_pmacs is None else f"{counted(row.training_pmacs * 1e15)}MAC" for row in rows
    ]
    columns["size"] = [NOTHING if row.size_mib is None else sized(row.size_mib) for row in rows]
    columns["p50\nms"] = [number_text(row.latency_p50_ms) for row in rows]
    header = list(columns)
    kept = [i for i in range(len(header)) if i < 2 or set(columns[header[i]]) - {NOTHING, "baseline"}]
    table = [[columns[header[i]][k] for i in kept] for k in range(len(rows))]
    spare = [place for head in SPARE for place, i in enumerate(kept) if header[i] == head]
    text = text_table([header[i] for i in kept], table, left=2, width=width, spare=spare)
    title = study.groups[number].title
    return f"{filled(title, width)}:\n{text}" if title else text


def arm_name(label: str, width: int | None) -> str:
    """A name, on several lines where the terminal has no room for the numbers after it."""
    name = plain(label, LONGEST_NAME)
    return name if width is None or len(name) <= width // 4 else wrapped(name, width // 4)


def seed_text(study: Study, row: RankedArm) -> str:
    """How many seeds have a result, and of how many where some have none."""
    asked = len(study.arm(row.label).runs)
    return str(row.seeds) if row.seeds == asked else f"{row.seeds} of {asked}"


def accuracy(row: RankedArm) -> str:
    if row.mean is None:
        return NOTHING
    return f"{row.mean:.2f}" if row.std is None else f"{row.mean:.2f} ± {row.std:.2f}"


def gain(found: Compared | None) -> str:
    """A difference and half the width of its interval; what is decided after the correction has a star."""
    if found is None:
        return NOTHING
    half = "" if found.high is None else f" ± {found.high - found.mean:.2f}"
    return f"{found.mean:+.2f}{half}{' *' if found.outcome in ('better', 'worse') else '  '}"


def p_short(p: float) -> str:
    return p_text(p).removeprefix("p ").removeprefix("= ")


def number_text(value: float | None) -> str:
    return NOTHING if value is None else significant(value)


def notes(study: Study, tables: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What the tables need explained."""
    lines = []
    if any(" *" in table for table in tables):
        lines.append("* decided after Holm's correction; the others are not decided.")
    file = next((row.file for row in study.ranking if row.file), None)
    if file and not any("size" in table.partition("Not shown")[2] for table in tables):
        lines.append(f"Size and latency: the exported file {file}.")
    if lines:
        yield f"{' '.join(lines)}\n", ""


def said(study: Study) -> Iterator[tuple[str, str]]:
    """The verdict with its tones: headlines, and the sentences after each; of several groups every one has both."""
    verdict = study.verdict
    if len(verdict.groups) > 1:
        yield f"{verdict.headline}.", verdict.tone
    for group in verdict.groups:
        yield f"{group.title}: {group.headline}." if group.title else f"{group.headline}.", group.tone
        yield " ".join(group.sentences) + ("\n" if group is not verdict.groups[-1] else ""), ""


def filled(text: str, width: int | None) -> str:
    """A paragraph with lines of ``width`` characters, broken between words but not within 95 % or p = 0.5."""
    end = "\n" if text.endswith("\n") else ""
    joined = re.sub(r"(?<=\d) (?=%)|(?<=\bp) (?=[=<] )|(?<=[=<]) (?=\d)", "\N{NO-BREAK SPACE}", text)
    wide = width or len(text) or 1
    lines = textwrap.fill(joined, wide, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ") + end
