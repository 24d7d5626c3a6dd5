"""Measure a recipe over seeds and write docs/results/<recipe name>.json; killed at any point, it goes on.

    python benchmarks/measure.py recipes/digits/*.yaml --seeds 5

Every run goes through the command line and stays in --out; a seed that is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from kdzoo.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    arguments = parser.parse_args()
    for path in arguments.recipes:
        measure(path.resolve(), arguments.seeds, arguments.out)


def measure(path: Path, seeds: int, out: Path) -> None:
    """Run one recipe over its seeds and write what came out."""
    recipe = load_recipe(path).recipe
    runs = [one(path, recipe.name, seed, out) for seed in range(seeds)]
    environments = [json.loads((folder / "provenance.json").read_text()) for folder, _ in runs]
    results = [result for _, result in runs]
    content: dict[str, Any] = {
        "recipe": str(path.relative_to(ROOT)),
        "command": f"python benchmarks/measure.py {path.relative_to(ROOT)} --seeds {seeds}",
        "commit": ", ".join(sorted({str(environment["commit"]) for environment in environments})),
        "hardware": f"{processor()}, {environments[0]['environment']['threads']} threads",
        "versions": {name: environments[0]["environment"][name] for name in ("kdzoo", "torch", "timm", "python")},
        "test_samples": results[0]["data"]["test_samples"],
        "seeds": list(range(seeds)),
    }
    for who in ("teacher", "control", "student"):
        if all(result.get(who) for result in results):
            content[who] = [round(result[who]["top1_percent"], 4) for result in results]
    if all(result.get("control") for result in results):
        ratios = [step_seconds(result, "student") / step_seconds(result, "control") for result in results]
        if all(ratio == ratio for ratio in ratios):  # not a number where no stage trained the student alone
            content["step_time_over_control"] = round(statistics.median(ratios), 2)
    variants = [{each["label"]: each["top1_percent"] for each in result.get("variants", [])} for result in results]
    labels = [label for label in variants[0] if all(label in found for found in variants)]
    if labels:  # what else the algorithm measures on the test split
        content["variants"] = {label: [round(found[label], 4) for found in variants] for label in labels}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{recipe.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(recipe.name, "student", content["student"], "control", content.get("control"), flush=True)


def step_seconds(result: dict[str, Any], stage: str) -> float:
    """Mean time of one optimizer step of a stage, as it was trained."""
    found = next((facts for facts in result["stages"] if facts["name"] == stage), None)
    return found["seconds"] / max(1, found["steps"]) if found else float("nan")


def one(path: Path, name: str, seed: int, out: Path) -> tuple[Path, dict[str, Any]]:
    """The finished run of a seed: the newest there is, or a new one."""
    for folder in sorted((out / name).glob(f"*-seed{seed}"), reverse=True):
        if json.loads((folder / "run.json").read_text())["status"] == "finished":
            return folder, json.loads((folder / "results.json").read_text())
    command = [sys.executable, "-m", "kdzoo", "run", str(path), "--seed", str(seed), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return one(path, name, seed, out)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
