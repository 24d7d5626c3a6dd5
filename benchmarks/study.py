"""How close a study comes to the ideal: 16 short stages on 2 workers, start-up aside.

    python benchmarks/study.py            # measures what is missing, then prints the table; a minute or two
    python benchmarks/study.py --fresh    # measures again

Sixteen runs of one stage each (byot on digits, sixteen seeds) go through the driver and the local executor. Before the
clock starts, other short stages start the workers, so that imports are left out. The ideal is the stages' own training
seconds, as they record them, over the number of workers. Each repetition has a store of its own and is kept in
benchmarks/results/study.json, so that a killed call goes on. Run it on a quiet machine: what neighbours take counts
against the driver.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from kdzoo.processes.local import LocalExecutor
from kdzoo.recipe.bundled import find_recipe
from kdzoo.recipe.reading import load_recipe
from kdzoo.run.provenance import commit_of_source
from kdzoo.storage.atomic import write_json
from kdzoo.study.driver import run_all
from kdzoo.study.wanted import WantedRun
from kdzoo.zoo.loading import load_zoo

RESULTS = Path(__file__).parent / "results" / "study.json"
STAGES, REPETITIONS = 16, 3
CHANGES = (
    "control=false",
    "trackers=[]",
    "threads=1",
    "device=cpu",
    "train.checkpoint_seconds=3600",
)


def wanted(epochs: int, seeds: range) -> list[WantedRun]:
    """Runs of one stage each."""
    path = find_recipe(Path("digits/byot"))
    changes = [*CHANGES, f"train.epochs={epochs}"]
    return [WantedRun("byot", load_recipe(path, [*changes, f"seed={seed}"])) for seed in seeds]


def measure(workers: int, epochs: int) -> dict[str, Any]:
    """Train the stages once; return the seconds that passed, and those that each stage took."""
    zoo = load_zoo()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        executor = LocalExecutor("", workers, out)
        executor.open()
        try:
            warm = range(1000, 1000 + 2 * workers)
            run_all(wanted(1, warm), executor, out, zoo, finish=False)
            begin = time.perf_counter()
            outcomes = run_all(wanted(epochs, range(STAGES)), executor, out, zoo, finish=False)
            seconds = time.perf_counter() - begin
        finally:
            executor.close()
    stages = {each.result.key: each.facts["seconds"] for outcome in outcomes for each in outcome.stages}
    assert all(outcome.status == "finished" for outcome in outcomes)
    assert len(stages) == STAGES
    return {"seconds": seconds, "stages": sorted(stages.values()), "ideal": sum(stages.values()) / workers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20, help="of each stage")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--fresh", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() and not given.fresh else {}
    about = {"workers": given.workers, "epochs": given.epochs, "commit": commit_of_source()}
    runs = known.get("runs", []) if {key: known.get(key) for key in about} == about else []
    while len(runs) < given.repetitions:
        runs.append(measure(given.workers, given.epochs))
        machine = f"{platform.machine()}, torch {torch.__version__}"
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, {**about, "machine": machine, "runs": runs})
    shares = [run["ideal"] / run["seconds"] for run in runs]
    for run, share in zip(runs, shares, strict=True):
        print(f"{run['seconds']:7.2f} s for {STAGES} stages of {sum(run['stages']):6.2f} s: {share:.1%} of ideal")
    print(f"median {statistics.median(shares):.1%}, asked for 85 %")


if __name__ == "__main__":
    main()
