"""Slurm's executor against commands that do what Slurm's do, on this machine, and against submitit's local executor."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_tasks
import pytest
import submitit
from cluster_tasks import PATIENCE_S, work

from kdzoo.contract.execution import Pending, Resources
from kdzoo.errors import DataError, ExecutorError, Interrupted, LostError
from kdzoo_slurm import slurm_executor
from kdzoo_slurm.slurm_executor import SlurmExecutor, options_of

#: $SLURM holds a file a job: its number, the id of its process, its state.
COMMANDS = {
    "sbatch": """
        if grep -q partition=none "$1"; then echo "sbatch: error: invalid partition specified: none" >&2; exit 1; fi
        id=1; while ! mkdir $SLURM/$id 2>/dev/null; do id=$((id + 1)); done
        cp "$1" $SLURM/$id/script; env > $SLURM/$id/environment; echo RUNNING > $SLURM/$id/state
        if grep -q begin=never "$1"; then echo PENDING > $SLURM/$id/state; else
            SLURM_JOB_ID=$id SLURM_CPUS_PER_TASK=2 setsid bash "$1" > $SLURM/$id/output 2>&1 &
        fi
        echo "Submitted batch job $id"
    """,
    "srun": """
        while [ "${1#--}" != "$1" ]; do
            [ "$1" = --output ] && { out="${2//%j/$SLURM_JOB_ID}"; shift; }
            shift
        done
        job=$SLURM/$SLURM_JOB_ID; echo $$ > $job/pid.new; mv $job/pid.new $job/pid  # never seen empty
        exec "$@" >> "${out//%t/0}" 2>&1
    """,
    "sacct": """
        echo "JobID|State|NodeList"
        for job in $SLURM/*/; do
            pid=$(cat $job/pid 2>/dev/null) && { kill -0 $pid 2>/dev/null || echo FAILED > $job/state; }
            echo "$(basename $job)|$(cat $job/state)|here"
        done
    """,
    "scancel": """
        signal=TERM
        [ "${1#--signal=}" != "$1" ] && { signal="${1#--signal=}"; shift; }
        echo "$signal" >> $SLURM/$1/signals
        [ -e $SLURM/$1/pid ] && kill -$signal $(cat $SLURM/$1/pid) || echo CANCELLED > $SLURM/$1/state
    """,
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands keep their jobs."""
    commands, jobs = tmp_path / "bin", tmp_path / "jobs"
    for folder in (commands, jobs):
        folder.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text("#!/bin/bash\n" + textwrap.dedent(text))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM", str(jobs))
    monkeypatch.setattr(slurm_executor, "ASK_S", 0.5)
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 1)  # this disk is no network's
    return jobs


@pytest.fixture
def executors(slurm: Path, tmp_path: Path) -> Iterator[Any]:
    """What makes an executor and opens it; all are closed."""
    made: list[SlurmExecutor] = []

    def make(address: str = "", workers: int | None = None, cls: type[SlurmExecutor] = SlurmExecutor) -> SlurmExecutor:
        made.append(cls(address, workers, tmp_path / "logs"))
        made[-1].open()
        return made[-1]

    yield make
    for executor in made:
        executor.close()
        executor.close()


def submit(executor: SlurmExecutor, *tasks: str, **resources: int) -> list[Pending]:
    return [executor.submit(task, work, (task, b"abc"), Resources(**resources)) for task in tasks]


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_jobs_return_raise_and_leave_their_log(executors, slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "7")  # the driver is a job, too
    monkeypatch.setenv("SBATCH_QOS", "low")
    executor = executors("partition=cpu,time=1-0,exclusive")
    fine, bad, bug, exits = submit(executor, "fine", "bad data", "bug", "exits", threads=2)
    assert fine.result()[:3] == ("fine", 3, "2"), "srun gets the number of cores too"
    assert fine.log().count("fine speaks") == 1
    with pytest.raises(DataError, match=r"^no such file$"):
        bad.result()
    assert "bad data speaks" in bad.log()
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError: a bug"):
        bug.result()
    with pytest.raises(RuntimeError, match="SystemExit: bye"):
        exits.result()
    script = (slurm / "1" / "script").read_text()
    for line in ("partition=cpu", "time=1-0", "exclusive", "cpus-per-task=2", "signal=USR2@90", "job-name=kdzoo-fine"):
        assert f"#SBATCH --{line}\n" in script
    environment = (slurm / "1" / "environment").read_text()
    assert "SLURM_NTASKS" not in environment
    assert "SBATCH_QOS=low\n" in environment
    assert os.environ["SLURM_NTASKS"] == "7"
    assert "wckey" not in script
    assert "gpus" not in script
    left = {path.name for path in (tmp_path / "logs" / "slurm").iterdir() if not path.name.startswith(".")}
    assert left == {f"{job}_{what}" for job in (1, 2, 3, 4) for what in ("0_log.out", "submission.sh")}


def test_a_job_that_is_killed_is_lost_and_one_that_slurm_ends_is_lost_after_it_saved(executors, slurm):
    executor = executors("", 3)
    killed, ended = submit(executor, "killed", "long")
    wait_until(lambda: ended.told() == {"step": 3})
    os.kill(int((slurm / "2" / "pid").read_text()), signal.SIGUSR2)  # as ninety seconds before the time limit
    with pytest.raises(
        LostError, match=r"^long: Slurm ended job 2 \(its time limit, or another job\); it saved first$"
    ):
        ended.result()
    with pytest.raises(LostError, match=r"^killed: job 1 left no result; Slurm calls it FAILED$"):
        killed.result()
    assert "killed speaks" in killed.log()


def test_stop_signals_what_runs_cancels_what_is_queued_and_begins_nothing(executors, slurm):
    running, queued = executors("", 1), executors("begin=never", 1)
    long, held = submit(running, "long", "fine")
    (never,) = submit(queued, "fine")
    wait_until(long.told)
    assert not held.done()
    for executor in (running, queued):
        executor.ask_to_stop()
    for pending, text in ((long, "saved"), (held, "before it began"), (never, "asked to stop")):
        with pytest.raises(Interrupted, match=text) as error:
            pending.result()
        assert error.value.exit_code == 128 + signal.SIGTERM
    assert (slurm / "1" / "signals").read_text() == "SIGTERM\n"
    assert sorted(path.name for path in slurm.iterdir()) == ["1", "2"]


def test_a_node_that_lacks_what_runs_there_says_so(executors, monkeypatch):
    places = [place for place in os.environ["PYTHONPATH"].split(os.pathsep) if Path(place) != Path(__file__).parent]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    (pending,) = submit(executors(), "fine")
    with pytest.raises(
        ExecutorError, match=r"^slurm: fine: job 1 cannot begin: ModuleNotFoundError: .*'cluster_tasks'"
    ):
        pending.result()


def test_what_sbatch_refuses_and_options_that_are_none_are_errors(executors):
    (pending,) = submit(executors("partition=none"), "fine")
    with pytest.raises(ExecutorError) as error:
        pending.result()
    assert str(error.value) == (
        "slurm: sbatch refused the job of fine: sbatch: error: invalid partition specified: none"
    )
    with pytest.raises(ExecutorError, match=r"^slurm: 'gpu!' is no option of sbatch; write e\.g\. slurm://partition="):
        executors("time=5,gpu!")
    assert options_of("cpus-per-task=4,exclusive") == {"cpus_per_task": "4", "exclusive": True}


def test_a_machine_without_slurm_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorError) as error:
        SlurmExecutor("", None, tmp_path).open()
    assert str(error.value) == (
        "slurm: no sbatch, srun, scancel, sacct on this machine; start kdzoo on a machine of the cluster"
    )


def test_a_missing_library_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_executor, "find_spec", lambda name: None)
    with pytest.raises(ExecutorError) as error:
        SlurmExecutor("", None, tmp_path).open()
    assert str(error.value) == 'slurm: the library submitit is not installed; pip install "kdzoo[slurm]"'


class OnThisMachine(SlurmExecutor):
    """The same with submitit's local executor in place of its Slurm one."""

    def submitter(self, name: str, resources: Resources) -> Any:
        executor = submitit.LocalExecutor(self.folder)
        executor.update_parameters(timeout_min=PATIENCE_S / 60, stderr_to_stdout=True)
        return executor

    def cancel(self, job: Any, signal_name: str) -> None:
        os.kill(int(job.job_id), signal.SIGTERM)  # submitit's own cancel gives a job one second


def test_submitits_local_executor_runs_them_one_after_the_other(executors):
    assert cluster_tasks.__name__ == work.__module__
    executor = executors("", 1, OnThisMachine)
    *done, long = submit(executor, "one", "two", "long")
    (*_, begin, end), (*_, next_begin, _) = (pending.result() for pending in done)
    assert begin < end < next_begin, "it would start all of them at once"
    wait_until(lambda: long.done() or long.told() == {"step": 3})
    executor.ask_to_stop()
    with pytest.raises(Interrupted, match=r"^saved$"):
        long.result()
