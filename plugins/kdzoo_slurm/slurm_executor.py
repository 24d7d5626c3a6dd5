"""Tasks as Slurm jobs, one a task, through submitit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdzoo.api.execution import Executor, ExecutorError, Failure, LostError, Pending, Resources, WaitingTasks
from kdzoo_slurm.slurm_work import call

#: Jobs that are in Slurm's queue at once, unless the user says how many.
JOBS = 16

#: Seconds between two questions to Slurm about jobs that have left no result.
ASK_S = 20.0

#: Bytes of a job's output that are shown, from its end.
KEPT_BYTES = 16_384

OPTION = re.compile(r"[a-z][a-z0-9_-]*(=[^,\s]+)?")


class SlurmExecutor(Executor):
    """Runs each task as a job of its own. Every node has to see the folders of the runs under the same paths.

    What follows ``slurm://`` are options of sbatch, e.g. ``slurm://partition=gpu,time=4:00:00,account=lab``; variables
    such as SBATCH_PARTITION work as they do for sbatch.
    """

    name = "slurm"
    description = (
        "Slurm, a job a task, on a shared file system; options of sbatch as slurm://partition=gpu,time=4:00:00"
    )
    shares_files = True

    def __init__(self, address: str, workers: int | None, folder: Path) -> None:
        super().__init__(address, workers, folder.absolute() / "slurm")
        self.waiting = WaitingTasks(workers or JOBS)
        self.stopping = False
        self._asked_at = time.monotonic()
        self._pending: list[SlurmPending] = []

    def open(self) -> None:
        if find_spec("submitit") is None:
            raise ExecutorError('slurm: the library submitit is not installed; pip install "kdzoo[slurm]"')
        options_of(self.address)
        missing = [command for command in ("sbatch", "srun", "scancel", "sacct") if shutil.which(command) is None]
        if missing:
            raise ExecutorError(
                f"slurm: no {', '.join(missing)} on this machine; start kdzoo on a machine of the cluster"
            )

    def submit(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], resources: Resources
    ) -> Pending:
        pending = SlurmPending(self, name, lambda progress: self.begin(name, resources, progress, function, arguments))
        self._pending.append(pending)
        self.waiting.add(pending)
        return pending

    def begin(
        self,
        name: str,
        resources: Resources,
        progress: Path,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
    ) -> Any:
        """Submit one job; raise ExecutorError where sbatch refuses it."""
        os.environ.setdefault("SUBMITIT_LOG_LEVEL", "CRITICAL")  # it would write into the progress
        import submitit

        of_sbatch = {key: value for key, value in os.environ.items() if key.startswith("SBATCH_")}
        try:
            with (
                submitit.helpers.clean_env()
            ):  # where the driver is itself a job, its own cores and nodes are not meant
                os.environ.update(of_sbatch)
                return self.submitter(name, resources).submit(call, str(progress), function, arguments)
        except (RuntimeError, OSError) as error:
            raise ExecutorError(f"slurm: sbatch refused the job of {name}: {_cause(error)}") from error

    def submitter(self, name: str, resources: Resources) -> Any:
        """What submits a job: an executor of submitit."""
        import submitit

        executor = submitit.SlurmExecutor(self.folder)
        gpus = {"gpus_per_node": resources.gpus} if resources.gpus else {}
        executor.update_parameters(
            job_name=f"kdzoo-{name}",
            time=None,  # the partition's own limit, not submitit's five minutes
            wckey=None,
            cpus_per_task=resources.threads,
            # srun does not take it over from sbatch.
            setup=['export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'],
            stderr_to_stdout=True,
            additional_parameters=options_of(self.address),
            **gpus,
        )
        return executor

    def workers(self) -> int:
        return self.asked_workers or JOBS

    def may_ask(self) -> bool:
        """Whether it is time to ask Slurm about jobs again; one answer is about all of them."""
        if time.monotonic() - self._asked_at < ASK_S:
            return False
        self._asked_at = time.monotonic()
        return True

    def ask_to_stop(self) -> None:
        self.stopping = True
        self.waiting.drop()
        for pending in self._pending:
            if pending.job is not None and not pending.ended():
                # To a job that runs a signal alone, as Slurm kills one that is cancelled before it may have saved.
                self.cancel(pending.job, "SIGTERM" if pending.begun else "")

    def cancel(self, job: Any, signal_name: str) -> None:
        """Cancel a job, or only send it a signal."""
        command = ["scancel", *([f"--signal={signal_name}"] if signal_name else []), job.job_id]
        with contextlib.suppress(OSError):
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        for pending in self._pending:
            if pending.job is not None and not pending.ended():
                self.cancel(pending.job, "")
        self._pending.clear()


class SlurmPending(Pending):
    """A job, or a task that waits until fewer jobs are in the queue."""

    def __init__(self, executor: SlurmExecutor, name: str, submit: Callable[[Path], Any]) -> None:
        self.name = name
        self.job: Any = None
        self._executor, self._submit = executor, submit
        self._progress = executor.folder / f"{id(self):x}-{time.time_ns():x}.progress.json"
        self._ended = False
        self._outcome: tuple[Any] | None = None

    @property
    def begun(self) -> bool:
        """Whether the job runs, and listens to signals."""
        return self._progress.exists()

    def start(self) -> None:
        try:
            self.job = self._submit(self._progress)
        except ExecutorError as error:
            self._ended, self._outcome = True, (Failure.of(error),)

    def ended(self) -> bool:
        if self.job is None:
            return self._ended or self._executor.stopping
        if not self._ended:
            self._ended = self.job.done(force_check=self._executor.may_ask())
        return self._ended

    def done(self) -> bool:
        self._executor.waiting.start()
        return self.ended()

    def result(self) -> Any:
        while not self.done():
            time.sleep(0.5)
        if self._outcome is None:
            self._outcome = (self._fetched(),)
        (value,) = self._outcome
        if isinstance(value, Failure):
            raise value.raised()
        return value

    def _fetched(self) -> Any:
        if self.job is None:
            return _stopped("it was asked to stop before it began")
        import submitit

        try:
            value = self.job.result()
        except submitit.core.utils.FailedJobError as error:
            text = (
                f"slurm: {self.name}: job {self.job.job_id} cannot begin: {_cause(error)}; see {self.job.paths.stdout}"
            )
            return Failure.of(ExecutorError(text))
        except submitit.core.utils.UncompletedJobError:
            if self._executor.stopping:
                return _stopped("it was asked to stop")
            text = f"{self.name}: job {self.job.job_id} left no result; Slurm calls it {self.job.state}"
            return Failure.of(LostError(text))
        finally:
            self._tidy()
        if isinstance(value, Failure) and value.kind == "Interrupted" and not self._executor.stopping:
            text = f"{self.name}: Slurm ended job {self.job.job_id} (its time limit, or another job); it saved first"
            return Failure.of(LostError(text))
        return value

    def _tidy(self) -> None:
        """Remove what submitit sent and received: these are pickles, and of no use any more. The log stays."""
        paths = self.job.paths
        for path in (paths.submitted_pickle, paths.result_pickle, self._progress):
            with contextlib.suppress(OSError):
                path.unlink()

    def told(self) -> Mapping[str, Any]:
        try:
            said = json.loads(self._progress.read_text())
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def log(self) -> str:
        if self.job is None:
            return ""
        try:
            with open(self.job.paths.stdout, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - KEPT_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def options_of(address: str) -> dict[str, Any]:
    """Return sbatch's options in an address such as ``partition=gpu,exclusive``, in submitit's spelling."""
    options: dict[str, Any] = {}
    for part in filter(None, address.split(",")):
        if not OPTION.fullmatch(part):
            raise ExecutorError(
                f"slurm: '{part}' is no option of sbatch; write e.g. slurm://partition=gpu,time=4:00:00,exclusive"
            )
        key, equals, value = part.partition("=")
        options[key.replace("-", "_")] = value if equals else True
    return options


def _stopped(text: str) -> Failure:
    return Failure("Interrupted", text, "", 128 + 15)


def _cause(error: Exception) -> str:
    """The line that says why, in a text of submitit with a traceback or with the output of a command in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"(sbatch: )?(error|[\w.]+(Error|Exception))\b", line)]
    return (causes or lines or [type(error).__name__])[-1][:300]
