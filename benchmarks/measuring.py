"""Time how a run measures its networks on 10,000 test images, in float32: plainly, as it does now, and the next time.

    python benchmarks/measuring.py --json benchmarks/results/measuring.json

With one thread the processor time of this process counts. The floor is the time in which this processor does the
multiply-adds of the answers as one large matrix product in float32.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as kdzoo's command line sets it

import numpy as np
import torch
from provenance import write_result
from step_time import BATCHES, Bench, Pair, Stopwatch, product_rates, settled

from kdzoo.evaluation.measuring import predict
from kdzoo.run.stored_logits import StoredLogits

TEST_IMAGES = 10_000


def measure(samples: int) -> dict[str, Any]:
    """Teacher and student of one pair, one after the other."""
    watch = Stopwatch(1)
    pair = Pair("cifar_resnet20", "cifar_resnet56", samples // BATCHES)
    rate = product_rates(watch)["fp32"]
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pair, Path(folder), watch)
        build = bench.builder
        build.data.test_gate.open()
        for network in (bench.teacher, settled(bench.student, bench.source)):
            kept: list[np.ndarray] = []

            def plainly(network: Any = network, kept: list[np.ndarray] = kept) -> None:
                kept.append(predict(network, build.test_batches(network.inputs))[0])

            def now(network: Any = network, kept: list[np.ndarray] = kept) -> None:
                kept.append(StoredLogits(build).of(network)[0])

            times = {name: watch(call)[0] / 1e3 for name, call in (("plain", plainly), ("first", now), ("next", now))}
            plain, first, again = kept
            entries.append(
                {
                    "network": network.spec.name,
                    "seconds": times | {"floor": network.macs * len(plain) / rate / 1e9},
                    "difference": float(np.abs(plain - first).max() / np.abs(plain).max()),
                    "other_predictions": int((plain.argmax(1) != first.argmax(1)).sum()),
                    "kept_is_equal": bool(np.array_equal(first, again)),
                }
            )
    return {"test_images": samples, "gmac_a_second": rate, "networks": entries}


def show(result: Mapping[str, Any]) -> None:
    print(f"seconds for {result['test_images']} images")
    for entry in result["networks"]:
        times = ", ".join(f"{name} {seconds:.1f}" for name, seconds in entry["seconds"].items())
        print(
            f"  {entry['network']}: {times}; logits differ by {entry['difference']:.0e} of the largest, "
            f"{entry['other_predictions']} predictions differ"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=TEST_IMAGES)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.samples)
    show(result)
    if options.json:
        write_result(options.json, {"seed": 0, **result})


if __name__ == "__main__":
    main()
