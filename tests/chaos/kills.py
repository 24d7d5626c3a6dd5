"""Runs killed at random moments, and continued by the same command: not one bit may be lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from command_line import CommandLine, lasting, run_folder
from outcomes import Tally

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "digits"

#: Algorithms of every rung and scheme: caches, banks, discriminators, peers, chains, searches, generators, tasks.
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "kd": ("cache={views: 2}",),
    "fitnet": (),
    "crd": (),
    "review_kd": (),
    "adversarial_logits": (),
    "dml": ("train.ema_decay=0.9",),
    "takd": (),
    "mt_average": ("jobs=2",),
    "born_again": ("train.select=best",),
    "dafl": ("train.steps_per_epoch=12",),
    "lwf": (),
    "nas_kd": ("jobs=2", "algorithm.options.trials=3", "algorithm.options.trial_epochs=1"),
}
SHORT = ("train.epochs=2", "data.train_limit=320", "train.checkpoint_seconds=0", "control=false", "trackers=[]")
SAFE = ("device=cpu", "precision=fp32", "threads=1", "export=[]", "data.augment=none")
#: Who is killed: the run alone, it and all its workers, one of its workers, or it before a change of the disk.
TARGETS = ("parent", "group", "worker", "write")


def command(cli: CommandLine, name: str, out: Path, **settings: Any) -> Any:
    """Start the shortened recipe of an algorithm."""
    overrides = [part for text in (*SHORT, *SAFE, *ALGORITHMS[name]) for part in ("-o", text)]
    return cli.start("run", RECIPES / f"{name}.yaml", "--out", out, *overrides, **settings)


def progress(out: Path) -> int:
    """Checkpoints and stored stages there are: what a kill could lose."""
    return len(list(out.glob("*/*/checkpoints/*/[0-9]*"))) + len(list((out / ".store").glob("stage/*")))


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def strike(running: Any, target: str, rng: random.Random) -> bool:
    """Kill as ``target`` says; False where there was nothing left to kill."""
    if not running.alive:
        return False
    if target == "worker" and (workers := children(running.pid)):
        os.kill(rng.choice(workers), signal.SIGKILL)
        return running.wait().code != 0
    if target == "parent":
        running.signal(signal.SIGKILL)
        running.wait()
        return True
    return running.kill().code == -signal.SIGKILL


def kill(count: int, seed: int, place: Path) -> Tally:
    """Kill runs of every algorithm ``count`` times after they made progress, and compare each with an unbroken run."""
    rng = random.Random(f"kills {seed}")
    tally = Tally("kills", count)
    each = -(-count // len(ALGORITHMS))
    for name in ALGORITHMS:
        cli = CommandLine(place / name)
        cli.place.mkdir(parents=True)
        begin = time.monotonic()
        ended = command(cli, name, cli.place / "whole").wait(600)
        lasts = time.monotonic() - begin
        if ended.code != 0:
            tally.faults.append(f"{name}: the unbroken run ended with {ended.code}: {ended.err[-300:]}")
            continue
        whole = lasting(run_folder(cli.place / "whole", name_of(cli.place / "whole")))
        landed, tries, out = 0, 0, cli.place / "killed"
        while landed < each and tries < 4 * each:
            tries += 1
            target = rng.choice(TARGETS)
            call = {"KDZOO_TEST_CALL": str(rng.randrange(1, 120))} if target == "write" else {}
            running = command(cli, name, out, fault="die_before_a_change" if call else None, env=call)
            if call:
                struck = running.wait(600).code == -signal.SIGKILL
            else:
                time.sleep(rng.uniform(0.1, 0.9) * lasts)
                struck = strike(running, target, rng)
            if struck and progress(out):
                landed += 1
                tally.counts[f"of {target}"] += 1
            elif not struck:  # it was too quick; the next one starts afresh
                compare(tally, name, cli, out, whole)
                shutil.rmtree(out, ignore_errors=True)
        compare(tally, name, cli, out, whole)
        cli.end()
    control(tally, place)
    return tally


def name_of(out: Path) -> str:
    return next(path.name for path in out.iterdir() if not path.name.startswith("."))


def compare(tally: Tally, name: str, cli: CommandLine, out: Path, whole: dict[str, Any]) -> None:
    """Let the run go on to its end and hold it against the unbroken one."""
    ended = command(cli, name, out).wait(600)
    if ended.code != 0:
        tally.faults.append(f"{name}: after kills the same command ended with {ended.code}: {ended.err[-300:]}")
        return
    if left := [path.name for path in out.rglob(".kdzoo-*")]:
        tally.faults.append(f"{name}: temporary files are left: {', '.join(left[:3])}")
    got = lasting(run_folder(out, name_of(out)))
    for part, value in whole.items():
        if got[part] != value:
            tally.faults.append(f"{name}: {part} of a killed run differs from the unbroken one's")


def control(tally: Tally, place: Path) -> None:
    """A run that resumes wrongly must be found out, or all of the above says nothing."""
    cli = CommandLine(place / "control")
    cli.place.mkdir(parents=True)
    assert command(cli, "kd", cli.place / "whole").wait(600).code == 0
    whole = lasting(run_folder(cli.place / "whole", name_of(cli.place / "whole")))
    out = cli.place / "killed"
    for _ in range(20):
        running = command(cli, "kd", out, fault="die_before_a_change", env={"KDZOO_TEST_CALL": "60"})
        running.wait(600)
        if progress(out):
            break
    for _ in range(6):
        running = command(cli, "kd", out, fault="forget_the_optimizer")
        if running.wait(600).code == 0:
            break
    if lasting(run_folder(out, name_of(out))) == whole:
        tally.faults.append("the control: a run that forgot its optimizer passed for an unbroken one")
    cli.end()
