"""Commands that keep house: list runs, remove some, collect what nobody needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli.arguments import Json, Out, possible_path
from kdzoo.terminal import say, warn, width

commands = typer.Typer()

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")]

#: What the kinds of stored results are called, one of them and several.
KINDS = {
    "stage": ("stage", "stages"),
    "teacher_outputs": ("file of teacher answers", "files of teacher answers"),
    "test_logits": ("file of test answers", "files of test answers"),
    "latency": ("latency", "latencies"),
    "unfinished": ("unfinished stage", "unfinished stages"),
}


@commands.command()
def runs(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Names of recipes, or patterns such as 'digits-*'.")
    ] = None,
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs: state, stage and epoch, gain over the control, age, size. Damaged ones are listed too."""
    from kdzoo.report.run_table import run_rows, run_table

    rows = run_rows(out, names or ())
    say(json.dumps(rows, indent=2) if as_json else run_table(rows, out, width()))


@commands.command()
def rm(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", callback=possible_path, help="Run folders.")],
    dry_run: DryRun = False,
) -> None:
    """Remove runs, never one in use. What they stored stays in the store until `kdzoo gc`."""
    from kdzoo.report.rounding import sized
    from kdzoo.storage.removal import remove_runs

    gone = remove_runs(folders, warn, dry_run)
    for run in gone:
        say(f"{'would remove' if dry_run else 'removed'} {run.folder}, {sized(run.size_bytes / 2**20)}")
    if len(gone) > 1:
        say(f"{len(gone)} runs, {sized(sum(run.size_bytes for run in gone) / 2**20)}")


@commands.command()
def gc(
    out: Out = Path("runs"),
    dry_run: DryRun = False,
    older: Annotated[
        float, typer.Option("--older", metavar="DAYS", min=0, help="Leave what was used in the last so many days.")
    ] = 1.0,
) -> None:
    """Remove stored results and teacher answers that no run or study needs, and what dead processes left."""
    from kdzoo.storage.collection import Amount, collect

    found = collect(out, older * 86400, dry_run)

    def tell(amount: Amount, one: str, several: str, what: str) -> None:
        from kdzoo.report.rounding import sized

        say(f"{what} {amount.count:,} {one if amount.count == 1 else several}, {sized(amount.size_bytes / 2**20)}")

    removed = "would remove" if dry_run else "removed"
    for kind, amount in sorted(found.removed.items()):
        tell(amount, *KINDS.get(kind, (f"{kind} result", f"{kind} results")), removed)
    if found.leftovers.count:
        tell(found.leftovers, "leftover of a dead process", "leftovers of dead processes", removed)
    if not found.removed and not found.leftovers.count:
        say(f"nothing to remove in {out}")
    tell(found.needed, "result that runs need", "results that runs need", "kept")
    if found.recent.count:
        days = "day" if older == 1 else f"{older:g} days"
        lately = f"that nobody needs, used in the last {days} (--older 0 removes them too)"
        tell(found.recent, f"result {lately}", f"results {lately}", "kept")
