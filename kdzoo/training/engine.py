"""The one training loop. Every stage of every algorithm runs here.

    for epoch: for batch: for update in algorithm.step(ctx): backward, check, step; then algorithm.update(ctx)

The loop knows terms, networks and optimizers, and no algorithm. All randomness is derived from the seed and the
step, so the state that a resumed stage needs is what ``state`` returns and nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.step import Batch, Clock, StepContext, Update
from kdzoo.errors import ContractError, DivergedError, OutOfMemory
from kdzoo.training.device import seed_generators
from kdzoo.training.job import TASK, Job
from kdzoo.training.selection import Selection
from kdzoo.training.sharding import clipped_norm
from kdzoo.training.state import restore_stage, result_weights, stage_state
from kdzoo.training.step_context import StepContexts, micro_batches
from kdzoo.training.trained_networks import TrainedNetworks
from kdzoo.training.training_log import StepValues, TrainingLog
from kdzoo.types import derive_seed

#: Share of the time that saves at the ends of epochs may take; very short epochs are not all saved.
SAVING_SHARE = 0.05
#: Updates that one batch may ask for; a generator that yields more never ends.
MOST_UPDATES = 1_000

Terms = Callable[[], dict[str, float]]


@dataclass
class Progress:
    """What a display gets after each step, and at the end of each epoch."""

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    samples_per_s: float
    shares: Mapping[str, float]  # of the time: data, teacher, student
    values: Mapping[str, float]
    loss: float | None = None  # the weighted sum of the student's terms
    end_of_epoch: bool = False


class Engine:
    """Runs one stage from its first step, or from a saved state, to its last."""

    def __init__(self, job: Job, on_progress: Callable[[Progress], None] | None = None) -> None:
        self.job = job
        self.on_progress = on_progress or (lambda progress: None)
        self.step = 0
        self.networks = TrainedNetworks(job)
        self.contexts = StepContexts(job, self.networks.forward_student)
        self.log = TrainingLog(job)
        self.selection = Selection(job)
        self._seconds = {"data": 0.0, "student": 0.0}

    # --- the loop -----------------------------------------------------------------------------

    def run(self, save: Callable[[Engine], None], stop: Callable[[], bool]) -> bool:
        """Train to the end. ``save`` is called at checkpoints; returns False when ``stop`` asked to stop."""
        job = self.job
        last_save, saving = time.monotonic(), 0.0
        while self.step < job.steps:
            epoch, start = divmod(self.step, job.steps_per_epoch)
            if start == 0:
                self.log.start_epoch()
            for batch in self._timed_data(self._batches(epoch, start)):
                self._train_step(batch, epoch)
                self.step += 1
                if self.step % job.steps_per_epoch == 0:
                    self._end_epoch(epoch)
                now = time.monotonic()
                overdue = now - last_save > job.train.checkpoint_seconds
                epoch_over = self.step % job.steps_per_epoch == 0 and now - last_save >= saving / SAVING_SHARE
                # Clocks differ, and a signal may have reached one process only, so all have to be asked.
                stopping, saving_now = job.ranks.any(bool(stop()), epoch_over or overdue)
                if stopping or saving_now:
                    save(self)
                    if stopping:
                        return False
                    last_save = time.monotonic()
                    saving = last_save - now
        return True

    def dry_step(self) -> dict[str, float]:
        """Run the first batch up to its first backward and return the raw terms; nothing is trained."""
        batch = next(self._batches(0, 0))
        ctx = self.context(batch, Clock(0, self.job.train.epochs, 0, self.job.steps_per_epoch))
        update = next(iter(self.job.algorithm.step(ctx)))
        self.networks.of(update)
        _, terms = weighted_sum(self.job, update)
        values = terms()
        self._check_finite(values, batch)
        return values

    def taught_without_labels(self) -> bool:
        """Whether a term other than the task's gives a gradient to the student's logits; nothing is trained."""
        ctx = self.context(next(self._batches(0, 0)), Clock(0, self.job.train.epochs, 0, self.job.steps_per_epoch))
        for update in self.job.algorithm.step(ctx):
            for name, term in update.loss.items():
                if name == TASK or not self.job.loss_weights.get(name) or not term.requires_grad:
                    continue
                if torch.autograd.grad(term, ctx.student.logits, retain_graph=True, allow_unused=True)[0] is not None:
                    return True
        return False

    def context(
        self, batch: Batch | None, clock: Clock, part: int = 0, values: StepValues | None = None
    ) -> StepContext:
        """Run the networks on a batch and wrap all that the algorithm may read; its notes go to ``values``."""
        return self.contexts.make(batch, clock, part, values or StepValues())

    def _batches(self, epoch: int, start: int) -> Iterator[Batch | None]:
        job = self.job
        if job.loader is None:
            yield from [None] * (job.steps_per_epoch - start)
            return
        view = epoch if job.views is None else epoch % job.views
        batches = job.loader.train_batches(epoch, view, start, job.ranks.rank, job.ranks.world, mix=True)
        yield from islice(batches, job.steps_per_epoch - start)

    def _timed_data(self, batches: Iterator[Batch | None]) -> Iterator[Batch | None]:
        while True:
            begin = time.perf_counter()
            batch = next(batches, _END)
            self._seconds["data"] += time.perf_counter() - begin
            if batch is _END:
                return
            yield batch

    def _train_step(self, batch: Batch | None, epoch: int) -> None:
        job = self.job
        begin, teacher_before = time.perf_counter(), self.contexts.teacher_seconds
        seed_generators(job.precision.device, derive_seed(job.seed, "step", self.step, job.ranks.rank))
        self.networks.start_step(self.step)
        values = StepValues()
        with memory_errors(job):
            self._updates(batch, Clock(epoch, job.train.epochs, self.step, job.steps_per_epoch), values)
        self.networks.average()
        logged = self.log.add_step(values)
        spent = time.perf_counter() - begin
        teacher = self.contexts.teacher_seconds
        self._seconds["student"] += spent - (teacher - teacher_before)
        seconds = {"data": self._seconds["data"], "teacher": teacher, "student": self._seconds["student"]}
        total = sum(seconds.values())
        self.on_progress(
            Progress(
                stage=job.name,
                epoch=epoch,
                epochs=job.train.epochs,
                step=self.step + 1,
                steps=job.steps,
                samples_per_s=job.batch_size * job.ranks.world / max(spent, 1e-9),
                shares={name: part / max(total, 1e-9) for name, part in seconds.items()},
                values=logged,
                loss=self.log.loss(logged),
            )
        )

    def _end_epoch(self, epoch: int) -> None:
        job = self.job
        means = self.log.end_epoch(epoch, self.step, self.networks.optimized["student"].lr)
        loss = self.log.loss(means)
        if job.validate is not None:
            metrics = job.validate(self.networks.result)
            self.log.add_row(epoch, self.step, "validation", metrics)
            self.selection.consider(epoch, metrics, self.networks.result_model)
            means = {**means, **{f"validation_{name}": value for name, value in metrics.items()}}
        self.on_progress(Progress(job.name, epoch, job.train.epochs, self.step, job.steps, 0.0, {}, means, loss, True))

    # --- one step -----------------------------------------------------------------------------

    def _updates(self, batch: Batch | None, clock: Clock, values: StepValues) -> None:
        """Make every update that the algorithm asks for on a batch, then let it change its state."""
        algorithm = self.job.algorithm
        parts = micro_batches(batch, self.job.train.accumulate)
        contexts: list[StepContext] = []

        def start(part: Batch | None, number: int) -> Iterator[Update]:
            """One micro-batch's generator; its forward runs when the first update is asked for."""
            contexts.append(self.context(part, clock, number, values))
            yield from algorithm.step(contexts[-1])

        generators = [start(part, number) for number, part in enumerate(parts)]
        for _ in range(MOST_UPDATES):
            network = self._backward(generators, parts, values)
            if network is None:
                break
            self._optimizer_step(network, parts, values)
        else:
            raise ContractError(f"{self.job.title}: step() yielded {MOST_UPDATES} updates for one batch")
        self.networks.average_statistics()
        if type(algorithm).update is not Algorithm.update:
            # Of parts without data none has samples of its own: the state changes once a step.
            for ctx in contexts if batch is not None else contexts[:1]:
                with torch.no_grad():
                    algorithm.update(self.contexts.whole(ctx))

    def _backward(
        self, generators: Sequence[Iterator[Update]], parts: Sequence[Batch | None], values: StepValues
    ) -> str | None:
        """Backward of every micro-batch's next update; return the name of their network, None at the end."""
        network: str | None = None
        for number, (generator, part) in enumerate(zip(generators, parts, strict=True)):
            update = next(generator, None)
            optimized = None if update is None else self.networks.of(update)
            got = None if update is None else update.network
            if number == 0:
                network = got
            elif got != network:
                raise ContractError(
                    f"{self.job.title}: step() yielded '{got or 'nothing'}' for one part of a batch, "
                    f"'{network or 'nothing'}' for the first"
                )
            if update is None or optimized is None:
                continue
            if number == 0:
                optimized.optimizer.zero_grad(set_to_none=True)
            if number == len(parts) - 1:
                self.networks.averaging[update.network].begin()
            total, terms = weighted_sum(self.job, update)
            scaled = optimized.scaler.scale(total / len(parts))
            if self.job.ranks.world > 1:
                scaled.backward()  # meanwhile the terms of the other processes arrive
            raw = terms()
            self._check_finite(raw, part)
            if self.job.ranks.world == 1:
                scaled.backward()
            values.add_terms(update.network, raw, number, len(parts))
        return network

    def _optimizer_step(self, network: str, parts: Sequence[Batch | None], values: StepValues) -> None:
        job, optimized = self.job, self.networks.optimized[network]
        self.networks.averaging[network].finish()
        optimized.scaler.unscale_(optimized.optimizer)  # after it, as what overflows on one process does so on all
        limit = job.train.grad_clip_norm if job.train.grad_clip_norm is not None else math.inf
        norm = clipped_norm(optimized.parameters, limit)
        if not math.isfinite(norm) and not optimized.scaler.is_enabled():
            raise self._diverged(f"the gradient norm of '{network}' is {norm}", parts)
        values.add_norm(network, norm)
        optimized.scaler.step(optimized.optimizer)
        optimized.scaler.update()

    # --- errors -------------------------------------------------------------------------------

    def _check_finite(self, terms: Mapping[str, float], batch: Batch | None) -> None:
        broken = [name for name, value in terms.items() if not math.isfinite(value)]
        if broken:
            named = ", ".join(f"'{name}' is {terms[name]}" for name in broken)
            raise self._diverged(f"loss term {named}", [batch])

    def _diverged(self, what: str, parts: Sequence[Batch | None]) -> DivergedError:
        error = DivergedError(
            f"stage '{self.job.name}', step {self.step}: {what}; no update was made. Lower train.optimizer.lr, set "
            "train.grad_clip_norm, or lower the weight of the term. The batch's sample indices are in nan_dump.json"
        )
        error.dump = {  # type: ignore[attr-defined]
            "stage": self.job.name,
            "step": self.step,
            "what": what,
            # of the whole batch: the terms were averaged over all processes, so each of them comes here
            "sample_indices": [i for batch in parts if batch for i in self.job.ranks.gather(batch.index).tolist()],
            "view": next((batch.view for batch in parts if batch is not None), None),
        }
        return error

    # --- results and state --------------------------------------------------------------------

    def result_weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights to keep: the selected student, peers as they ended, and the algorithm's for its report."""
        return result_weights(self.job, self.networks, self.selection)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed stage needs: tensors by name, and JSON."""
        return stage_state(self.job, self.step, self.networks, self.selection, self.log)

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from a saved state; bit-identical to never having stopped."""
        self.step = restore_stage(self.job, self.networks, self.selection, self.log, tensors, state)


def weighted_sum(job: Job, update: Update) -> tuple[Tensor, Terms]:
    """The weighted sum of an update's terms, and what waits for the raw value of each, a mean over all processes.

    The values come from the device in one transfer.
    """
    total: Tensor | None = None
    for name, term in update.loss.items():
        if name not in job.loss_weights:
            known = ", ".join(job.loss_weights)
            raise ContractError(f"{job.title}: no weight for the loss term '{name}'; known: {known}")
        if not isinstance(term, Tensor) or term.dim() != 0:
            raise ContractError(f"{job.title}: the loss term '{name}' is not a scalar tensor")
        weighted = job.loss_weights[name] * term
        total = weighted if total is None else total + weighted
    if total is None or not total.requires_grad:
        raise ContractError(f"{job.title}: the update of '{update.network}' has nothing to train on")
    raw = torch.stack([term.detach().float() for term in update.loss.values()])
    mean, names = job.ranks.start_mean(raw), tuple(update.loss)
    return total, lambda: dict(zip(names, mean().tolist(), strict=True))


@contextmanager
def memory_errors(job: Job) -> Iterator[None]:
    """Raise OutOfMemory where memory runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise OutOfMemory(
            f"stage '{job.name}': out of memory at batch size {job.batch_size}; lower data.batch_size, "
            f"raise train.accumulate (same batch in smaller parts), or choose precision: bf16\n  {error}"
        ) from error


_END: Any = object()


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU torch says so in words only."""
    words = ("can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in words)
