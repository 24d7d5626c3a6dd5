"""Commands that read a finished run: report, verification, comparison, another export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli.arguments import Json, RunPath, possible_path
from kdzoo.cli.opening import resolve
from kdzoo.terminal import say, width

commands = typer.Typer()


@commands.command()
def report(folder: RunPath) -> None:
    """Write report.html and the model card of a run folder again."""
    from kdzoo.report.writing import rewrite_report

    rewrite_report(folder)
    say(folder / "report.html")


@commands.command("verify-run")
def verify_run(folder: RunPath) -> None:
    """Compare every file of a finished run with the sha256 that was recorded when it ended."""
    from kdzoo.storage.run_folder import RunFolder

    say(f"{folder}: {RunFolder.view(folder).verify()} files verify")


@commands.command()
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", callback=possible_path, help="Run folders, or folders of several runs."),
    ],
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", callback=possible_path, help="Write a page to this file.")
    ] = None,
) -> None:
    """Show runs side by side, and recipes with mean and spread over their seeds."""
    from kdzoo.errors import ReportError
    from kdzoo.report.compared_runs import compare_runs, compare_table

    found = compare_runs(folders)
    if len(found.runs) < 2:
        raise ReportError(f"compare: needs at least two runs, got {len(found.runs)}")
    if html is not None:
        from kdzoo.report.compare_page import compare_page
        from kdzoo.storage.atomic import write_text

        write_text(html, compare_page(found))
    if as_json:
        say(json.dumps({"runs": found.runs, "recipes": found.recipes}, indent=2))
        return
    say(compare_table(found, width()))
    if html is not None:
        say(f"page: {html}")


@commands.command()
def export(
    folder: RunPath,
    format: Annotated[str, typer.Option("--format", help="An export format; `kdzoo list exporters`.")] = "onnx",
    quantize: Annotated[str | None, typer.Option("--quantize", help="Quantisation of the format, e.g. int8.")] = None,
) -> None:
    """Export the student of a finished run again, verified on the whole test split."""
    overrides = [f"export=[{{format: {format}" + (f", quantize: {quantize}" if quantize else "") + "}]", "trackers=[]"]
    from kdzoo.storage.run_folder import RunFolder

    source = RunFolder.view(folder)
    source.verify()
    _, plan, zoo = resolve(folder / "recipe.yaml", overrides)
    from kdzoo.run.runner import Runner
    from kdzoo.storage.store import Store

    runner = Runner(plan, zoo, source, Store(folder.parent.parent / ".store", source.uses))
    entries = runner.export_again()
    for entry in entries:
        say(json.dumps(entry, indent=2))
    from kdzoo.run.exporting import check_rejected

    check_rejected(entries)
