"""``kill -9`` at any moment, and the same command again: the finished run has the same bits as an unbroken one."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from command_line import CommandLine, Trained, lasting, newest_step, run_folder, stock, until

from kdzoo.storage.run_folder import RunFolder

SEED = int(os.environ.get("KDZOO_TEST_SEED", "7"))  # when to kill; told where a test fails
KILLS = 8
EPOCHS, STEPS = 3, 28
STAGES = ("teacher", "student")

#: Everything a stage can have to remember: momenta, the best epoch so far, a moving average, half-done epochs, how many
#: answers of the teacher came from the store.
RECIPE: dict[str, Any] = {
    "cache": {"views": 2},
    "data": {"augment": "crop_flip"},
    "train": {
        "epochs": EPOCHS,
        "optimizer": {"lr": 0.2},
        "select": "best",
        "ema_decay": 0.9,
        "accumulate": 2,
        "checkpoint_seconds": 0,
    },
}


class Progress:
    """How far a run is, read from its folder as anyone could."""

    def __init__(self, out: Path, name: str, stages: tuple[str, ...], steps: int) -> None:
        self.out, self.name, self.stages, self.steps = out, name, stages, steps

    def __call__(self) -> int:
        """Optimizer steps that are safe on disk, over all stages."""
        for i, stage in reversed(list(enumerate(self.stages))):
            for folder in (self.out / self.name).glob("[0-9]*"):
                if step := newest_step(folder, stage):
                    return i * self.steps + step
        return 0


def killed(
    cli: CommandLine,
    moments: list[tuple[int, float]],
    changes: dict[str, Any],
    steps: int,
    stages: tuple[str, ...] = STAGES,
    fault: str | None = None,
) -> tuple[int, set[str], Path]:
    """Run to the end, killed once so many steps are safe and a moment has passed.

    Returns how many kills landed, the names of all tensors that were in checkpoints then, and the run folder.
    """
    out, path, landed, saved = cli.place / "out", cli.recipe(changes), 0, set()
    progress = Progress(out, "tiny", stages, steps)
    for step, delay in moments:
        step = max(step, progress() + 1)  # this process has to get on, too
        running = cli.start("run", path, "--out", out, fault=fault)
        reached = until(lambda step=step, running=running: progress() >= step or not running.alive, f"step {step}")
        time.sleep(delay)
        ended = running.kill()
        assert ended.code in (-9, 0), ended
        landed += reached and ended.code == -9
        for tensors in out.glob("tiny/*/checkpoints/*/[0-9]*/tensors.safetensors"):
            saved |= safetensors.torch.load_file(tensors).keys()
    ended = cli("run", path, "--out", out, fault=fault)
    assert ended.code == 0, ended
    assert not list(out.rglob(".kdzoo-*")), "temporary files are left"
    return landed, saved, run_folder(out)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cli = CommandLine(tmp_path_factory.mktemp("unbroken"))
    ended = cli("run", cli.recipe(RECIPE), "--out", "out")
    assert ended.code == 0, ended
    return run_folder(cli.place / "out")


@pytest.mark.costly(25)
def test_eight_kills_change_no_bit(cli: CommandLine, unbroken: Path) -> None:
    rng = random.Random(SEED)
    share = EPOCHS * STEPS * len(STAGES) // KILLS
    steps = [share * i + rng.randrange(2, share - 4) for i in range(KILLS)]
    assert sum(2 < step % STEPS < STEPS - 2 for step in steps) >= 4, "too few kills inside an epoch"
    moments = [(step, rng.uniform(0, 0.08)) for step in steps]  # so long take a step and its checkpoint
    landed, saved, folder = killed(cli, moments, RECIPE, EPOCHS * STEPS)
    assert landed >= KILLS, f"only {landed} of {KILLS} kills landed after progress (seed {SEED})"
    kinds = {"network/student/", "optimizer/student/", "ema/", "best/"}
    assert all(any(name.startswith(kind) for name in saved) for kind in kinds)
    assert lasting(folder) == lasting(unbroken)


@pytest.mark.costly(40)
def test_kills_while_the_results_are_written_leave_a_run_that_ends_whole(cli: CommandLine, trained: Trained) -> None:
    out = stock(cli.place / "out", trained.folder, "teacher", "student")
    path = cli.recipe({"trackers": ["tensorboard"]})
    held: list[set[str]] = []
    for call in range(1, 100, 2):  # every other call that changes the disk after training
        ended = cli("run", path, "--out", out, fault="die_late", env={"KDZOO_TEST_CALL": str(call)})
        assert ended.code in (-9, 0), ended
        folder = RunFolder.view(run_folder(out))
        if folder.finished:
            break
        held.append({file.name for file in folder.root.iterdir()})
    assert len(held) >= 8, "too few kills while the results were written"
    assert "student.json" not in held[0]
    assert "manifest.json" in held[-1]
    assert run_folder(out).name == "0001-seed0", "always the same run"
    assert not list(out.rglob(".kdzoo-*")), "temporary files are left"
    assert folder.finished
    assert folder.verify() >= 6
    assert lasting(folder.root) == lasting(trained.folder)


@pytest.mark.parametrize("fault", ["forget_the_optimizer", "order_by_the_clock"])
def test_the_comparison_finds_a_run_that_resumes_wrongly(cli: CommandLine, unbroken: Path, fault: str) -> None:
    stock(cli.place / "out", unbroken, "teacher")
    landed, _, folder = killed(cli, [(STEPS + 5, 0.0)], RECIPE, EPOCHS * STEPS, ("student",), fault)
    assert landed == 1
    one, other = lasting(folder), lasting(unbroken)
    assert one["results"]["teacher"] == other["results"]["teacher"], "the same teacher, out of the store"
    assert one["student"] != other["student"]
    assert one["metrics"] != other["metrics"]


@pytest.mark.parametrize(
    ("algorithm", "remembers"), [("adversarial_logits", "optimizer/discriminator/"), ("crd", "algorithm/")]
)
def test_a_kill_of_an_algorithm_with_a_state_of_its_own(
    cli: CommandLine, trained: Trained, tmp_path_factory: pytest.TempPathFactory, algorithm: str, remembers: str
) -> None:
    changes = {"algorithm": {"name": algorithm}, "train": {"epochs": 2, "checkpoint_seconds": 0}}
    other = CommandLine(tmp_path_factory.mktemp("unbroken"))
    for place in (cli.place, other.place):
        stock(place / "out", trained.folder, "teacher")
    landed, saved, folder = killed(cli, [(STEPS + 5, 0.03)], changes, 2 * STEPS, ("student",))
    assert landed == 1
    assert any(name.startswith(remembers) for name in saved)
    ended = other("run", other.recipe(changes), "--out", "out")
    assert "teacher: taken from the store" in ended.err
    assert lasting(folder) == lasting(run_folder(other.place / "out"))


@pytest.mark.costly(25)
def test_a_search_that_is_killed_asks_for_the_same_trials(
    cli: CommandLine, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> None:
    axis = {"arg": "stages", "values": [[[3], [6]], [[4], [8]], [[5], [10]], [[6], [12]]]}
    options = {"width": axis, "trials": 4, "trial_epochs": 1, "random_trials": 2, "side_by_side": 2}
    changes = {"algorithm": {"name": "nas_kd", "options": options}, "train": {"epochs": 2, "checkpoint_seconds": 0}}
    other = CommandLine(tmp_path_factory.mktemp("unbroken"))
    for place in (cli.place, other.place):
        stock(place / "out", trained.folder, "teacher")
    path, out, landed = cli.recipe(changes), cli.place / "out", 0
    stages = out / ".store" / "stage"
    for enough in (1, 3, 5):  # results that are in the store beside the teacher's
        running = cli.start("run", path, "--out", out)
        reached = until(lambda e=enough, r=running: len(list(stages.iterdir())) > e or not r.alive, f"{enough} trials")
        time.sleep(0.05)
        landed += reached and running.kill().code == -9
    assert landed == 3, "too few kills landed in the search"
    for line, where in ((cli, out), (other, other.place / "out")):
        ended = line("run", line.recipe(changes), "--out", where)
        assert ended.code == 0, ended
    folders = run_folder(out), run_folder(other.place / "out")
    assert lasting(folders[0]) == lasting(folders[1])
    journals = [(folder / "planning" / "journal.log").read_text().splitlines() for folder in folders]
    asked = [[re.sub(r'"(worker_id|datetime_\w+)":"[^"]*"', "", row) for row in rows] for rows in journals]
    assert asked[0] == asked[1]
    assert len(asked[0]) > 20
