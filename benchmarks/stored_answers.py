"""Time a training step that reads a teacher's stored answers against one of the student alone, in turn in one process.

    KDZOO_DATA=data python benchmarks/stored_answers.py recipes/cifar100/kd_top10.yaml

The answers are in the store before the clock starts. They are those of an untrained teacher, which changes no time. The
share of hits that a run computes again (``cache.verify_fraction``) is in the figures.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from step_time import Steps, Stopwatch, engine_steps, race

from kdzoo.contract.stage import Stage
from kdzoo.plan.opening import open_recipe
from kdzoo.run.builder import Builder
from kdzoo.storage.store import Store
from kdzoo.training.engine import Engine
from kdzoo.training.parallel import Ranks

#: What is stored of the teacher's answers, by override of the recipe.
STORED = {"all logits": "cache.keep=null", "10 likeliest": "cache.keep={top_k: 10, dtype: float16}"}


def steps_of(recipe: Path, overrides: list[str], store: Path, distil: bool = True) -> Steps:
    """Training steps of a recipe's student at its first view, the answers stored."""
    _, plan, _ = open_recipe(recipe, ["cache.views=1", "train.epochs=1000", *overrides])
    builder = Builder(plan, Store(store), Ranks())
    taught = [builder.network(plan.teachers[0])] if distil else []
    stage = Stage("bench", plan.student)
    job, _ = builder.job(stage, plan.algorithm if distil else None, builder.train_section(stage), taught)
    assert job.loader is not None
    for teacher in job.teachers:
        teacher.outputs(next(job.loader.train_batches(0, 0)))
    return engine_steps(Engine(job))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step with a teacher's stored answers.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--override", action="append", default=[], help="a key of the recipe; repeatable")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=3, help="of each in a round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        loops = {"student alone": steps_of(args.recipe, args.override, place, distil=False)}
        loops |= {name: steps_of(args.recipe, [*args.override, kept], place) for name, kept in STORED.items()}
        times = race(loops, args.rounds, args.steps, Stopwatch(threads=1))
    print(f"{'ms a step':<16}{'median':>9}{'min':>9}{'wall':>9}{'/ alone':>9}")
    for name, counted in times.counted.items():
        ratio = times.ratio(name, "student alone")
        print(f"{name:<16}{median(counted):>9.2f}{min(counted):>9.2f}{median(times.passed[name]):>9.2f}{ratio:>9.3f}")


if __name__ == "__main__":
    main()
