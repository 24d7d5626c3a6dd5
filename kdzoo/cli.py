"""The command line: the only place that prints, and that catches what a user can mend.

Exit codes: 0 done; 1 not reproduced, undecided or not conforming; 2 recipe, names, needs; 3 damaged files; 4 output;
5 locked; 6 diverged; 7 memory; 8 data; 9 export rejected; 10 processes disagree; 130 and 143 interrupted, state saved.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdzoo.terminal import Display, say, stop_signals, warn, width

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning barriers are far slower beside a busy neighbour

app = typer.Typer(
    name="kdzoo",
    help="Distil a large model into a small one, and see whether it was worth it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _possible(value: Any) -> Any:
    """Refuse a path that no file can have; of several, the first such one."""
    from kdzoo.errors import KdzooError, plain

    for path in value if isinstance(value, list) else [value]:
        longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
        if longest > 255:
            raise KdzooError(f"{plain(str(path), 100)}: a file's name has at most 255 bytes, got {longest}")
    return value


RecipeFile = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", callback=_possible, help="A recipe file, or the name of a bundled one."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", callback=_possible, help="Where runs and the store go.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from kdzoo import __version__

        say(f"kdzoo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


# --- running ----------------------------------------------------------------------------------


@app.command()
def run(
    recipe: RecipeFile,
    override: Overrides = None,
    out: Out = Path("runs"),
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start a new run even if one waits to be resumed.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume, and refuse to start afresh.")] = False,
) -> None:
    """Train teacher, control and student, export, and write a report."""
    folder, results = _run(recipe, _all_overrides(override, device, seed), out, new, resume)
    if results is None:
        return
    from kdzoo.report.compare import comparison_table

    say(comparison_table(results, width()))
    for warning in results["warnings"]:
        warn(f"warning: {warning}")
    say(f"run folder: {folder}")
    from kdzoo.run.exporting import check_rejected

    check_rejected(results["exports"])  # last, as the run is whole without the file


def _run(
    recipe: Path, overrides: list[str], out: Path, new: bool = False, resume: bool = False
) -> tuple[Path, dict[str, Any] | None]:
    """Run a recipe; results are None on every process but the first."""
    from kdzoo.storage.atomic import probe_writable

    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        probe_writable(out)
    loaded, plan, zoo = _resolve(recipe, overrides)

    from kdzoo.run.running import run_plan
    from kdzoo.training.parallel import Ranks

    with loaded.located():
        ranks = Ranks(plan.recipe.device)
        display = Display(silent=not ranks.first)
        with ranks.together(), stop_signals() as stop:
            folder, results, before = run_plan(plan, zoo, out, ranks, display, stop, new=new, resume=resume)
    if before and results is not None:
        say(f"already finished: {folder}; --new starts another run")
    return folder, results


def _resolve(recipe: Path, overrides: list[str]) -> tuple[Any, Any, Any]:
    from kdzoo.plan.opening import open_recipe

    loaded, plan, zoo = open_recipe(recipe, overrides)
    _warn_of_plugins(zoo)
    return loaded, plan, zoo


def _warn_of_plugins(zoo: Any) -> None:
    for plugin in zoo.plugins:
        who = f"{plugin.name} ({plugin.distribution} {plugin.version})"
        if plugin.status == "broken":
            warn(f"warning: plugin {who} failed to load: {plugin.cause}")
        if plugin.changed:
            text = f"warning: plugin {who} changed {plugin.changed} while it was loaded; kdzoo gave that back"
            warn(text)


def _all_overrides(override: list[str] | None, device: str | None = None, seed: int | None = None) -> list[str]:
    overrides = list(override or [])
    if device is not None:
        overrides.append(f"device={device}")
    if seed is not None:
        overrides.append(f"seed={seed}")
    return overrides


@app.command()
def check(recipe: RecipeFile, override: Overrides = None) -> None:
    """Validate a recipe, build its models, and run one dry forward."""
    loaded, plan, zoo = _resolve(recipe, list(override or []))
    from kdzoo.run.runner import Runner
    from kdzoo.storage.store import Store

    with loaded.located():
        for line in Runner(plan, zoo, None, Store(Path("runs/.store"))).check():
            say(line)


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="RECIPE|NAME", help="A recipe file, or the name of an offered thing.")],
    override: Overrides = None,
) -> None:
    """Print a recipe with every default, or what an algorithm, data set, model, export format ... is and takes."""
    from kdzoo.recipe.bundled import find_recipe
    from kdzoo.zoo.catalogue import catalogue

    _possible(Path(what))
    path = find_recipe(Path(what))
    if path.exists() or what.endswith((".yaml", ".yml")):
        from kdzoo.plan.resolve import filled
        from kdzoo.recipe.reading import dump_recipe, load_recipe

        say(dump_recipe(filled(load_recipe(path, list(override or [])).recipe, catalogue())), end="")
        return
    from kdzoo.report.columns import fitted_text
    from kdzoo.testing.card import describe

    say(fitted_text(describe(what, catalogue()), width()))


# --- looking ----------------------------------------------------------------------------------

KINDS = ("algorithms", "models", "datasets", "exporters", "quantizers", "trackers", "recipes")


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.")] = "algorithms",
    as_json: Json = False,
) -> None:
    """List what the installed plugins offer."""
    from kdzoo.errors import UnknownName, nearest, shown

    if kind not in KINDS:
        raise UnknownName(f"list: unknown kind {shown(kind)}{nearest(kind, KINDS) or ';'} known: {', '.join(KINDS)}")
    from kdzoo.report.columns import listed
    from kdzoo.testing.card import offer_rows, recipe_rows

    if kind == "recipes":
        rows = recipe_rows()
    else:
        from kdzoo.zoo.catalogue import catalogue

        zoo = catalogue()
        _warn_of_plugins(zoo)
        rows = offer_rows(zoo, kind)
    if as_json:
        say(json.dumps(rows, indent=2))
    else:
        say(listed([[row[key] for key in ("name", "family", "description")] for row in rows], width()))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, every plugin's options in it, for editors."""
    from kdzoo.plan.schema import recipe_schema
    from kdzoo.zoo.catalogue import catalogue

    say(json.dumps(recipe_schema(catalogue()), indent=2))


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the installed plugins and whether each loads; works whatever they do."""
    from kdzoo.zoo.catalogue import catalogue

    rows = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "status": plugin.status,
            "cause": plugin.cause or (f"changed {plugin.changed}; kdzoo gave that back" if plugin.changed else ""),
        }
        for plugin in catalogue(retry_broken=True).plugins
    ]
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    from kdzoo.report.columns import listed

    table = [[row["name"], f"{row['distribution']} {row['version']}", row["status"], row["cause"]] for row in rows]
    say(listed(table, width()))


# --- run folders ------------------------------------------------------------------------------

RunPath = Annotated[Path, typer.Argument(metavar="RUN", callback=_possible, help="A run folder.")]


@app.command()
def report(folder: RunPath) -> None:
    """Write report.html and the model card of a run folder again."""
    from kdzoo.report.writing import rewrite_report

    rewrite_report(folder)
    say(folder / "report.html")


@app.command("verify-run")
def verify_run(folder: RunPath) -> None:
    """Compare every file of a finished run with the sha256 that was recorded when it ended."""
    from kdzoo.storage.run_folder import RunFolder

    say(f"{folder}: {RunFolder.view(folder).verify()} files verify")


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", callback=_possible, help="Two or more run folders.")
    ],
) -> None:
    """Show two or more runs side by side."""
    from kdzoo.errors import ReportError
    from kdzoo.report.compare import compare_table

    if len(folders) < 2:
        raise ReportError(f"compare: needs at least two run folders, got {len(folders)}")
    say(compare_table(folders, width()))


@app.command()
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
    _, plan, zoo = _resolve(folder / "recipe.yaml", overrides)
    from kdzoo.run.runner import Runner
    from kdzoo.storage.store import Store

    runner = Runner(plan, zoo, source, Store(folder.parent.parent / ".store"))
    entries = runner.export_again()
    for entry in entries:
        if entry["file"]:
            source.record(f"export/{entry['file']}")
        say(json.dumps(entry, indent=2))
    from kdzoo.run.exporting import check_rejected

    check_rejected(entries)


@app.command()
def verify(
    recipe: RecipeFile,
    override: Overrides = None,
    out: Out = Path("runs"),
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="How many seeds; the recipe's own number if left out.")
    ] = None,
) -> None:
    """Re-run a recipe over its seeds and hold the result against its `expected`."""
    from kdzoo.errors import RecipeError, VerifyError
    from kdzoo.recipe.bundled import known_recipe
    from kdzoo.recipe.reading import load_recipe
    from kdzoo.study.expected import hold_against

    path = known_recipe(recipe)
    expected = load_recipe(path, list(override or [])).recipe.expected
    if expected is None:
        raise RecipeError(f"{path}: has no 'expected' section, so there is nothing to verify; it was never reproduced")
    results = []
    for seed in range(seeds or expected.seeds):
        folder, result = _run(path, [*(override or []), f"seed={seed}"], out)
        if result is None:  # every process but the first only takes part
            continue
        results.append(result)
        say(f"seed {seed}: student {result['student']['top1_percent']:.2f} %  ({folder})")
    if not results:
        return
    verdict = hold_against(expected, results)
    say(verdict.text)
    from kdzoo.run.exporting import check_rejected

    check_rejected([entry for result in results for entry in result["exports"]])
    if verdict.problem:
        raise VerifyError(f"{path}: {verdict.problem}")


# --- plugins ----------------------------------------------------------------------------------


@app.command("test-plugin")
def test_plugin(
    name: Annotated[str, typer.Argument(help="An algorithm's name, or a plugin's for all of its algorithms.")],
    as_json: Json = False,  # noqa: PT028
) -> None:
    """Run the conformance suite over an algorithm."""
    from kdzoo.errors import ContractError
    from kdzoo.zoo.catalogue import catalogue

    catalogue()  # finds plugins that end or hang a process, before they are loaded into this one
    from kdzoo.testing.checks import run_checks
    from kdzoo.zoo.loading import load_zoo

    zoo = load_zoo()
    of_plugin = [algorithm for algorithm, offer in zoo.algorithms.items() if offer.plugin == name]
    failed, rows = 0, []
    for algorithm in of_plugin or [name]:
        for outcome in run_checks(zoo.algorithm(algorithm), zoo):
            rows.append({"algorithm": algorithm, "check": outcome.name, "status": outcome.status, "text": outcome.text})
            failed += outcome.status == "failed"
            if not as_json:
                say(f"{algorithm}  {outcome.status:<8} {outcome.name}{': ' + outcome.text if outcome.text else ''}")
    if as_json:
        say(json.dumps(rows, indent=2))
    if failed:
        error = ContractError(f"{failed} of {len(rows)} checks failed")
        error.exit_code = 1
        raise error


new_app = typer.Typer(help="Write a scaffold that runs as it is.", no_args_is_help=True)
app.add_typer(new_app, name="new")


@new_app.command("algorithm")
def new_algorithm(
    name: Annotated[str, typer.Argument(help="Lower snake case, e.g. mimic.")],
    where: Annotated[
        Path, typer.Option("--in", metavar="DIR", callback=_possible, help="The folder to write the package into.")
    ] = Path("."),
) -> None:
    """Write a plugin package with one algorithm, its test and a recipe."""
    from kdzoo.testing.scaffold import write_algorithm

    for path in write_algorithm(name, where):
        say(path)


@new_app.command("recipe")
def new_recipe(
    name: Annotated[str, typer.Argument(help="Name of the recipe, e.g. my-student.")],
    algorithm: Annotated[
        str, typer.Option("--algorithm", help="The algorithm it uses; none: the bundled quickstart's.")
    ] = "",
    where: Annotated[
        Path, typer.Option("--in", metavar="DIR", callback=_possible, help="The folder to write into.")
    ] = Path("."),
) -> None:
    """Write a recipe that runs as it is."""
    from kdzoo.recipe.bundled import recipes_root
    from kdzoo.testing.scaffold import write_recipe

    say(write_recipe(name, algorithm, where, recipes_root()))


def main() -> None:
    """Run the command line; a KdzooError is one clear message and its exit code."""
    debug = "--debug" in sys.argv or bool(os.environ.get("KDZOO_DEBUG"))
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
    from kdzoo.errors import Interrupted, KdzooError, shown

    if hidden := [each for each in sys.argv[1:] if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", each)]:
        warn(f"error: {shown(hidden[0])}: an argument may not hold control characters")
        raise SystemExit(2)
    try:
        app(standalone_mode=True)
    except KdzooError as error:
        if debug:
            raise
        warn(error if isinstance(error, Interrupted) else f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        os._exit(1)
