"""Time what public torch offers beyond the engine's way of running teacher and student, and what it costs to prepare.

python benchmarks/variants.py --json benchmarks/results/variants.json
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import torch
import torch.nn.functional as F
from provenance import write_result
from step_time import PAIRS, Pair, Stopwatch
from torch import Tensor, nn

from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Pixels
from kdzoo.models.building import build_network
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.network import Network, freeze
from kdzoo.training.device import choose_precision
from kdzoo.zoo.loading import load_zoo

Call = Callable[[], Any]


def network(name: str, pair: Pair) -> Network:
    height, width, channels = pair.image
    half = (0.5,) * channels
    return build_network(
        ModelSpec(name),
        inputs=Pixels(channels, (height, width), half, half),
        num_classes=pair.classes,
        seed=0,
    )


def teachers(pair: Pair, inputs: Tensor) -> dict[str, Call]:
    """The folded teacher's answer: as the engine runs it, and otherwise."""
    taught = network(pair.teacher, pair)
    precision = choose_precision("auto", None, taught, inputs.device)
    folded = precision.place(fold_batchnorm(taught))
    freeze(folded)
    ready = copy.deepcopy(folded).to(precision.dtype or torch.float32)
    compiled = torch.compile(copy.deepcopy(folded))
    frozen = torch.compile(copy.deepcopy(folded), options={"freezing": True})

    def under_autocast(module: Callable[..., Any], parts: int = 1) -> Call:
        def call() -> None:
            with torch.no_grad(), precision.autocast():
                for part in inputs.chunk(parts):
                    module(part)

        return call

    cast = inputs.to(precision.dtype or torch.float32)

    def without_autocast() -> None:
        with torch.no_grad():
            ready(cast)

    return {
        "teacher, as in the engine": under_autocast(folded),
        "teacher, weights cast once": without_autocast,
        "teacher, in 4 parts": under_autocast(folded, 4),
        "teacher, compiled": under_autocast(compiled),
        "teacher, compiled and frozen": under_autocast(frozen),
    }


def students(pair: Pair, inputs: Tensor) -> dict[str, Call]:
    """The student's forward and backward: as the engine runs it, and compiled."""
    student = network(pair.student, pair)
    precision = choose_precision("auto", None, student, inputs.device)
    precision.place(student).train()
    targets = torch.arange(len(inputs)) % pair.classes

    def step(module: nn.Module, parameters: list[nn.Parameter]) -> Call:
        def call() -> None:
            for parameter in parameters:
                parameter.grad = None
            with precision.autocast():
                logits = module(inputs).logits
            F.cross_entropy(logits.float(), targets).backward()

        return call

    other = copy.deepcopy(student)
    return {
        "student, as in the engine": step(student, list(student.parameters())),
        "student, compiled": step(torch.compile(other), list(other.parameters())),  # type: ignore[arg-type]
    }


def measure(pair: Pair, rounds: int, watch: Stopwatch) -> dict[str, Any]:
    height, width, channels = pair.image
    inputs = torch.rand(pair.batch_size, channels, height, width).to(memory_format=torch.channels_last)
    calls = {**teachers(pair, inputs), **students(pair, inputs)}
    first_s = {}
    for name, call in calls.items():
        begin = time.perf_counter()  # compilers work in processes of their own, which only the wall sees
        call()
        first_s[name] = time.perf_counter() - begin
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            spent[name].append(watch(call)[0])
    return {
        "pair": pair.title,
        "median_ms": {name: median(times) for name, times in spent.items()},
        "first_call_s": first_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time other ways to run teacher and student.")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=["resnet8x4", "resnet20"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    load_zoo()
    watch = Stopwatch(args.threads)
    results = [measure(PAIRS[name], args.rounds, watch) for name in args.pairs]
    for result in results:
        print(f"\n{result['pair']}\n  {'':<32}{'median ms':>12}{'first call s':>14}")
        for name, value in result["median_ms"].items():
            print(f"  {name:<32}{value:>12.1f}{result['first_call_s'][name]:>14.1f}")
    if args.json:
        write_result(args.json, {"rounds": args.rounds, "pairs": results})


if __name__ == "__main__":
    main()
