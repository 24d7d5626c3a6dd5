"""Two processes train what one would, stop together, and never wait for one that is gone."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CommandLine, Ended, Running, Trained, lasting, newest_step, results, run_folder, stock, until
from safetensors.torch import load
from test_refusals import PLUGINS, refused
from test_signals import said

from kdzoo.storage.sealed import read_tensors

#: Ten steps: long enough to differ, short enough for rounding not to grow.
FEW: dict[str, Any] = {"train": {"epochs": 2, "steps_per_epoch": 5}, "data": {"augment": "flip"}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two(
    cli: CommandLine,
    *arguments: Any,
    fault: str | None = None,
    each: tuple[tuple[Any, ...], ...] = ((), ()),
    faults: tuple[str | None, ...] | None = None,
    env: Mapping[str, str] | None = None,
) -> list[Running]:
    """Start two processes of one run, as torchrun would."""
    port = str(free_port())
    return [
        cli.start(
            *arguments,
            *each[rank],
            fault=faults[rank] if faults else fault,
            env={
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "KDZOO_COLLECTIVE_TIMEOUT": "60",
                "CUDA_VISIBLE_DEVICES": "",
                **(env or {}),
            },
        )
        for rank in (0, 1)
    ]


def ended(processes: list[Running], *codes: int) -> list[Ended]:
    both = [process.wait() for process in processes]
    assert [one.code for one in both] == list(codes), "\n".join(map(str, both))
    return both


def student(out: Path, name: str = "tiny") -> dict[str, torch.Tensor]:
    folder = run_folder(out, name)
    return read_tensors(folder / "student.safetensors", json.loads((folder / "student.json").read_text())["sha256"])


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of a weight or a running statistic, relative to its tensor's largest."""
    assert one.keys() == other.keys()
    floats = [name for name, value in one.items() if value.is_floating_point()]
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max().clamp(min=1e-6)) for n in floats)


def teacher_alone(trained: Trained, **changes: Any) -> dict[str, Any]:
    """Changes to the tiny recipe with which no teacher has to be trained: its weights come from a file."""
    keys = {stage["name"]: stage["key"] for stage in results(trained.folder)["stages"]}
    (stored,) = (trained.folder.parent.parent / ".store" / "stage").glob(f"{keys['teacher']}*")
    return {
        **FEW,
        "models": {"teacher": {"name": "digits_cnn_small", "weights": str(stored / "student.safetensors")}},
        **changes,
    }


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> dict[str, torch.Tensor]:
    cli = CommandLine(tmp_path_factory.mktemp("one"))
    alone = cli("run", cli.recipe(teacher_alone(trained)), "--out", "out")
    assert alone.code == 0, alone
    return student(cli.place / "out")


def test_two_processes_train_what_one_does(
    cli: CommandLine, trained: Trained, one_process: dict[str, torch.Tensor]
) -> None:
    path = cli.recipe(teacher_alone(trained))
    first, second = ended(two(cli, "run", path, "--out", "out", fault="note_state"), 0, 0)
    assert furthest(student(cli.place / "out"), one_process) < 1e-4
    assert any(name.endswith("running_var") for name in one_process)
    states = [json.loads((cli.place / f"state-student-{rank}.json").read_text()) for rank in (0, 1)]
    assert states[0] == states[1]
    assert "run folder" in first.out
    assert (second.out, second.err) == ("", ""), "only the first process speaks"
    assert json.loads((run_folder(cli.place / "out") / "provenance.json").read_text())["processes"] == 2


def test_statistics_of_half_a_batch_are_another_training_and_the_same_on_both(
    cli: CommandLine, trained: Trained, one_process: dict[str, torch.Tensor]
) -> None:
    path = cli.recipe(teacher_alone(trained))
    ended(two(cli, "run", path, "--out", "out", "-o", "train.batch_norm=local", fault="note_state"), 0, 0)
    assert furthest(student(cli.place / "out"), one_process) > 1e-2, "otherwise the comparison above finds nothing"
    states = [json.loads((cli.place / f"state-student-{rank}.json").read_text()) for rank in (0, 1)]
    assert states[0] == states[1]


@pytest.mark.slow
def test_torchrun_starts_a_run_with_stored_outputs(
    cli: CommandLine, trained: Trained, one_process: dict[str, torch.Tensor]
) -> None:
    path = cli.recipe(teacher_alone(trained, cache={"views": 2, "verify_fraction": 1.0}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    whole = cli.shell(*torchrun, "-m", "kdzoo", "run", path, "--out", "out", env={"CUDA_VISIBLE_DEVICES": ""}).wait()
    assert whole.code == 0, whole
    assert whole.out.count("run folder: out/tiny/0001-seed0") == 1
    assert furthest(student(cli.place / "out"), one_process) < 1e-4
    (hits,) = results(run_folder(cli.place / "out"))["stages"][-1]["teacher_outputs"]
    assert hits["samples"] == hits["verified"] == 10 * 16


@pytest.mark.slow
def test_kdzoo_starts_the_processes_itself_and_stops_them_together(
    cli: CommandLine, trained: Trained, one_process: dict[str, torch.Tensor]
) -> None:
    path = cli.recipe(teacher_alone(trained))
    save_each_step = ["-o", "train.checkpoint_seconds=0"]
    kdzoo = [sys.executable, "-m", "kdzoo", "run", path, "--out", "out", "--processes", 2, *save_each_step]
    running = cli.shell(*kdzoo, env={"CUDA_VISIBLE_DEVICES": ""})
    until(lambda: "student: training" in running.err, "the training", 100)
    running.signal(signal.SIGINT)
    stopped = running.wait()
    assert stopped.code == 130, stopped
    assert stopped.err.count("stopped in stage 'student' at step ") == 1, stopped
    whole = cli.shell(*kdzoo, env={"CUDA_VISIBLE_DEVICES": ""}).wait()
    assert whole.code == 0, whole
    assert "stage 'student' resumed at step " in whole.err
    assert whole.out.count("run folder: out/tiny/0001-seed0") == 1
    assert furthest(student(cli.place / "out"), one_process) < 1e-4


@pytest.mark.parametrize("algorithm", ["crd", "adversarial_logits", "dafl", "fitnet"])
def test_what_an_algorithm_trains_and_remembers_is_the_same_on_both(
    cli: CommandLine, trained: Trained, algorithm: str
) -> None:
    path = cli.recipe(teacher_alone(trained, algorithm={"name": algorithm}))
    ended(two(cli, "run", path, "--out", "out", fault="note_state"), 0, 0)
    states = [json.loads((cli.place / f"state-student-{rank}.json").read_text()) for rank in (0, 1)]
    assert any(name.startswith(("algorithm/", "network/")) and "/student/" not in name for name in states[0])
    different = [name for name, value in states[0].items() if value != states[1][name]]
    assert not different


# --- ends --------------------------------------------------------------------------------------


def in_the_second_epoch(cli: CommandLine, trained: Trained) -> tuple[list[Any], list[Running]]:
    changes = teacher_alone(trained, train={"epochs": 3, "steps_per_epoch": 20})
    command = ["run", cli.recipe(changes), "--out", "out"]
    processes = two(cli, *command, fault="slow_steps")
    said(processes[0], "student epoch 1/3")
    time.sleep(0.1)
    return command, processes


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> dict[str, Any]:
    cli = CommandLine(tmp_path_factory.mktemp("unbroken"))
    changes = teacher_alone(trained, train={"epochs": 3, "steps_per_epoch": 20})
    ended(two(cli, "run", cli.recipe(changes), "--out", "out"), 0, 0)
    return lasting(run_folder(cli.place / "out"))


GONE = "error: another process of this run ended or does not answer; its own error says why. Start all processes again "


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_the_run_goes_on(
    cli: CommandLine, trained: Trained, unbroken: dict[str, Any], dead: int
) -> None:
    command, processes = in_the_second_epoch(cli, trained)
    processes[dead].kill()
    killed = time.monotonic()
    left = processes[1 - dead].wait(30)
    assert time.monotonic() - killed < 15
    assert left.code == 10, left
    assert "Traceback" not in left.err
    assert GONE in left.err
    assert newest_step(run_folder(cli.place / "out"), "student") == 20
    both = ended(two(cli, *command), 0, 0)
    assert "stage 'student' resumed at step 20" in both[0].err
    assert lasting(run_folder(cli.place / "out")) == unbroken


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_stops_both_at_the_same_step(
    cli: CommandLine, trained: Trained, unbroken: dict[str, Any], told: int
) -> None:
    command, processes = in_the_second_epoch(cli, trained)
    processes[told].signal(signal.SIGTERM)
    both = ended(processes, 143, 143)
    step = newest_step(run_folder(cli.place / "out"), "student")
    assert 20 < step < 60
    for one in both:
        assert one.err.splitlines()[-1].startswith(f"stopped in stage 'student' at step {step}; state saved")
    if told == 0:
        alone = cli(*command)
        refused(
            alone,
            2,
            "stage 'student' was begun by 2 processes and cannot be continued by 1; start 2, or a new run with --new",
        )
    ended(two(cli, *command), 0, 0)
    assert lasting(run_folder(cli.place / "out")) == unbroken


def test_a_sharded_student_is_that_of_whole_ones_also_after_a_resume(
    cli: CommandLine, trained: Trained, unbroken: dict[str, Any]
) -> None:
    changes = teacher_alone(trained, train={"epochs": 3, "steps_per_epoch": 20, "shard": True})
    command = ["run", cli.recipe(changes)]
    processes = two(cli, *command, "--out", "out", fault="slow_steps_in_small_blocks")
    said(processes[0], "student epoch 1/3")
    time.sleep(0.1)
    processes[1].signal(signal.SIGTERM)
    ended(processes, 143, 143)
    assert 20 < newest_step(run_folder(cli.place / "out"), "student") < 60
    ended(two(cli, *command, "--out", "out", fault="slow_steps_in_small_blocks"), 0, 0)
    assert furthest(student(cli.place / "out"), load(unbroken["student"])) < 1e-6


@pytest.mark.slow
def test_what_is_sharded_is_clipped_chosen_and_split_into_parts_too(cli: CommandLine) -> None:
    """Peers, gradient clipping, the best epoch and micro-batches, sharded and not."""
    changes = {
        "algorithm": {"name": "dml"},
        "models": {"teacher": None, "peers": [{"name": "digits_cnn_tiny"}]},
        "train": {**FEW["train"], "select": "best", "grad_clip_norm": 0.5, "accumulate": 2},
    }
    students = []
    for shard in (True, False):
        out = f"shard-{shard}".lower()
        path = cli.recipe({**changes, "train": {**changes["train"], "shard": shard}}, out)
        ended(two(cli, "run", path, "--out", "out", fault="small_blocks"), 0, 0)
        students.append(student(cli.place / "out", out))
    assert furthest(*students) < 1e-6


def test_a_process_that_hangs_is_not_waited_for_for_ever(cli: CommandLine, trained: Trained) -> None:
    changes = teacher_alone(trained, train={"epochs": 3, "steps_per_epoch": 20})
    faults = (None, "endless_step")
    processes = two(
        cli, "run", cli.recipe(changes), "--out", "out", faults=faults, env={"KDZOO_COLLECTIVE_TIMEOUT": "3"}
    )
    left = processes[0].wait(30)
    assert left.code == 10, left
    assert "Traceback" not in left.err
    assert GONE in left.err
    assert "Timed out waiting 3000ms" in left.err
    assert newest_step(run_folder(cli.place / "out"), "student") == 40, "what was saved before is still there"


def test_what_is_not_finite_on_one_ends_both_and_names_the_whole_batch(cli: CommandLine, trained: Trained) -> None:
    algorithm = {"name": "exploding", "options": {"how": "loss", "step": 7, "rank": 1}}
    path = cli.recipe(teacher_alone(trained, algorithm=algorithm))
    plugin = {"PYTHONPATH": str(PLUGINS / "exploding")}
    both = ended(two(cli, "run", path, "--out", "out", env=plugin), 6, 6)
    for one in both:
        assert "stage 'student', step 7: loss term 'hint' is nan; no update was made" in one.err
    dump = json.loads((run_folder(cli.place / "out") / "nan_dump.json").read_text())
    assert len(set(dump["sample_indices"])) == 32


# --- refusals ----------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_shared_is_refused(cli: CommandLine) -> None:
    path = cli.recipe({"data": {"batch_size": 33}})
    for one in ended(two(cli, "run", path, "--out", "out"), 2, 2):
        assert one.code == 2, one
        assert one.err.endswith(" data.batch_size: 33 samples cannot be shared evenly by 2 processes\n"), one
        assert f"error: {path}: 1 problem\n  line " in one.err


def test_a_gpu_that_is_there_is_left_alone_where_the_recipe_names_the_cpu(cli: CommandLine, trained: Trained) -> None:
    path = cli.recipe(teacher_alone(trained, train={"epochs": 1, "steps_per_epoch": 1}))
    ended(two(cli, "run", path, "--out", "out", fault="one_gpu"), 0, 0)
    alone = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    second = cli("run", path, "--out", "out", "--device", "cuda", fault="one_gpu", env=alone)
    refused(
        second,
        2,
        "device: process 1 of this machine has no GPU of its own (1 found); start fewer processes, or use 'cpu'",
    )


def test_processes_with_different_recipes_refuse_to_go_on(cli: CommandLine) -> None:
    each = ((), ("-o", "train.epochs=7"))
    for one in ended(two(cli, "run", cli.recipe(), "--out", "out", each=each), 10, 10):
        assert "Traceback" not in one.err
        assert one.err.startswith("error: the 2 processes disagree on the recipe: ")
    assert not list((cli.place / "out").glob("tiny/*"))


def test_an_error_of_the_first_process_ends_the_second(cli: CommandLine, trained: Trained) -> None:
    out = stock(cli.place / "out", trained.folder, "teacher")
    path = cli.recipe()
    running = cli.start("run", path, "--out", out, fault="endless_step")
    said(running, "endless")
    first, second = ended(two(cli, "run", path, "--out", out), 5, 10)
    assert f"in use by process {running.pid} on host" in first.err
    assert GONE in second.err
    until(lambda: running.alive, "the owner")
