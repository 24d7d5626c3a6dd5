"""Time epochs of distillation at 224 pixels from JPEG files: where the time goes, and the engine against a plain loop.

    python benchmarks/epoch.py --json benchmarks/results/epoch.json

The loop by hand is the one of ``loops.py`` on the same batches, networks and precision; only its optimizer, losses and
order of work are its own. Engine and loop run one epoch each in turn, round after round; what counts is the processor
time of this process and its workers, which on a quiet machine is the time that passes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as kdzoo's command line sets it

import torch
from loading import Photographs, processor_seconds, write_files
from loops import distillation_loss
from provenance import write_result
from step_time import Bench, Pair, Steps, Stopwatch, engine_steps, way, way_name
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from kdzoo.contract.extension_points import DataSource
from kdzoo.contract.stage import ModelSpec
from kdzoo.contract.step import Batch
from kdzoo.models.network import Network
from kdzoo.recipe.sections import Recipe
from kdzoo.training.engine import Engine, Progress
from kdzoo.zoo.loading import load_zoo

PAIRS = {
    "mobilenet_v3": Pair("mobilenetv3_small_100", "resnet18", 32, (224, 224, 3), 2),
    "vit_ti": Pair("vit_tiny_patch16_224", "resnet18", 32, (224, 224, 3), 2),
}
SIZE = (500, 375)


class FileBench(Bench):
    """One pair over a folder of JPEG files."""

    source: DataSource  # type: ignore[assignment]  # files, not noise

    def __init__(self, pair: Pair, folder: Path, workers: int) -> None:
        self.pair, self.folder, self.workers = pair, folder, workers
        self.watch, self.zoo = Stopwatch(1), load_zoo()
        source = self.zoo.dataset("image_folder")
        self.source = source(source.Options(folder="images"))
        self.builder = self._builder("auto")
        self.student = self.builder.network(ModelSpec(pair.student))
        self.teacher = warm(self.builder.network(ModelSpec(pair.teacher), "teacher"))

    def _recipe(self, precision: str, cache: bool) -> Recipe:
        written = super()._recipe(precision, cache).model_dump(mode="json")
        files = {"name": "image_folder", "root": str(self.folder), "options": {"folder": "images"}}
        written["data"] |= files | {"augment": {"crop_scale": [0.08, 1.0], "flip": 0.5}, "workers": self.workers}
        return Recipe.model_validate(written)


def warm(teacher: Network) -> Network:
    """An untrained teacher whose BatchNorm statistics are of noise, so that its answers stay in range."""
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        teacher.train()(torch.rand(16, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    return teacher.eval()


class HandLoop:
    """Soft targets and labels, a folded teacher, each network in its own precision and memory format."""

    def __init__(self, bench: FileBench) -> None:
        builder = bench._builder("auto")
        self.loader = builder.loader
        self.ways = [way(builder.precision(network)) for network in (bench.student, bench.teacher)]
        self.student = self.ways[0].place(copy.deepcopy(bench.student.model).train())
        self.teacher = self.ways[1].place(fuse(copy.deepcopy(bench.teacher.model).eval()).requires_grad_(False))
        self.normal = [(network._mean, network._std) for network in (bench.student, bench.teacher)]
        settings = builder.recipe.train.optimizer
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), settings.lr, settings.momentum or 0.0, 0.0, settings.weight_decay, nesterov=True
        )
        self.batches = self._endless()

    def _endless(self) -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from self.loader.train_batches(epoch, epoch)

    def _inputs(self, pixels: Tensor, which: int) -> Tensor:
        mean, std = self.normal[which]
        return (pixels - mean).div_(std).contiguous(memory_format=self.ways[which].memory_format)

    def steps(self, count: int) -> None:
        for batch in itertools.islice(self.batches, count):
            with torch.no_grad(), self.ways[1].autocast():
                taught = self.teacher(self._inputs(batch.inputs, 1)).float()
            with self.ways[0].autocast():
                logits = self.student(self._inputs(batch.inputs, 0))
            loss = distillation_loss(logits.float(), taught, batch.targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def measure(pair: Pair, folder: Path, files: int, rounds: int, workers: int) -> dict[str, Any]:
    """Engine and loop over one pair, ``rounds`` epochs each after one to warm up."""
    bench = FileBench(pair, folder, workers)
    engine = Engine(bench.job("auto"))
    progress: list[Progress] = []
    engine.on_progress = progress.append
    loops: dict[str, Steps] = {"engine": engine_steps(engine), "hand-written": HandLoop(bench).steps}
    steps = files // pair.batch_size
    used: dict[str, list[float]] = {name: [] for name in loops}
    passed: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, loop in loops.items():
            before, began = processor_seconds(), time.perf_counter()
            loop(steps if turn else 1)
            if turn:
                passed[name].append(time.perf_counter() - began)
                used[name].append(processor_seconds() - before)
    samples = steps * pair.batch_size
    precisions = {"student": bench.student, "teacher": bench.teacher}
    return {
        "pair": pair.title,
        "precision": {name: way_name(bench.builder.precision(network)) for name, network in precisions.items()},
        "files_an_epoch": samples,
        "rounds": rounds,
        "images_per_s": {name: samples / median(seconds) for name, seconds in passed.items()},
        "processor_ms": {name: 1e3 * median(seconds) / samples for name, seconds in used.items()},
        "engine / hand-written": median(a / b for a, b in zip(used["engine"], used["hand-written"], strict=True)),
        "shares": dict(progress[-1].shares),
    }


def show(result: Mapping[str, Any]) -> None:
    print(f"\n{result['pair']}, {result['precision']['student']}, teacher {result['precision']['teacher']}")
    for name, rate in result["images_per_s"].items():
        print(f"  {name:<14}{rate:>8.1f} images/s{result['processor_ms'][name]:>9.1f} ms of processor time an image")
    print(f"  engine / hand-written {result['engine / hand-written']:.3f}")
    print("  " + ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items()) + " of the engine's time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--files", type=int, default=320, help="files of an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as place:
        write_files(Path(place) / "images", Photographs(*SIZE, options.files))
        for name in options.pairs:
            results.append(measure(PAIRS[name], Path(place), options.files, options.rounds, options.workers))
            show(results[-1])
    if options.json:
        write_result(options.json, {"seed": 0, "pairs": results})


if __name__ == "__main__":
    main()
