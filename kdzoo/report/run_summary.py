"""What there is to say about one run, as plain data that the page and the card print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdzoo.report.measurements import Grid, comparison, grid, item_text, variants
from kdzoo.report.reading import Run, section
from kdzoo.report.results import Results, StageFacts, Table, Usage
from kdzoo.report.rounding import NOTHING, counted, duration
from kdzoo.report.verdict import Verdict, verdict
from kdzoo.version import __version__

#: More values of a list in provenance.json than this are counted, not listed.
MOST_VALUES = 20
#: Where provenance.json has the switches of torch.
SETTINGS = "environment.settings."

#: What it means for a student that only the likeliest classes of its teacher's answers were kept.
SPREAD = (
    "The student saw the likeliest classes of each of the teacher's answers. What was left of the probability was "
    "spread evenly over all other classes: exact in its sum at temperature 1; above it the other classes weigh more "
    "than the teacher gave them, below it less."
)
#: The same of teachers that took no part in the run.
ABSENT = (
    "The teacher took no part in this run: its answers come from {folders}, and its accuracy was measured when it "
    "answered."
)


@dataclass(frozen=True)
class RunSummary:
    """One run in words and tables; what a run lacks is empty."""

    recipe: str
    student: str
    heading: str
    teachers: tuple[str, ...]
    algorithm: str
    data: str
    run_id: str
    description: str
    verdict: Verdict
    warnings: tuple[str, ...]
    comparison: Grid
    variants: Grid | None
    levels: tuple[tuple[str, tuple[str, ...]], ...]  # stage and its paired levels
    stages: Grid | None
    answers: str  # what the teacher's stored answers mean for the student; empty where they are whole
    time: str
    provenance: Grid
    settings: Grid | None  # the part of the provenance that few readers need: every switch of torch
    recipe_text: str
    usage: tuple[Usage, ...]
    version: str = __version__


def summarize(run: Run) -> RunSummary:
    """Say what a run folder holds."""
    results = run.results
    origin = list(leaves(run.provenance))
    settings = [(name.removeprefix(SETTINGS), value) for name, value in origin if name.startswith(SETTINGS)]
    files = [entry.usage for entry in results.entries() if entry.network == "student" and entry.format and entry.usage]
    return RunSummary(
        recipe=run.name,
        student=results.student.model,
        heading=heading(results),
        teachers=tuple(teacher.model for teacher in results.taught_by),
        algorithm=run.algorithm,
        data=results.data.name,
        run_id=run.run_id,
        description=str(run.recipe.get("description") or ""),
        verdict=verdict(results),
        warnings=tuple(results.warnings),
        comparison=comparison(results),
        variants=variants(results.variants) if results.variants else None,
        levels=tuple((stage, tuple(lines)) for stage, lines in results.pairing.items()),
        stages=stages(results.stages, best_kept=section(run.recipe, "train").get("select") == "best"),
        answers=answers(results.stages),
        time=duration(results.seconds) if results.seconds else "",
        provenance=grid(["what", "value"], [(name, value) for name, value in origin if not name.startswith(SETTINGS)]),
        settings=grid(["setting", "value"], settings) if settings else None,
        recipe_text=run.recipe_text,
        usage=tuple(usage for usage in (results.usage, *files[:1]) if usage),
    )


def heading(results: Results) -> str:
    """The student and its teachers; networks of one name and different size are told apart by their parameters."""
    networks = [results.student, *results.taught_by]
    sizes = {network.params_m for network in networks if network.model == results.student.model}
    names = [
        f"{network.model}, {counted(network.params_m * 1e6)} parameters"
        if len(sizes) > 1 and network.params_m and network.model == results.student.model
        else network.model
        for network in networks
    ]
    return f"{names[0]} from {' + '.join(names[1:])}" if len(names) > 1 else names[0]


def item_grid(item: Table) -> Grid:
    """A table that the algorithm shows."""
    return grid(item.columns, [[item_text(cell) for cell in row] for row in item.rows])


def stages(found: list[StageFacts], best_kept: bool) -> Grid | None:
    """The run's stages, with those facts that any of them has; the best epoch where its weights were kept."""
    facts: dict[str, list[str | None]] = {
        "stage": [stage.name for stage in found],
        "key": [stage.key for stage in found],
        "best epoch": [best_epoch(stage) if best_kept else None for stage in found],
        "precision": [stage.precision for stage in found],
        "teacher's answers": ["; ".join(dict.fromkeys(map(str, stage.answers))) or None for stage in found],
        "time": [None if stage.seconds is None else duration(stage.seconds) for stage in found],
    }
    known = {head: values for head, values in facts.items() if any(value is not None for value in values)}
    rows = [[NOTHING if value is None else value for value in row] for row in zip(*known.values(), strict=True)]
    return grid(list(known), rows) if rows else None


def answers(found: list[StageFacts]) -> str:
    """What it means that the teachers' answers were stored; empty where all of them were asked, or kept whole."""
    imported = [stage.imported for stage in found if stage.imported]
    folders = [text.removeprefix("answers:") for text in imported if text.startswith("answers:")]
    spread = any(kept.top_k for stage in found for kept in stage.answers)
    absent = [ABSENT.format(folders=" and ".join(folders))] if folders else []
    return " ".join([*absent, *([SPREAD] if spread else [])])


def best_epoch(stage: StageFacts) -> str | None:
    """The best epoch, counted from 1; None without a validation split."""
    return None if stage.best_epoch is None or stage.best_epoch < 0 else str(stage.best_epoch + 1)


def leaves(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested content with their dotted names; long lists are cut."""
    for key, value in content.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict) and value.keys() == {"distribution", "version"}:
            yield name, f"{value['distribution']} {value['version']}"
        elif isinstance(value, dict) and value:
            yield from leaves(value, name)
        elif isinstance(value, list):
            more = f" ... {len(value)} in all" if len(value) > MOST_VALUES else ""
            yield name, ", ".join(map(str, value[:MOST_VALUES])) + more
        else:
            yield name, NOTHING if value is None else str(value)
