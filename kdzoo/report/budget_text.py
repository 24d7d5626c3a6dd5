"""How a student was chosen under a budget, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdzoo.report.columns import fitted_text
from kdzoo.report.rounding import NOTHING, counted, significant, sized
from kdzoo.report.tables import text_table

#: Sizes below this are said in bytes.
SMALL_MIB = 1.0


def budget_text(study: Mapping[str, Any], width: int | None = None) -> str:
    """Return the candidates of a study with a budget as a table, and below it the choice and the delivered files.

    ``study`` is the content of study.json; without a budget the text is empty.
    """
    if "budget" not in study:
        return ""
    header = ("candidate", "parameters", "MACs", "size", "ms\np95", "validation\n%", "epochs", "outcome")
    rows = [_row(row) for row in study["candidates"]]
    table = text_table(header, rows, width=width, spare=(2, 1, 6))
    return "\n".join([table, *(fitted_text(line, width) for line in _sentences(study))])


def missed_budget(study: Mapping[str, Any]) -> list[str]:
    """Return the runs whose delivered file is outside of the budget or was rejected; none of a study without one."""
    again = study.get("budget", {}).get("again", ())
    return [f"{each['label']} seed {each['seed']}" for each in again if each["verdict"] in ("outside", "rejected")]


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    last = row["rounds"][-1] if row["rounds"] else None
    mark = "" if row["quiet"] in (True, None) else "~"
    return (
        row["label"],
        NOTHING if row["params_m"] is None else counted(row["params_m"] * 1e6),
        NOTHING if row["macs_g"] is None else counted(row["macs_g"] * 1e9),
        _size(row["size_mib"]),
        NOTHING if row["latency_p95_ms"] is None else f"{mark}{significant(row['latency_p95_ms'])}",
        NOTHING if last is None else f"{last['top1_percent']:.2f}",
        NOTHING if last is None else str(last["epochs"]),
        row["outcome"],
    )


def _size(mib: float | None) -> str:
    """A size; of a small file to the byte, as its limit is."""
    if mib is None:
        return NOTHING
    return f"{mib * 2**20:,.0f} B" if mib < SMALL_MIB else sized(mib)


def _sentences(study: Mapping[str, Any]) -> Iterator[str]:
    budget, rows = study["budget"], study["candidates"]
    fitting = sum(row["outcome"] in ("chosen", "halved") for row in rows)
    rounds = ", ".join(f"{each['candidates']} for {each['epochs']} epochs" for each in budget["rounds"])
    yield f"{fitting} of {len(rows)} candidates could be chosen; {budget['winner']} was." + (
        f" Rounds: {rounds}, scored on the validation split." if rounds else ""
    )
    front = study["candidate_front"]["labels"]
    if len(front) > 1:
        yield f"{len(front)} of them are on the front of accuracy, size and time: {', '.join(front)}."
    for row in rows:
        if row["outcome"] in ("failed", "over the budget"):
            yield f"{row['label']}: {row['why']}."
    for again in budget["again"]:
        who = f"{again['label']} seed {again['seed']}"
        if again["verdict"] == "rejected":
            yield f"{who}: its file was rejected: {'; '.join(again['reasons'])}."
            continue
        yield (
            f"{who}: {again['file']} has {again['size_bytes']:,} bytes and {again['top1_percent']:.2f} %; "
            f"{again['inside']} of {again['timings']} timings are within the budget, the largest p95 is "
            f"{significant(again['latency_p95_ms'])} ms: {again['verdict']}."
        )
    if not budget["quiet"] or not all(again.get("quiet", True) for again in budget["again"]):
        yield "~ The machine was busy while files were timed; on a quiet one they may be faster."
