"""Commands that read a finished run: report, verification, comparison, another export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli.arguments import RunPath, possible_path
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
        list[Path], typer.Argument(metavar="RUN...", callback=possible_path, help="Two or more run folders.")
    ],
) -> None:
    """Show two or more runs side by side."""
    from kdzoo.errors import ReportError
    from kdzoo.report.compare import compare_table

    if len(folders) < 2:
        raise ReportError(f"compare: needs at least two run folders, got {len(folders)}")
    say(compare_table(folders, width()))


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
