"""The driver of many runs: what is missing of each, who trains it, and what came of it.

Each run's stages are followed over the store. What is missing goes to the executor, a stage that several runs share
once, and when a run has all its stages, so does its evaluation. Nothing of this is remembered but what is in the run
folders and the store, so whoever does the same again goes on.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdzoo.contract.execution import Executor, Pending
from kdzoo.contract.stage import Stage
from kdzoo.errors import Interrupted, KdzooError, LockedError, LostError, OutputError
from kdzoo.plan.filled import filled
from kdzoo.recipe.reading import dump_recipe, recipe_hash
from kdzoo.run.control import GO_ON
from kdzoo.run.run_task import RunTask
from kdzoo.run.stage_task import Origin, StageTask
from kdzoo.run.versions import versions
from kdzoo.storage.owner import Owner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.storage.unfinished import Claim, forget_stored, place_of
from kdzoo.study.following import Followed, FollowedRun
from kdzoo.study.travel import Travel
from kdzoo.study.wanted import Going, Overview, RunOutcome, Unwatched, WantedRun, Watch
from kdzoo.zoo.offered import Zoo

#: Seconds between two looks at what goes on, and at what another process does.
POLL_S, ELSEWHERE_S = 0.05, 2.0
#: How often a task is tried whose worker was lost, or that failed for a reason that is no KdzooError.
MOST_ATTEMPTS = 3
#: Tasks that wait at the executor beyond those that run.
AHEAD = 2


def run_all(
    runs: Sequence[WantedRun],
    executor: Executor,
    out: Path,
    zoo: Zoo,
    *,
    stop: Callable[[], int] = lambda: 0,
    watch: Watch | None = None,
    finish: bool = True,
    uses: Path | None = None,
) -> list[RunOutcome]:
    """Make runs below ``out`` as ``kdzoo run`` makes them, by an executor that is open; return what came of each.

    ``finish`` False trains the stages only: there are no run folders, and ``student.metrics`` are of the validation
    split. ``uses`` is the folder that records which stored results are used meanwhile. A run that fails leaves the
    others. Raises Interrupted once ``stop`` returns a signal's number and all tasks have saved.
    """
    driver = _Driver(runs, executor, Path(out), zoo, stop, watch or Unwatched(), finish, uses)
    threads = torch.get_num_threads()
    try:
        return driver.drive()
    finally:
        driver.close()
        torch.set_num_threads(threads)


@dataclass
class _Job:
    """A task on its way: a stage, or, without a key, the evaluation of a run. ``run`` is the first that wants it."""

    name: str
    run: FollowedRun
    task: StageTask | RunTask | None = None
    key: str = ""
    pending: Pending | None = None
    attempts: int = 0
    claim: Claim | None = None
    not_before: float = 0.0
    trained: bool = False
    error: Exception | None = None
    log: str = ""


class _Driver:
    """One call of ``run_all``."""

    def __init__(
        self,
        runs: Sequence[WantedRun],
        executor: Executor,
        out: Path,
        zoo: Zoo,
        stop: Callable[[], int],
        watch: Watch,
        finish: bool,
        uses: Path | None,
    ) -> None:
        self.runs = [FollowedRun(RunOutcome(run)) for run in runs]
        self.executor, self.out, self.zoo, self.stop, self.watch = executor, out, zoo, stop, watch
        self.finish, self.uses = finish, uses
        self.store = Store(out / ".store")
        self.travel = Travel(executor, self.store)
        self.versions, self.threads = versions(zoo), torch.get_num_threads()
        self.stages: dict[str, _Job] = {}  # every stage that was missing, by its key
        self.ready: deque[_Job] = deque()
        self.submitted: list[_Job] = []
        self.followed = Followed(out, zoo, finish, uses)
        self.stopping = 0

    def drive(self) -> list[RunOutcome]:
        forget_stored(self.store.root)
        while True:
            worked = self._collect()
            if not self.stopping and (signal := self.stop()):
                self.stopping = signal
                self.executor.ask_to_stop()
            if not self.stopping:
                worked = self._submit() or self._advance() or worked
            self._show()
            if not self.submitted and (self.stopping or all(run.over for run in self.runs)):
                break
            if not worked:
                time.sleep(POLL_S)
        if self.stopping:
            done = sum(run.over for run in self.runs)
            text = f"stopped with {done} of {len(self.runs)} runs done; {GO_ON}"
            raise Interrupted(text, 128 + self.stopping)
        return [run.outcome for run in self.runs]

    def close(self) -> None:
        for job in self.stages.values():
            if job.claim is not None:
                job.claim.release()
        for run in self.runs:
            run.close()

    def _show(self) -> None:
        going = [
            Going(job.name, job.pending.told(), sum(job.key in run.waits for run in self.runs) if job.key else 1)
            for job in self.submitted
            if job.pending is not None
        ]
        status = [run.outcome.status for run in self.runs]
        stages = self.stages.values()
        trained = sum(job.trained for job in stages)
        overview = Overview(
            going, len(stages), trained, len(self.runs), status.count("finished"), status.count("failed")
        )
        self.watch.overview(overview)

    # --- what comes next ------------------------------------------------------------------------

    @property
    def _room(self) -> bool:
        return len(self.submitted) < self.executor.workers() + AHEAD

    def _advance(self) -> bool:
        """Go on with one run whose stages are there, or begin one if there is little to do; whether there was one."""
        for run in self.runs:
            if not run.over and run.begun and not run.waits and run.folder is None and not run.queued:
                self._go_on(run)
                return True
        if len(self.ready) + len(self.submitted) < self.executor.workers() + AHEAD:
            for run in self.runs:
                if not run.over and not run.begun:
                    run.begun = True
                    self._go_on(run)
                    return True
        return False

    def _go_on(self, run: FollowedRun) -> None:
        try:
            with run.wanted.loaded.located():
                self.followed.go_on(run)
        except Exception as error:  # of an algorithm's plan, too: it is this run's
            self._fail(run, error)
            return
        if run.over:
            return
        for key, stage in run.waits.items():
            if key not in self.stages:
                self.stages[key] = self._stage_job(run, key, stage)
                self.ready.append(self.stages[key])
            elif (broken := self.stages[key].error) is not None:
                self._fail(run, broken, self.stages[key].log)
                return
        if not run.waits:
            self._end_of_stages(run)

    def _end_of_stages(self, run: FollowedRun) -> None:
        run.replay = None
        if not self.finish:
            run.outcome.status = "finished"
            return
        run.queued = True
        self.ready.append(_Job(f"{run.wanted.title}: evaluation", run))

    def _origin(self, run: FollowedRun) -> Origin:
        assert run.plan is not None, "it is resolved first"
        return Origin(
            recipe=run.plan.recipe,
            path=run.plan.path,
            store=self.store.root,
            threads=self.threads,
            versions=self.versions,
            owner=Owner.me(),
            uses=self.uses,
        )

    def _stage_job(self, run: FollowedRun, key: str, stage: Stage) -> _Job:
        assert run.replay is not None, "its stages were followed"
        task = StageTask(self._origin(run), stage, key, run.replay.build.environment, place_of(self.store.root, key))
        return _Job(f"{run.wanted.title}: {stage.name}", run, task, key)

    # --- tasks ----------------------------------------------------------------------------------

    def _submit(self) -> bool:
        """Submit what is ready, stages before evaluations; whether anything was."""
        worked = False
        for job in sorted(self.ready, key=lambda job: not job.key):
            if not self._room:
                break
            if job.not_before > time.monotonic():
                continue
            self.ready.remove(job)
            try:
                worked = (self._submit_stage(job) if job.key else self._submit_run(job)) or worked
            except KdzooError as error:
                self._end_job(job, error)
        return worked

    def _submit_stage(self, job: _Job) -> bool:
        """Submit a stage, unless it is stored by now, or another process trains it."""
        assert isinstance(job.task, StageTask), "it has a key"
        if job.claim is None:
            try:
                job.claim = Claim(self.store.root, job.key, self.watch.note)
            except LockedError as error:
                if self.store.find("stage", job.key) is None:
                    if not job.not_before:
                        self.watch.note(f"{job.name}: waits for another process that trains it: {error}")
                    job.not_before = time.monotonic() + ELSEWHERE_S
                    self.ready.append(job)
                    return False
        if self.store.find("stage", job.key) is not None:  # another process stored it since it was missing
            self._end_job(job)
            return True
        job.attempts += 1
        job.pending = self.travel.submit_stage(job.name, job.task, job.run.resources)
        self.submitted.append(job)
        return True

    def _submit_run(self, job: _Job) -> bool:
        run = job.run
        assert run.plan is not None, "it is resolved first"
        if run.folder is None:
            recipe = filled(run.plan.recipe, self.zoo)
            run.folder = RunFolder.start(
                self.out,
                name=recipe.name,
                seed=recipe.seed,
                recipe_text=dump_recipe(recipe),
                recipe_hash=recipe_hash(recipe),
                recipe_fields=recipe.model_dump(mode="json"),
                result_key=lambda: run.keys[0],
                training_key=lambda: run.keys[1],
                warn=self.watch.note,
            )
            if run.folder.finished:  # by another process, meanwhile
                self._end_job(job)
                return True
        job.task = RunTask(self._origin(run), run.folder.root, tuple(run.folder.warnings))
        job.attempts += 1
        job.pending = self.travel.submit_run(job.name, job.task, run.asked.entries, run.resources)
        self.submitted.append(job)
        return True

    def _collect(self) -> bool:
        """Take in what has ended; whether anything has."""
        ended = [job for job in self.submitted if job.pending is not None and job.pending.done()]
        for job in ended:
            assert job.pending is not None, "it was submitted"
            self.submitted.remove(job)
            try:
                answer = job.pending.result()
                if isinstance(job.task, StageTask):
                    self.travel.take_stage(job.task, answer)
                elif job.task is not None:
                    self.travel.take_run(job.task, answer)
                self._end_job(job)
            except Exception as error:  # whatever a task raises, it is the end of its own runs only
                self._failed_attempt(job, error)
        return bool(ended)

    def _failed_attempt(self, job: _Job, error: Exception) -> None:
        if self.stopping:
            return
        final = isinstance(error, KdzooError) and not isinstance(error, LostError | Interrupted)
        if final or job.attempts >= MOST_ATTEMPTS:
            self._end_job(job, error)
            return
        self.watch.note(f"{job.name}: tried again after: {first_line(error)}", "warning")
        self.ready.appendleft(job)

    def _end_job(self, job: _Job, error: Exception | None = None) -> None:
        """A task is over: let the runs that wait for it go on, or fail them."""
        if error is None and job.key and self.store.find("stage", job.key) is None:
            error = OutputError(f"{job.name}: its result is not in the store ({self.store.root})")
        job.error, job.log = error, job.pending.log() if job.pending is not None and error is not None else ""
        if job.claim is not None:
            job.claim.release() if error is not None else job.claim.remove()
            job.claim = None
        if not job.key:
            self._end_run(job)
            return
        job.trained = error is None
        if error is None:
            self.watch.note(f"{job.name}: {self._said_of(job.key)}")
        for run in self.runs:
            if job.key in run.waits and not run.over:
                if error is not None:
                    self._fail(run, error, job.log)
                else:
                    del run.waits[job.key]

    def _end_run(self, job: _Job) -> None:
        run, outcome = job.run, job.run.outcome
        try:
            if job.error is not None:
                raise job.error
            assert run.folder is not None, "it was made when the task was"
            if not run.folder.finished:
                run.folder.finish(*run.keys)
            outcome.folder, outcome.results = run.folder.root, run.folder.read_json("results.json")
        except Exception as error:
            self._fail(run, error, job.log)
        else:
            outcome.status = "finished"
            self.watch.note(f"{run.wanted.title}: finished, {outcome.folder}", "good")
        run.close()

    def _said_of(self, key: str) -> str:
        """What a stored stage reached, on one line."""
        stored = json.loads((self.store.root / "stage" / key / "result.json").read_text())
        top1, seconds = stored["metrics"].get("top1_percent"), stored["facts"].get("seconds")
        parts = [f"validation {top1:.2f} %" if top1 is not None else "", f"{seconds:.0f} s" if seconds else ""]
        return ", ".join(filter(None, ["trained", *parts]))

    def _fail(self, run: FollowedRun, error: Exception, log: str = "") -> None:
        run.outcome.status, run.outcome.error, run.outcome.log = "failed", error, log
        run.replay, run.waits = None, {}
        self.watch.note(f"{run.wanted.title}: failed: {first_line(error)}", "error")


def first_line(error: Exception) -> str:
    """What an error says first; of one that came with a traceback, its last line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if isinstance(error, KdzooError) else lines[-1]
