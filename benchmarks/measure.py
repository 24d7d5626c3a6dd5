"""Measure a recipe over seeds and write docs/results/<recipe name>.json; killed at any point, it goes on.

    python benchmarks/measure.py recipes/digits/*.yaml --seeds 5

Every run goes through the command line and stays in --out; a seed that is finished with the same settings is not run
again. The time of a training step is measured apart, in turn with the control's, so that both meet the same machine,
and so are the requests at the exported files; --timings-only does both again, on a machine that is quieter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kdzoo.recipe.reading import load_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument(
        "--seeds", default="5", help="how many, from 0; or which, with commas, where one is not through yet"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    parser.add_argument("--timings-only", action="store_true", help="time steps and requests again, and train nothing")
    arguments = parser.parse_args()
    for path in arguments.recipes:
        if arguments.timings_only:
            measure_timings(path.resolve(), arguments.out)
        else:
            measure(path.resolve(), arguments.seeds, arguments.out)


def measure(path: Path, seeds: str, out: Path) -> None:
    """Run one recipe over its seeds and write what came out."""
    chosen = [int(seed) for seed in seeds.split(",")] if "," in seeds else list(range(int(seeds)))
    recipe = load_recipe(path).recipe
    runs = [one(path, recipe.name, seed, out) for seed in chosen]
    environments = [json.loads((folder / "provenance.json").read_text()) for folder, _ in runs]
    results = [result for _, result in runs]
    content: dict[str, Any] = {
        "recipe": str(path.relative_to(ROOT)),
        "command": f"python benchmarks/measure.py {path.relative_to(ROOT)} --seeds {seeds}",
        "commit": ", ".join(sorted({str(environment["commit"]) for environment in environments})),
        "hardware": f"{processor()}, {environments[0]['environment']['threads']} threads",
        "versions": {name: environments[0]["environment"][name] for name in ("kdzoo", "torch", "timm", "python")},
        "test_samples": results[0]["data"]["test_samples"],
        "seeds": chosen,
    }
    for who in ("teacher", "control", "student"):
        if all(result.get(who) for result in results):
            content[who] = [round(result[who]["top1_percent"], 4) for result in results]
    bound = results[0].get("upper_bound")
    if bound:
        content["upper_bound"] = bound
    elif all(result.get("control") for result in results):
        content["step_time_over_control"] = round(step_time_over_control(path), 2)
    variants = [{each["label"]: each["top1_percent"] for each in result.get("variants", [])} for result in results]
    labels = [label for label in variants[0] if all(label in found for found in variants)]
    if labels:  # what else the algorithm measures on the test split
        content["variants"] = {label: [round(found[label], 4) for found in variants] for label in labels}
    content |= costs_of(results) | tables_of(results)
    add_request_times(path, content, runs)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{recipe.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(recipe.name, "student", content["student"], "control", content.get("control"), flush=True)


#: What is kept of each network's and file's entry in results.json beside its accuracy; latency is kept at the median.
COSTS = ("top1_percent", "params_m", "size_mib", "macs_g", "latency_ms")


def costs_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and costs of every network and exported file that all runs have, with a list of the seeds' values."""
    told: list[dict[str, dict[str, Any]]] = []
    for result in results:
        alone = [result.get(who) for who in ("teacher", "control", "student")]
        further = [result.get("teachers", []), result.get("peers", []), files_of(result)]
        entries = [*filter(None, alone), *(each for found in further for each in found)]
        told.append({each["label"]: {key: at_median(each.get(key)) for key in COSTS} for each in entries})
    costs = {}
    for label in told[0]:
        if all(label in found for found in told):
            values = {key: each_seed([found[label][key] for found in told]) for key in COSTS}
            costs[label] = {key: value for key, value in values.items() if value is not None}
    return {"costs": costs}


def files_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The accepted files of student and teachers; the control's are only made to judge a format by."""
    exports = result.get("exports", [])
    return [each for each in exports if each["network"] != "control" and not each["rejected"]]


def at_median(value: Any) -> Any:
    """A latency's median, of the calls of all in turn; anything else as it is."""
    return value["p50"] if isinstance(value, dict) else value


def add_request_times(path: Path, content: dict[str, Any], runs: list[tuple[Path, dict[str, Any]]]) -> None:
    """Put the times of requests at the exported files of finished runs into the content of a result file."""
    times = [request_times(path, folder / "export", result) for folder, result in runs]
    for label in times[0]:
        if label in content["costs"] and all(label in found for found in times):
            for clock in times[0][label]:
                content["costs"][label][clock] = each_seed([found[label][clock] for found in times])


#: What a request is timed by. On a busy machine the clock on the wall counts the work of others as well.
CLOCKS = {"latency_ms": time.perf_counter_ns, "processor_ms": time.process_time_ns}


def request_times(path: Path, exported: Path, result: dict[str, Any], rounds: int = 300) -> dict[str, dict[str, float]]:
    """Median milliseconds of a request at each exported file of a run, by label and clock, in turn, one thread.

    An image stands for all; of text each round takes the next of the validation split, at its own length.
    """
    from kdzoo.plan.resolve import resolve
    from kdzoo.run.runner import Runner
    from kdzoo.storage.store import Store
    from kdzoo.zoo.loading import load_zoo

    files = files_of(result)
    if not files:
        return {}
    zoo = load_zoo()
    plan = resolve(load_recipe(path), zoo)
    exporters = {(each.name, each.label or None): each for each in plan.exporters}
    with tempfile.TemporaryDirectory() as folder:
        build = Runner(plan, zoo, None, Store(Path(folder))).build
        requests = build.data.inputs.timed_samples
        samples = [batch.inputs for batch in itertools.islice(build.loader.eval_batches("validation", 1), requests)]
        calls, inputs = {}, {}
        for each in files:
            network = build.network(plan.teachers[each["index"]] if each["network"] == "teacher" else plan.student)
            inputs[each["label"]] = [network.preprocess(sample).cpu().numpy() for sample in samples]
            calls[each["label"]] = exporters[each["format"], each["quantize"]].load(exported / each["file"], 1)
    spent: dict[str, dict[str, list[int]]] = {label: {clock: [] for clock in CLOCKS} for label in calls}
    for number in range(-requests, rounds):
        for label, call in calls.items():
            begin = {clock: now() for clock, now in CLOCKS.items()}
            call(inputs[label][number % requests])
            if number >= 0:  # before that each request comes once to warm up
                for clock, now in CLOCKS.items():
                    spent[label][clock].append(now() - begin[clock])
    return {
        label: {clock: statistics.median(times) / 1e6 for clock, times in clocks.items()}
        for label, clocks in spent.items()
    }


def tables_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The tables that the algorithm shows alike in every run, with a list of the seeds' values for each number."""
    items = [result.get("report_items", []) for result in results]
    shown = [{each["title"]: each for each in found if each["kind"] == "table"} for found in items]
    tables = []
    for title, first in shown[0].items():
        same = [found[title] for found in shown if title in found and heads(found[title]) == heads(first)]
        if len(same) == len(results):
            rows = [
                [row[0], *(each_seed([table["rows"][i][j] for table in same]) for j in range(1, len(row)))]
                for i, row in enumerate(first["rows"])
            ]
            tables.append({"title": title, "columns": first["columns"], "rows": rows, "note": first["note"]})
    return {"tables": tables} if tables else {}


def heads(table: dict[str, Any]) -> tuple[Any, ...]:
    return table["columns"], [row[0] for row in table["rows"]]


def each_seed(values: list[Any]) -> Any:
    """Rounded numbers, one a seed, or words that are the same in every run; anything else is not told."""
    if all(isinstance(value, int | float) for value in values):
        return [round(value, 4) for value in values]
    return values[0] if isinstance(values[0], str) and len(set(values)) == 1 else None


def measure_timings(path: Path, out: Path) -> None:
    """Time a step, and the requests where the runs are still there, again, and put both into the recipe's file."""
    recipe = load_recipe(path).recipe
    file = RESULTS / f"{recipe.name}.json"
    if not file.exists():
        return
    content = json.loads(file.read_text())
    if "control" in content and "upper_bound" not in content:
        content["step_time_over_control"] = round(step_time_over_control(path), 2)
    wanted = [recipe.model_copy(update={"seed": seed}).model_dump(mode="json") for seed in content["seeds"]]
    folders = [finished(out / recipe.name, each) for each in wanted]
    if all(folders):
        runs = [(folder, json.loads((folder / "results.json").read_text())) for folder in folders if folder]
        results = [result for _, result in runs]
        content |= costs_of(results) | tables_of(results)
        add_request_times(path, content, runs)
    file.write_text(json.dumps(content, indent=1) + "\n")
    print(file.name, content.get("step_time_over_control"), "requests too" if all(folders) else "", flush=True)


def step_time_over_control(path: Path, warmup: int = 3, rounds: int = 9) -> float:
    """Median time of a step of the student's stage over that of the control; untrained networks, steps in turn."""
    from kdzoo.contract.stage import Stage
    from kdzoo.plan.resolve import resolve
    from kdzoo.run.runner import Runner
    from kdzoo.storage.store import Store
    from kdzoo.testing.checks import run_steps
    from kdzoo.training.engine import Engine
    from kdzoo.zoo.loading import load_zoo

    with tempfile.TemporaryDirectory() as folder:
        zoo = load_zoo()
        runner = Runner(resolve(load_recipe(path), zoo), zoo, None, Store(Path(folder)))
        alone = Stage("control", runner.plan.student)
        jobs = [runner.rehearse()[0], runner.build.job(alone, None, runner.build.train_section(alone))[0]]
        engines = [Engine(job) for job in jobs]
        spent: list[list[float]] = [[], []]
        for _ in range(warmup + rounds):
            for engine, times in zip(engines, spent, strict=True):
                begin = time.perf_counter()
                run_steps(engine, 1)
                times.append(time.perf_counter() - begin)
    own, control = (statistics.median(times[warmup:]) for times in spent)
    return own / control


def one(path: Path, name: str, seed: int, out: Path) -> tuple[Path, dict[str, Any]]:
    """The finished run of this recipe and seed: the newest there is, or a new one."""
    recipe = load_recipe(path).recipe.model_copy(update={"seed": seed}).model_dump(mode="json")
    if (folder := finished(out / name, recipe)) is None:
        command = [sys.executable, "-m", "kdzoo", "run", str(path), "--seed", str(seed), "--out", str(out)]
        begun = [each for each in records(out / name, seed).values() if each["status"] != "finished"]
        if any(record["recipe"] != recipe for record in begun[:1]):
            command.append("--new")  # another recipe was begun; its finished stages serve where they are the same
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        folder = finished(out / name, recipe)
        assert folder is not None, f"{out / name}: the run of seed {seed} is not of {path}"
    return folder, json.loads((folder / "results.json").read_text())


def finished(runs: Path, recipe: dict[str, Any]) -> Path | None:
    """The newest finished run of a recipe's settings and seed."""
    for folder, record in records(runs, recipe["seed"]).items():
        if record["status"] == "finished" and settings(record["recipe"]) == settings(recipe):
            return folder
    return None


def records(runs: Path, seed: int) -> dict[Path, dict[str, Any]]:
    """What is known of each run with that seed, the newest first."""
    folders = sorted(runs.glob(f"*-seed{seed}"), reverse=True)
    return {folder: json.loads((folder / "run.json").read_text()) for folder in folders}


def settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe decides its numbers."""
    return {key: value for key, value in recipe.items() if key not in {"description", "expected"}}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
