"""Time one training step of kdzoo's engine against loops written by hand, all in turn in one process.

    python benchmarks/step_time.py --json benchmarks/results/step_time.json

Machines are shared and clocks vary, so every round runs each loop for a few steps, and ratios are medians over rounds
of the ratio within a round. With one thread the processor time of this process is what counts: on a quiet machine it
is the time that passes, and on a busy one it leaves out the waiting for others. The time that passed is printed beside.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import numpy as np
import torch
from loops import HandLoop, PlainLoop, Setting, Way
from provenance import write_result
from torch import nn

from kdzoo.contract.extension_points import ArraySplit, DataSource, DataSplits, OfferOptions
from kdzoo.contract.stage import ModelSpec, Stage
from kdzoo.models.network import Network
from kdzoo.plan.resolve import Plan, resolve_algorithm
from kdzoo.recipe.sections import Recipe
from kdzoo.run.builder import Builder
from kdzoo.storage.store import Store
from kdzoo.training.device import Precision
from kdzoo.training.engine import Engine
from kdzoo.training.job import Job
from kdzoo.training.parallel import Ranks
from kdzoo.training.teacher import CachedTeacher
from kdzoo.zoo.loading import load_zoo

#: Batches in the synthetic training split: enough that the end of an epoch is rare.
BATCHES = 20
#: Views of the cache that is amortised.
VIEWS = 4
Steps = Callable[[int], None]


@dataclass(frozen=True)
class Pair:
    """A teacher and a student as the literature pairs them."""

    student: str
    teacher: str
    batch_size: int
    image: tuple[int, int, int] = (32, 32, 3)  # (H, W, C)
    classes: int = 100
    augment: str = "crop_flip"
    steps: int = 1  # of each loop in a round

    @property
    def title(self) -> str:
        return f"{self.student} from {self.teacher}, batch {self.batch_size}"


PAIRS = {
    "resnet8x4": Pair("cifar_resnet8x4", "cifar_resnet32x4", 64),
    "resnet20": Pair("cifar_resnet20", "cifar_resnet56", 128),
    "digits": Pair("digits_cnn_tiny", "digits_cnn", 64, (8, 8, 1), 10, "none", 20),
}


class Noise(DataSource):
    """Noise of a data set's shape: the time of a step does not depend on what the images show."""

    name = "noise"

    def __init__(self, options: OfferOptions, pair: Pair) -> None:
        super().__init__(options)
        rng = np.random.default_rng(0)
        samples = BATCHES * pair.batch_size
        self.pair = pair
        self.images = rng.integers(0, 256, (samples, *pair.image), dtype=np.uint8)
        self.targets = rng.integers(0, pair.classes, samples)
        self.targets[: pair.classes] = np.arange(pair.classes)

    def load(self, root: Path) -> DataSplits:
        split = ArraySplit(self.images, self.targets)
        height, width, channels = self.pair.image
        classes = tuple(map(str, range(self.pair.classes)))
        mean, std = (0.5,) * channels, (0.25,) * channels
        return DataSplits(split, lambda: split, classes, channels, (height, width), mean, std)


class Bench:
    """One pair with all loops over the same networks."""

    def __init__(self, pair: Pair, folder: Path, watch: Stopwatch) -> None:
        self.pair, self.folder, self.watch = pair, folder, watch
        self.zoo = load_zoo()
        self.source = Noise(OfferOptions(), pair)
        self.builder = self._builder("auto")
        self.student = self.builder.network(ModelSpec(pair.student))
        self.teacher = settled(self.builder.network(ModelSpec(pair.teacher), "teacher"), self.source)
        self.fill_ms = 0.0  # of the cache, a batch

    def _recipe(self, precision: str, cache: bool) -> Recipe:
        pair = self.pair
        return Recipe.model_validate(
            {
                "version": 1,
                "name": "step-time",
                "algorithm": {"name": "kd"},
                "models": {"teacher": {"name": pair.teacher}, "student": {"name": pair.student}},
                "data": {"name": "noise", "batch_size": pair.batch_size, "augment": pair.augment, "validation": 0},
                "train": {"epochs": 10_000},
                "cache": {"views": 1} if cache else None,
                "device": "cpu",
                "precision": precision,
            }
        )

    def _builder(self, precision: str, cache: bool = False) -> Builder:
        recipe = self._recipe(precision, cache)
        chosen, delegate = resolve_algorithm("kd", {}, {}, self.zoo)
        student, teacher = ModelSpec(self.pair.student), ModelSpec(self.pair.teacher)
        plan = Plan(recipe, Path("step_time"), chosen, delegate, student, (teacher,), (), (), self.source, (), (), {})
        return Builder(plan, Store(self.folder / "store"), Ranks())

    def job(self, precision: str, distil: bool = True, cache: bool = False) -> Job:
        builder = self._builder(precision, cache)
        stage = Stage("bench", ModelSpec(self.pair.student))
        chosen = builder.plan.algorithm if distil else None
        taught = [self.teacher.with_model(copy.deepcopy(self.teacher.model))] if distil else []
        job, _ = builder.job(stage, chosen, builder.recipe.train, taught)
        job.student.model.load_state_dict(self.student.model.state_dict())
        return job

    def engine(self, precision: str, **options: Any) -> Steps:
        return engine_steps(Engine(self.job(precision, **options)))

    def hand(self, precision: str) -> Steps:
        """The hand-written loop in the very precision that the engine picks for each network."""
        ways = [way(self._builder(precision).precision(network)) for network in (self.student, self.teacher)]
        return HandLoop(self.setting, self.student.model, self.teacher.model, *ways).steps

    @property
    def setting(self) -> Setting:
        optimizer, source = self.builder.recipe.train.optimizer, self.source
        return Setting(
            images=source.images,
            targets=source.targets,
            mean=self.builder.data.mean,
            std=self.builder.data.std,
            batch_size=self.pair.batch_size,
            crop_flip=self.pair.augment == "crop_flip",
            lr=optimizer.lr,
            momentum=optimizer.momentum or 0.0,
            weight_decay=optimizer.weight_decay,
        )

    def cached(self) -> Steps:
        """The engine with teacher outputs in the store; filling it is timed apart."""
        job = self.job("auto", cache=True)
        (teacher,) = job.teachers
        assert isinstance(teacher, CachedTeacher)
        assert job.loader is not None
        first = next(job.loader.train_batches(0, 0))
        self.fill_ms = self.watch(lambda: teacher.outputs(first))[0] / BATCHES
        return engine_steps(Engine(job))

    def loops(self) -> dict[str, Steps]:
        return {
            "plain": PlainLoop(self.setting, self.student.model, self.teacher.model).steps,
            "hand auto": self.hand("auto"),
            "engine auto": self.engine("auto"),
            "hand fp32": self.hand("fp32"),
            "engine fp32": self.engine("fp32"),
            "engine alone": self.engine("auto", distil=False),
            "engine cached": self.cached(),
        }

    def floor_ms(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Least time for the step's multiply-accumulates: one teacher forward, three times the student's."""
        macs = (self.teacher.macs + 3 * self.student.macs) * self.pair.batch_size
        return {precision: macs / rate / 1e6 for precision, rate in rates.items()}


def settled(teacher: Network, source: Noise) -> Network:
    """An untrained teacher whose BatchNorm statistics are of real activations, so that they stay in range."""
    images = torch.from_numpy(source.images[:256]).movedim(3, 1).float() / 255
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        teacher.train()(images)
    teacher.eval()
    return teacher


def way(precision: Precision) -> Way:
    return Way(precision.dtype, precision.channels_last)


def engine_steps(engine: Engine) -> Steps:
    """Let an engine run step by step; it goes on where it stopped."""
    left = 0

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left <= 0

    def steps(count: int) -> None:
        nonlocal left
        left = count
        engine.run(lambda _: None, stop)

    return steps


class Stopwatch:
    """Milliseconds by the clock that counts and, beside it, by the clock on the wall."""

    def __init__(self, threads: int) -> None:
        self.clock = time.process_time if threads == 1 else time.perf_counter

    def __call__(self, call: Callable[[], Any]) -> tuple[float, float]:
        counted, passed = self.clock(), time.perf_counter()
        call()
        return (self.clock() - counted) * 1e3, (time.perf_counter() - passed) * 1e3


@dataclass
class Race:
    """Milliseconds a step of each loop in each round."""

    counted: dict[str, list[float]]
    passed: dict[str, list[float]]

    def ratio(self, over: str, under: str) -> float:
        """Median over rounds of how many times longer one loop takes than another."""
        return median(one / other for one, other in zip(self.counted[over], self.counted[under], strict=True))


def race(loops: Mapping[str, Steps], rounds: int, steps: int, watch: Stopwatch) -> Race:
    """Run every loop in turn, round after round, after two steps of each to warm up."""
    for loop in loops.values():
        loop(2)
    result = Race({name: [] for name in loops}, {name: [] for name in loops})
    for _ in range(rounds):
        for name, loop in loops.items():
            counted, passed = watch(partial(loop, steps))
            result.counted[name].append(counted / steps)
            result.passed[name].append(passed / steps)
    return result


def product_rates(watch: Stopwatch) -> dict[str, float]:
    """Billions of multiply-accumulates a second in one large matrix product: about what this CPU can do."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one = torch.randn(1024, 1024).to(dtype)
        one @ one
        rates[name] = 1024**3 / min(watch(partial(torch.mm, one, one))[0] for _ in range(15)) / 1e6
    return rates


def measure(pair: Pair, rounds: int, threads: int, epochs: int) -> dict[str, Any]:
    """All loops of one pair, and the ratios that matter."""
    watch = Stopwatch(threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pair, Path(folder), watch)
        times = race(bench.loops(), rounds, pair.steps, watch)
    networks = {"student": bench.student, "teacher": bench.teacher}
    precisions = {name: bench.builder.precision(network) for name, network in networks.items()}
    rates = product_rates(watch)
    floors = bench.floor_ms(rates)
    middle = {name: median(values) for name, values in times.counted.items()}
    least = {name: min(values) for name, values in times.counted.items()}
    amortised = middle["engine cached"] + bench.fill_ms * min(VIEWS, epochs) / epochs
    return {
        "pair": pair.title,
        "precision": {name: way_name(precision) for name, precision in precisions.items()},
        "rounds": rounds,
        "steps_a_round": pair.steps,
        "median_ms": middle,
        "min_ms": least,
        "median_wall_ms": {name: median(values) for name, values in times.passed.items()},
        "fill_ms_a_batch": bench.fill_ms,
        "amortised_ms": amortised,
        "amortised_over": {"views": VIEWS, "epochs": epochs},
        "gmac_a_second": rates,
        "floor_ms": floors,
        "ratios": {
            "plain / engine auto": times.ratio("plain", "engine auto"),
            "plain / engine auto, of minima": least["plain"] / least["engine auto"],
            "plain / floor": middle["plain"] / floors[precisions["teacher"].name],
            "plain / amortised": middle["plain"] / amortised,
            "engine auto / hand auto": times.ratio("engine auto", "hand auto"),
            "engine auto / hand auto, of minima": least["engine auto"] / least["hand auto"],
            "engine fp32 / hand fp32": times.ratio("engine fp32", "hand fp32"),
            "engine fp32 / hand fp32, of minima": least["engine fp32"] / least["hand fp32"],
            "engine cached / engine alone": times.ratio("engine cached", "engine alone"),
            "engine cached / engine alone, of minima": least["engine cached"] / least["engine alone"],
        },
    }


def way_name(precision: Precision) -> str:
    return precision.name + (" channels_last" if precision.channels_last else "")


def show(result: Mapping[str, Any]) -> None:
    print(f"\n{result['pair']}  (student {result['precision']['student']}, teacher {result['precision']['teacher']})")
    print(f"  {'ms a step':<40}{'median':>9}{'min':>9}{'wall':>9}")
    for name, value in result["median_ms"].items():
        print(f"  {name:<40}{value:>9.2f}{result['min_ms'][name]:>9.2f}{result['median_wall_ms'][name]:>9.2f}")
    over = result["amortised_over"]
    spread = f"{over['views']} views, {over['epochs']} epochs"
    print(f"  {'cached, filling included':<40}{result['amortised_ms']:>9.2f}   {spread}")
    for name, value in result["floor_ms"].items():
        rate = result["gmac_a_second"][name]
        print(f"  {'its multiply-adds as one product':<40}{value:>9.2f}   {name}, {rate:.0f} GMAC/s")
    for name, value in result["ratios"].items():
        print(f"  {name:<40}{value:>9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step of the engine and of hand-written loops.")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30, help="epochs over which filling the cache is spread")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = []
    for name in args.pairs:
        results.append(measure(PAIRS[name], args.rounds, args.threads, args.epochs))
        show(results[-1])
    if args.json:
        write_result(args.json, {"seed": 0, "pairs": results})


if __name__ == "__main__":
    main()
