"""Chaos: kills, damaged files, changed recipes and odd inputs, counted.

    python tests/chaos/run.py [--kills 60] [--corruptions 400] [--recipes 5000] [--inputs 2000] [--seed N]

It prints what it counted and ends with 1 on one lost bit, one silent acceptance, one traceback or one hang. The seed is
printed, so that what was found can be found again.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "end_to_end")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Run what is asked for, one kind after the other."""
    import corruptions
    import inputs
    import kills

    import recipes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = {"kills": 60, "corruptions": 400, "recipes": 5000, "inputs": 2000}
    for name, count in wanted.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"how many; {count} if left out, 0 for none")
    parser.add_argument("--seed", type=int, default=None, help="seed of everything random; drawn if left out")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    good = True
    kinds = (
        ("recipes", asked.recipes, recipes.fuzz),
        ("inputs", asked.inputs, inputs.fuzz),
        ("corruptions", asked.corruptions, corruptions.corrupt),
        ("kills", asked.kills, kills.kill),
    )
    for name, count, chaos in kinds:
        if not count:
            continue
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"kdzoo-chaos-{name}-") as place:
            folder = Path(place) / "work"
            folder.mkdir()
            tally = chaos(count, seed, folder)
        print(f"{tally}\n  {(time.monotonic() - begin) / 60:.1f} min", flush=True)
        good = good and tally.good
    print("nothing was lost" if good else "FAULTS were found", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
