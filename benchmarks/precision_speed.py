"""Time training steps and answers of many networks in each precision and memory format; mark what ``auto`` picks.

python benchmarks/precision_speed.py --json benchmarks/results/precision_speed.json
"""

from __future__ import annotations

import argparse
import copy
import os
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import torch
import torch.nn.functional as F
from provenance import write_result
from step_time import Stopwatch
from torch import Tensor

from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Pixels
from kdzoo.models.building import build_network
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.network import Network, freeze
from kdzoo.training.device import Precision, choose_precision
from kdzoo.zoo.loading import load_zoo

CPU = torch.device("cpu")
#: (network, side of its input in pixels, channels); plain convnets by rising cost, then depthwise and grouped ones.
NETWORKS = (
    ("digits_cnn_tiny", 8, 1),
    ("digits_cnn", 8, 1),
    ("plain_cnn2", 32, 3),
    ("plain_cnn4", 32, 3),
    ("plain_cnn8", 32, 3),
    ("cifar_resnet8", 32, 3),
    ("cifar_resnet20", 32, 3),
    ("cifar_wrn_16_2", 32, 3),
    ("cifar_vgg8", 32, 3),
    ("cifar_mobilenet_v2", 32, 3),
    ("cifar_shuffle_v1", 32, 3),
    ("cifar_shuffle_v2", 32, 3),
)
WAYS = {
    "fp32": Precision(CPU, None, False),
    "fp32 channels_last": Precision(CPU, None, True),
    "bf16": Precision(CPU, torch.bfloat16, False),
    "bf16 channels_last": Precision(CPU, torch.bfloat16, True),
}


class Candidate:
    """One network in one precision and memory format: a trained copy, and a folded one that only answers."""

    def __init__(self, network: Network, precision: Precision, inputs: Tensor) -> None:
        self.precision = precision
        self.trained = precision.place(copy.deepcopy(network)).train()
        self.answering = precision.place(fold_batchnorm(network))
        freeze(self.answering)
        layout = torch.channels_last if precision.channels_last else torch.contiguous_format
        self.inputs = inputs.contiguous(memory_format=layout)
        self.targets = torch.arange(len(inputs)) % network.num_classes

    def step(self) -> None:
        self.trained.zero_grad()
        with self.precision.autocast():
            logits = self.trained(self.inputs).logits
        F.cross_entropy(logits.float(), self.targets).backward()

    def answer(self) -> None:
        with torch.no_grad(), self.precision.autocast():
            self.answering(self.inputs)


def measure(name: str, side: int, channels: int, batch_size: int, rounds: int, watch: Stopwatch) -> dict[str, Any]:
    """Median milliseconds of a training step and of an answer in each way, all in turn."""
    half = (0.5,) * channels
    network = build_network(ModelSpec(name), inputs=Pixels(channels, (side, side), half, half), num_classes=10, seed=0)
    inputs = torch.rand(batch_size, channels, side, side, generator=torch.Generator().manual_seed(0))
    candidates = {way: Candidate(network, precision, inputs) for way, precision in WAYS.items()}
    picked = choose_precision("auto", None, network, CPU)
    calls = {
        (what, way): getattr(candidate, what) for way, candidate in candidates.items() for what in ("step", "answer")
    }
    for call in calls.values():
        call()
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    once = watch(calls["step", "fp32"])[0]
    repeats = max(1, round(20 / max(once, 1e-3)))  # steps of less than 20 ms are timed several at once
    for _ in range(rounds):
        for key, call in calls.items():
            spent[key].append(watch(partial(repeat, call, repeats))[0] / repeats)
    return {
        "network": name,
        "input": [channels, side, side],
        "macs": network.macs,
        "auto": next(way for way, precision in WAYS.items() if precision == picked),
        **{f"{what}_ms": {way: median(spent[what, way]) for way in WAYS} for what in ("step", "answer")},
    }


def repeat(call: Any, times: int) -> None:
    for _ in range(times):
        call()


def show(rows: list[dict[str, Any]], what: str) -> None:
    print(f"\n{what}, ms")
    print(f"  {'network':<20}{'MACs, M':>9}" + "".join(f"{way:>20}" for way in WAYS) + "   auto takes   x the fastest")
    for row in rows:
        times = row[f"{what}_ms"]
        cells = "".join(f"{times[way]:>20.2f}" for way in WAYS)
        loss = times[row["auto"]] / min(times.values())
        print(f"  {row['network']:<20}{row['macs'] / 1e6:>9.2f}{cells}   {row['auto']:<20}{loss:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time networks in each precision and memory format.")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_zoo()
    watch = Stopwatch(args.threads)
    rows = [measure(*network, args.batch_size, args.rounds, watch) for network in NETWORKS]
    for what in ("step", "answer"):
        show(rows, what)
    if args.json:
        write_result(args.json, {"batch_size": args.batch_size, "rounds": args.rounds, "networks": rows})


if __name__ == "__main__":
    main()
