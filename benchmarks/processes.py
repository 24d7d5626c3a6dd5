"""Time two processes that train together against one, all in turn in the same two processes.

    python benchmarks/processes.py --json benchmarks/results/processes.json

The machine must be quiet and have two cores: what counts is the time that passes. Processor time and the collectives
of a step are printed beside it; both hold on a busy machine too. "apart" is two processes that train half of each batch
without a word to each other: as fast as two processes can be here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import torch
import torch.distributed as dist
from provenance import write_result
from step_time import PAIRS, Bench, Pair, Steps, Stopwatch, engine_steps, way_name

from kdzoo.contract.stage import ModelSpec, Stage
from kdzoo.recipe.sections import Recipe
from kdzoo.run.builder import Builder
from kdzoo.storage.store import Store
from kdzoo.training.engine import Engine
from kdzoo.training.parallel import Ranks

PROCESSES = 2
#: Each arm: what it is called, in how many processes it runs, threads of each, whether they talk, BatchNorm.
ARMS = {
    "one": ("one process, one thread", 1, 1, False, "global"),
    "threads": ("one process, two threads", 1, 2, False, "global"),
    "local": ("two processes, batch_norm: local", 2, 1, True, "local"),
    "global": ("two processes, batch_norm: global", 2, 1, True, "global"),
    "apart": ("two processes apart", 2, 1, False, "global"),
}
COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "all_gather", "broadcast", "all_gather_object")


class Arms(Bench):
    """The arms of one pair in one of the processes."""

    def steps_of(self, arm: str) -> Steps:
        _, processes, threads, together, batch_norm = ARMS[arm]
        share = 1 if together else processes
        recipe = self._recipe("auto", False).model_dump(mode="json")
        recipe["data"]["batch_size"] = self.pair.batch_size // share
        recipe["train"] |= {"batch_norm": batch_norm}
        plan = replace(self.builder.plan, recipe=Recipe.model_validate(recipe))
        builder = Builder(plan, Store(self.folder / "store"), Ranks("cpu") if together else alone())
        stage = Stage("bench", ModelSpec(self.pair.student))
        job, _ = builder.job(stage, plan.algorithm, builder.recipe.train, [self.teacher])
        steps = engine_steps(Engine(job))

        def with_threads(count: int) -> None:
            torch.set_num_threads(threads)
            steps(count)
            torch.set_num_threads(1)

        return with_threads


def alone() -> Ranks:
    """One process, whatever the environment says of others."""
    ranks = Ranks.__new__(Ranks)
    world = {name: os.environ.pop(name) for name in ("WORLD_SIZE", "RANK")}
    Ranks.__init__(ranks)
    os.environ.update(world)
    return ranks


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the collectives that are started inside."""
    calls: Counter[str] = Counter()
    real = {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            calls[name] += 1
            return real[name](*arguments, **settings)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    try:
        yield calls
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def work(rank: int, port: int, pair: Pair, folder: str, orders: Any) -> None:
    """In one process: make the arms, then run as many steps of one as is ordered, until None is."""
    os.environ |= {"WORLD_SIZE": str(PROCESSES), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    together = Ranks("cpu")
    world = {name: os.environ.pop(name) for name in ("WORLD_SIZE", "RANK")}
    arms = Arms(pair, Path(folder) / str(rank), Stopwatch(1))  # which makes a run of one process
    os.environ.update(world)
    steps = {name: arms.steps_of(name) for name in ARMS}
    networks = (arms.student, arms.teacher)
    orders.send([way_name(arms.builder.precision(network)) for network in networks])
    while (order := orders.recv()) is not None:
        name, count = order
        passed, used = time.perf_counter(), time.process_time()
        with counted() as calls:
            steps[name](count)
        orders.send((time.perf_counter() - passed, time.process_time() - used, sum(calls.values())))
    together.close()


def measure(pair: Pair, rounds: int, steps: int, names: list[str]) -> dict[str, Any]:
    """All arms of one pair, in turn in each round: ms a step, processor ms a step, collectives a step."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        pipes, workers = [], []
        for rank in range(PROCESSES):
            mine, theirs = context.Pipe()
            workers.append(context.Process(target=work, args=(rank, port, pair, folder, theirs)))
            workers[-1].start()
            theirs.close()
            pipes.append(mine)
        precisions, *_ = [pipe.recv() for pipe in pipes]
        found: dict[str, dict[str, list[float]]] = {
            name: {"wall_ms": [], "processor_ms": [], "collectives": []} for name in names
        }
        for turn in range(rounds + 1):
            for name in names:
                using = pipes[: ARMS[name][1]]
                for pipe in using:
                    pipe.send((name, steps))
                answers = [pipe.recv() for pipe in using]
                if turn:  # the first round warms up
                    found[name]["wall_ms"].append(max(answer[0] for answer in answers) * 1e3 / steps)
                    found[name]["processor_ms"].append(sum(answer[1] for answer in answers) * 1e3 / steps)
                    found[name]["collectives"].append(answers[0][2] / steps)
        for pipe in pipes:
            pipe.send(None)
        for worker in workers:
            worker.join()
    middle = {name: {kind: median(values) for kind, values in of.items()} for name, of in found.items()}
    ratios = {
        name: median(one / other for one, other in zip(found["one"]["wall_ms"], found[name]["wall_ms"], strict=True))
        for name in names
    }
    return {
        "pair": pair.title,
        "precision": dict(zip(("student", "teacher"), precisions, strict=True)),
        "rounds": rounds,
        "steps_a_round": steps,
        "median": middle,
        "times_one_process": ratios,
    }


def show(result: Mapping[str, Any]) -> None:
    print(f"\n{result['pair']}  (student {result['precision']['student']}, teacher {result['precision']['teacher']})")
    print(f"  {'a step, median':<36}{'ms':>9}{'processor ms':>14}{'collectives':>13}{'times one':>11}")
    for name, values in result["median"].items():
        row = f"{values['wall_ms']:>9.1f}{values['processor_ms']:>14.1f}{values['collectives']:>13g}"
        print(f"  {ARMS[name][0]:<36}{row}{result['times_one_process'][name]:>11.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["resnet20"], choices=PAIRS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of each arm in a round")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    names = list(dict.fromkeys(["one", *given.arms]))
    results, load = [], os.getloadavg()[0]
    for name in given.pairs:
        results.append(measure(PAIRS[name], given.rounds, given.steps, names))
        show(results[-1])
    if given.json:
        write_result(
            given.json, {"load_before": load, "arms": {name: ARMS[name][0] for name in names}, "pairs": results}
        )


if __name__ == "__main__":
    main()
