"""Train the same recipe in float32 and in bfloat16 over seeds, and compare the accuracies seed by seed.

    python benchmarks/precision_accuracy.py --json benchmarks/results/precision_accuracy.json

Weights, order and augmentation of a seed are the same in every precision, and every network is tested in float32.
Training multiplies the least rounding, so two runs of one seed part ways in any case; how far is shown by a second
float32 arm in the other memory format, which differs in nothing else. Finished stages stay in --store; a benchmark
that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

from provenance import write_result

from kdzoo.plan.resolve import resolve
from kdzoo.recipe.reading import load_recipe
from kdzoo.run.runner import Runner
from kdzoo.storage.store import Store
from kdzoo.zoo.loading import load_zoo

RECIPE = Path(__file__).with_suffix(".yaml")
NETWORKS = ("teacher", "control", "student")
#: What each arm changes in the recipe; the first is what the others are compared with.
ARMS = {
    "fp32": ["precision=fp32", "train.channels_last=true"],
    "fp32 nchw": ["precision=fp32", "train.channels_last=false"],
    "auto": ["precision=auto"],
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16"],
}
REFERENCE = "fp32"


def train(recipe: Path, arm: str, seed: int, store: Path) -> dict[str, Any]:
    """Train one seed in one arm; return each network's accuracy on the test split and its precision."""
    zoo = load_zoo()
    loaded = load_recipe(recipe, [*ARMS[arm], f"seed={seed}"])
    runner = Runner(resolve(loaded, zoo), zoo, None, Store(store))
    results = runner.run()
    stages = {stage["name"]: stage for stage in results["stages"]}
    return {
        "top1_percent": {name: results[name]["top1_percent"] for name in NETWORKS},
        "ran_in": {name: stages[name]["precision"] for name in NETWORKS},
        "test_samples": results["data"]["test_samples"],
        "train_samples": results["data"]["train"],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation over seeds, and standard error of the mean."""
    deviation = stdev(values) if len(values) > 1 else float("nan")
    return {"mean": mean(values), "std": deviation, "standard_error": deviation / sqrt(len(values))}


def compare(runs: Mapping[str, Sequence[Mapping[str, Any]]], arm: str) -> dict[str, Any]:
    """Points of accuracy that an arm gains over float32, seed by seed, for each network and for all."""
    gains = {
        name: [
            one["top1_percent"][name] - other["top1_percent"][name]
            for one, other in zip(runs[arm], runs[REFERENCE], strict=True)
        ]
        for name in NETWORKS
    }
    pooled = [gain for values in gains.values() for gain in values]
    return {"points": gains, **{name: spread(values) for name, values in gains.items()}, "all": spread(pooled)}


def show(result: Mapping[str, Any]) -> None:
    print(
        f"\n{result['recipe']}: top-1 on {result['test_samples']} test samples, percent, {len(result['seeds'])} seeds"
    )
    print(f"  {'':<10}" + "".join(f"{name:>18}" for name in NETWORKS))
    for arm, entry in result["accuracy"].items():
        cells = (f"{entry[name]['mean']:.2f} +- {entry[name]['std']:.2f}" for name in NETWORKS)
        print(f"  {arm:<10}" + "".join(f"{cell:>18}" for cell in cells))
    for arm, entry in result["gains"].items():
        print(f"  {arm} over {REFERENCE}, points, paired by seed: mean, std, standard error")
        for name in (*NETWORKS, "all"):
            numbers = entry[name]
            print(f"    {name:<8}{numbers['mean']:>8.2f}{numbers['std']:>8.2f}{numbers['standard_error']:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare accuracies in float32 and in other precisions over seeds.")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument(
        "--arms", nargs="+", default=["fp32 nchw", "auto"], choices=[arm for arm in ARMS if arm != REFERENCE]
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path, default=Path("runs/precision_accuracy"), help="folder of finished stages")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (REFERENCE, *args.arms)}
    for seed in range(args.seeds):
        for arm, done in runs.items():
            done.append(train(args.recipe, arm, seed, args.store))
            print(f"seed {seed}  {arm:<10} {done[-1]['top1_percent']}  ran in {done[-1]['ran_in']}", flush=True)
    first = runs[REFERENCE][0]
    result = {
        "recipe": load_recipe(args.recipe).recipe.name,
        "arms": {arm: ARMS[arm] for arm in runs},
        "seeds": list(range(args.seeds)),
        "train_samples": first["train_samples"],
        "test_samples": first["test_samples"],
        "runs": runs,
        "accuracy": {
            arm: {name: spread([run["top1_percent"][name] for run in done]) for name in NETWORKS}
            for arm, done in runs.items()
        },
        "gains": {arm: compare(runs, arm) for arm in args.arms},
    }
    show(result)
    if args.json:
        write_result(args.json, result)


if __name__ == "__main__":
    main()
