"""The command line: the only place that prints, and that catches what a user can mend.

Exit codes: 0 done; 1 not reproduced, undecided or not conforming; 2 recipe, names, needs; 3 damaged files; 4 output;
5 locked; 6 diverged; 7 memory; 8 data; 9 export rejected; 10 processes disagree; 130 and 143 interrupted, state saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning barriers are far slower beside a busy neighbour

app = typer.Typer(
    name="kdzoo",
    help="Distil a large model into a small one, and see whether it was worth it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs and the store go.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from kdzoo import __version__

        print(f"kdzoo {__version__}")
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

    print(comparison_table(results, _width()))
    for warning in results["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"run folder: {folder}")
    from kdzoo.run.exporting import check_rejected

    check_rejected(results["exports"])  # last, as the run is whole without the file


def _width() -> int | None:
    """Characters of a line of the terminal; None where the output is not one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def _run(
    recipe: Path, overrides: list[str], out: Path, new: bool = False, resume: bool = False
) -> tuple[Path, dict[str, Any] | None]:
    """Run a recipe; results are None on every process but the first."""
    from kdzoo.storage.atomic import probe_writable

    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        probe_writable(out)
    plan, zoo = _resolve(recipe, overrides)

    from kdzoo.training.parallel import Ranks

    ranks = Ranks(plan.recipe.device)
    with ranks.together():
        return _run_together(ranks, plan, zoo, out, new, resume)


def _run_together(
    ranks: Any, plan: Any, zoo: Any, out: Path, new: bool, resume: bool
) -> tuple[Path, dict[str, Any] | None]:
    from kdzoo.errors import Interrupted, KdzooError
    from kdzoo.recipe.reading import dump_recipe, recipe_hash
    from kdzoo.run.builder import Builder
    from kdzoo.run.result_key import result_key
    from kdzoo.run.runner import Runner
    from kdzoo.storage.run_folder import RunFolder
    from kdzoo.storage.store import Store

    ranks.agree("the recipe", recipe_hash(plan.recipe))
    display = Display() if ranks.first else _quiet()
    folder = None
    if ranks.first:
        folder = RunFolder.start(
            out,
            name=plan.recipe.name,
            seed=plan.recipe.seed,
            recipe_text=dump_recipe(plan.recipe),
            recipe_hash=recipe_hash(plan.recipe),
            recipe_fields=plan.recipe.model_dump(mode="json"),
            new=new,
            resume=resume,
            result_key=lambda: result_key(Builder(plan, Store(out / ".store"), ranks)),
            warn=display.note,
        )
    place = ranks.broadcast(str(folder.root) if folder else "")
    folder = folder or RunFolder.view(Path(place))
    ranks.barrier()  # before the first one may abandon it
    with _signals() as stop, folder:
        if folder.finished:
            if not ranks.first:
                return folder.root, None
            print(f"already finished: {folder.root}; --new starts another run")
            return folder.root, folder.read_json("results.json")
        if folder.resumed:
            display.note(f"resuming {folder.root}")
        try:
            runner = Runner(plan, zoo, folder, Store(out / ".store"), ranks, display, stop)
            runner.rehearse()
        except KdzooError:
            folder.abandon()  # nothing was trained, so the mended recipe need not be a new run
            raise
        with display:
            results = runner.run()
        if not ranks.first:
            return folder.root, None
        from kdzoo.report.writing import write_report

        write_report(folder.root)
        folder.finish(result_key(runner.build))
    ranks.close()
    if stop():  # too late to stop anything, but whoever asked must not take it for a run that was left alone
        raise Interrupted(f"the run had finished when it was asked to stop: {folder.root}", 128 + stop())
    return folder.root, results


def _resolve(recipe: Path, overrides: list[str]) -> tuple[Any, Any]:
    """Read a recipe and resolve it. What the catalogue shows to be wrong is said before any plugin is imported."""
    from kdzoo.plan.resolve import doubtful, further_problems, known_problems, resolve
    from kdzoo.recipe.reading import load_recipe
    from kdzoo.zoo.catalogue import catalogue
    from kdzoo.zoo.loading import load_zoo

    def also(data: Any, problems: Any) -> None:
        cards = catalogue()
        further_problems(data, problems, load_zoo() if doubtful(data, cards) else cards)

    loaded = load_recipe(_known_recipe(recipe), overrides, also)
    cards = catalogue()
    problems = known_problems(loaded, cards)
    if problems and not doubtful(loaded.recipe.model_dump(), cards):
        problems.raise_if_any()
    zoo = load_zoo()
    _warn_of_plugins(zoo)
    return resolve(loaded, zoo), zoo


def _warn_of_plugins(zoo: Any) -> None:
    for plugin in zoo.plugins:
        who = f"{plugin.name} ({plugin.distribution} {plugin.version})"
        if plugin.status == "broken":
            print(f"warning: plugin {who} failed to load: {plugin.cause}", file=sys.stderr)
        if plugin.changed:
            text = f"warning: plugin {who} changed {plugin.changed} while it was loaded; kdzoo gave that back"
            print(text, file=sys.stderr)


def recipes_root() -> Path:
    """Where the bundled recipes are: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next((p for p in (package / "recipes", package.parent / "recipes") if p.is_dir()), package / "recipes")


def _find_recipe(path: Path) -> Path:
    """A path as given, or a bundled recipe by its path below recipes/, with or without .yaml."""
    if path.exists():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts
    for candidate in (recipes_root().joinpath(*parts), recipes_root().joinpath(*parts).with_suffix(".yaml")):
        if candidate.is_file():
            return candidate
    return path


def _known_recipe(path: Path) -> Path:
    """As ``_find_recipe``; UnknownName for a name without .yaml that is neither. Of a file, load_recipe says so."""
    from kdzoo.errors import UnknownName, nearest

    found = _find_recipe(path)
    if found.exists() or path.suffix in (".yaml", ".yml"):
        return found
    known = [str(each.relative_to(recipes_root()).with_suffix("")) for each in sorted(recipes_root().rglob("*.yaml"))]
    here = f"digits/{path.name}"  # of recipes with one name, that which needs no data from elsewhere
    close = nearest(here if here in known else str(path), known)
    raise UnknownName(f"recipe '{path}': no file and no bundled recipe{close or ';'} `kdzoo list recipes` names those")


def _all_overrides(override: list[str] | None, device: str | None = None, seed: int | None = None) -> list[str]:
    overrides = list(override or [])
    if device is not None:
        overrides.append(f"device={device}")
    if seed is not None:
        overrides.append(f"seed={seed}")
    return overrides


@contextlib.contextmanager
def _signals() -> Any:
    """Turn SIGINT and SIGTERM into a flag; a second one stops at once, its state the last checkpoint."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            os._exit(128 + number)
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quiet() -> Any:
    from kdzoo.run.runner import Quiet

    class QuietContext(Quiet):
        def __enter__(self) -> QuietContext:
            return self

        def __exit__(self, *_: object) -> None: ...

    return QuietContext()


class Display:
    """Live progress on a terminal; a line an epoch elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.live: Any = None
        self.task: Any = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.live = Progress(
                TextColumn("{task.description:>14}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str, state: str) -> None:
        if self.live is not None and self.task is not None:
            self.live.remove_task(self.task)
            self.task = None
        self.note(f"{name}: {state}")

    def progress(self, progress: Any) -> None:
        if self.live is not None:
            if self.task is None:
                self.task = self.live.add_task(progress.stage, total=progress.steps, text="")
            if not progress.end_of_epoch:
                shares = ", ".join(f"{name} {share:.0%}" for name, share in progress.shares.items() if share >= 0.005)
                text = f"epoch {progress.epoch + 1}/{progress.epochs}  {progress.samples_per_s:.0f} samples/s  {shares}"
                self.live.update(self.task, completed=progress.step, text=text)
        if progress.end_of_epoch and self.live is None:
            values = "  ".join(f"{name} {value:.4g}" for name, value in progress.values.items())
            self.note(f"  {progress.stage} epoch {progress.epoch + 1}/{progress.epochs}  {values}")


@app.command()
def check(recipe: RecipeFile, override: Overrides = None) -> None:
    """Validate a recipe, build its models, and run one dry forward."""
    plan, zoo = _resolve(recipe, list(override or []))
    from kdzoo.run.runner import Runner
    from kdzoo.storage.store import Store

    for line in Runner(plan, zoo, None, Store(Path("runs/.store"))).check():
        print(line)


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="RECIPE|ALGORITHM", help="A recipe file or an algorithm's name.")],
    override: Overrides = None,
) -> None:
    """Print a recipe with every default, or what an algorithm is and takes."""
    path = _find_recipe(Path(what))
    if path.exists() or what.endswith((".yaml", ".yml")):
        from kdzoo.recipe.reading import dump_recipe, load_recipe

        print(dump_recipe(load_recipe(path, list(override or [])).recipe), end="")
        return
    from kdzoo.testing.card import describe_algorithm
    from kdzoo.zoo.catalogue import catalogue

    zoo = catalogue()
    print(describe_algorithm(zoo.algorithm(what), zoo.algorithms[what]))


# --- looking ----------------------------------------------------------------------------------

KINDS = ("algorithms", "models", "datasets", "exporters", "quantizers", "trackers", "recipes")


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.")] = "algorithms",
    as_json: Json = False,
) -> None:
    """List what the installed plugins offer."""
    from kdzoo.errors import UnknownName, nearest

    if kind not in KINDS:
        raise UnknownName(f"list: unknown kind '{kind}'{nearest(kind, KINDS) or ';'} known: {', '.join(KINDS)}")
    rows = _recipe_rows() if kind == "recipes" else _offer_rows(kind)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['family']:<14}  {row['description']}")


def _offer_rows(kind: str) -> list[dict[str, Any]]:
    from kdzoo.zoo.catalogue import catalogue

    zoo = catalogue()
    _warn_of_plugins(zoo)
    rows = []
    for name, offer in sorted(getattr(zoo, kind).items()):
        thing = offer.thing
        description = thing.description or thing.doc.split("\n")[0]
        rows.append(
            {
                "name": name,
                "family": getattr(thing, "name", offer.plugin) if kind == "models" else offer.plugin,
                "plugin": offer.plugin,
                "distribution": offer.distribution,
                "version": offer.version,
                "description": description,
            }
        )
        if kind == "algorithms":
            paper = thing.paper
            rows[-1] |= {
                "paper": f"{paper.authors} {paper.year}",
                "url": paper.url,
                "also_known_as": list(thing.also_known_as),
            }
    return rows


def _recipe_rows() -> list[dict[str, Any]]:
    from kdzoo.recipe.reading import load_recipe

    root = recipes_root()
    rows = []
    for path in sorted(root.rglob("*.yaml")):
        recipe = load_recipe(path).recipe
        rows.append(
            {
                "name": str(path.relative_to(root)),
                "family": recipe.algorithm.name,
                "plugin": "",
                "version": str(recipe.version),
                "description": recipe.description,
                "path": str(path),
            }
        )
    return rows


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, every plugin's options in it, for editors."""
    from kdzoo.plan.schema import recipe_schema
    from kdzoo.zoo.catalogue import catalogue

    print(json.dumps(recipe_schema(catalogue()), indent=2))


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
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['name']:<16} {row['distribution']} {row['version']:<10} {row['status']:<8} {row['cause']}".rstrip()
        )


# --- run folders ------------------------------------------------------------------------------

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
def report(folder: RunPath) -> None:
    """Write report.html and the model card of a run folder again."""
    from kdzoo.report.writing import rewrite_report

    rewrite_report(folder)
    print(folder / "report.html")


@app.command("verify-run")
def verify_run(folder: RunPath) -> None:
    """Compare every file of a finished run with the sha256 that was recorded when it ended."""
    from kdzoo.storage.run_folder import RunFolder

    print(f"{folder}: {RunFolder.view(folder).verify()} files verify")


@app.command()
def compare(folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two or more run folders.")]) -> None:
    """Show two or more runs side by side."""
    from kdzoo.errors import ReportError
    from kdzoo.report.compare import compare_table

    if len(folders) < 2:
        raise ReportError(f"compare: needs at least two run folders, got {len(folders)}")
    print(compare_table(folders, _width()))


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
    plan, zoo = _resolve(folder / "recipe.yaml", overrides)
    from kdzoo.run.runner import Runner
    from kdzoo.storage.store import Store

    runner = Runner(plan, zoo, source, Store(folder.parent.parent / ".store"))
    entries = runner.export_again()
    for entry in entries:
        if entry["file"]:
            source.record(f"export/{entry['file']}")
        print(json.dumps(entry, indent=2))
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
    from kdzoo.recipe.reading import load_recipe
    from kdzoo.study.expected import hold_against

    path = _known_recipe(recipe)
    expected = load_recipe(path, list(override or [])).recipe.expected
    if expected is None:
        raise RecipeError(f"{path}: has no 'expected' section, so there is nothing to verify; it was never reproduced")
    results = []
    for seed in range(seeds or expected.seeds):
        folder, result = _run(path, [*(override or []), f"seed={seed}"], out)
        if result is None:  # every process but the first only takes part
            continue
        results.append(result)
        print(f"seed {seed}: student {result['student']['top1_percent']:.2f} %  ({folder})")
    if not results:
        return
    verdict = hold_against(expected, results)
    print(verdict.text)
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
                print(f"{algorithm}  {outcome.status:<8} {outcome.name}{': ' + outcome.text if outcome.text else ''}")
    if as_json:
        print(json.dumps(rows, indent=2))
    if failed:
        error = ContractError(f"{failed} of {len(rows)} checks failed")
        error.exit_code = 1
        raise error


new_app = typer.Typer(help="Write a scaffold that runs as it is.", no_args_is_help=True)
app.add_typer(new_app, name="new")


@new_app.command("algorithm")
def new_algorithm(
    name: Annotated[str, typer.Argument(help="Lower snake case, e.g. mimic.")],
    where: Annotated[Path, typer.Option("--in", metavar="DIR", help="The folder to write the package into.")] = Path(
        "."
    ),
) -> None:
    """Write a plugin package with one algorithm, its test and a recipe."""
    from kdzoo.testing.scaffold import write_algorithm

    for path in write_algorithm(name, where):
        print(path)


@new_app.command("recipe")
def new_recipe(
    name: Annotated[str, typer.Argument(help="Name of the recipe, e.g. my-student.")],
    algorithm: Annotated[
        str, typer.Option("--algorithm", help="The algorithm it uses; none: the bundled quickstart's.")
    ] = "",
    where: Annotated[Path, typer.Option("--in", metavar="DIR", help="The folder to write into.")] = Path("."),
) -> None:
    """Write a recipe that runs as it is."""
    from kdzoo.testing.scaffold import write_recipe

    print(write_recipe(name, algorithm, where, recipes_root()))


def main() -> None:
    """Run the command line; a KdzooError is one clear message and its exit code."""
    debug = "--debug" in sys.argv or bool(os.environ.get("KDZOO_DEBUG"))
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
    from kdzoo.errors import Interrupted, KdzooError

    try:
        app(standalone_mode=True)
    except KdzooError as error:
        if debug:
            raise
        print(error if isinstance(error, Interrupted) else f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        os._exit(1)
