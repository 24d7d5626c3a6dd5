"""Write what studies of recipes measured into docs/results/<recipe name>.json, from which the docs are made.

    kdzoo study recipes/studies/digits.yaml
    python benchmarks/publish.py runs/digits/study

Each arm that is a recipe of this repository as it stands gets a file. The time of a training step is measured apart,
in turn with the control's, so that both meet the same machine, and so are the requests at the exported files;
--timings-only does both again, on a machine that is quieter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdzoo.recipe.reading import load_recipe
from kdzoo.study.writing import read_study

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY", help="the folder of a study")
    parser.add_argument("--timings-only", action="store_true", help="time steps and requests again")
    arguments = parser.parse_args()
    recipes = {
        load_recipe(path).recipe.name: path
        for path in sorted((ROOT / "recipes").rglob("*.yaml"))
        if path.parent.name != "studies"
    }
    for folder in arguments.studies:
        study = read_study(folder)
        for arm in study["arms"]:
            path = recipes.get(arm["recipe"])
            if path is None or arm["settings"]:
                print(f"{arm['label']}: no recipe of this repository as it stands, left out")
            elif any(run["status"] != "finished" for run in arm["runs"]):
                print(f"{arm['label']}: not finished for every seed, left out")
            elif arguments.timings_only:
                measure_timings(path, arm)
            else:
                publish(path, study, arm)


def folders_of(arm: Mapping[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """The run folders of an arm with their results, one a seed."""
    folders = [Path(run["folder"]) for run in arm["runs"]]
    return [(folder, json.loads((folder / "results.json").read_text())) for folder in folders]


def publish(path: Path, study: Mapping[str, Any], arm: Mapping[str, Any]) -> None:
    """Write what the seeds of one recipe measured."""
    runs = folders_of(arm)
    environments = [json.loads((folder / "provenance.json").read_text()) for folder, _ in runs]
    results = [result for _, result in runs]
    content: dict[str, Any] = {
        "recipe": str(path.relative_to(ROOT)),
        "command": study["command"],
        "commit": ", ".join(sorted({str(environment["commit"]) for environment in environments})),
        "hardware": f"{processor()}, {environments[0]['environment']['threads']} threads",
        "versions": {name: environments[0]["environment"][name] for name in ("kdzoo", "torch", "timm", "python")},
        "test_samples": results[0]["data"]["test_samples"],
        "seeds": [run["seed"] for run in arm["runs"]],
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
    (RESULTS / f"{arm['recipe']}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(arm["recipe"], "student", content["student"], "control", content.get("control"), flush=True)


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


def measure_timings(path: Path, arm: Mapping[str, Any]) -> None:
    """Time a step and the requests again, and put both into the recipe's file."""
    file = RESULTS / f"{arm['recipe']}.json"
    content = json.loads(file.read_text())
    if "control" in content and "upper_bound" not in content:
        content["step_time_over_control"] = round(step_time_over_control(path), 2)
    runs = folders_of(arm)
    results = [result for _, result in runs]
    content |= costs_of(results) | tables_of(results)
    add_request_times(path, content, runs)
    file.write_text(json.dumps(content, indent=1) + "\n")
    print(file.name, content.get("step_time_over_control"), flush=True)


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


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
