"""The one training loop. Every stage of every algorithm runs here.

    for epoch: for batch: for update in algorithm.step(ctx): backward, check, step; then algorithm.update(ctx)

The loop knows terms, networks and optimizers, and no algorithm. All randomness is derived from the seed and the
step, so the state that a resumed stage needs is what ``state`` returns and nothing else.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.step import Batch, Clock, Outputs, StepContext, Update
from kdzoo.errors import ContractError, CorruptError, DivergedError, OutOfMemory
from kdzoo.training.batch_norm import use_global_batch_norm
from kdzoo.training.device import Precision, check_gradients, seed_generators
from kdzoo.training.optimization import Optimized, settings_of
from kdzoo.training.parallel import Ranks
from kdzoo.types import derive_seed

if TYPE_CHECKING:
    from kdzoo.data.loader import Loader
    from kdzoo.models.network import Network
    from kdzoo.recipe.sections import TrainRecipe
    from kdzoo.training.teacher import Teacher

#: A weighted term this many times larger than every other is warned about.
DOMINANT_RATIO = 50.0
#: What stands for a network where a value trains none: an algorithm noted it.
NOTES = "notes"
#: Share of the time that saves at the ends of epochs may take; very short epochs are not all saved.
SAVING_SHARE = 0.05
#: What becomes of the recipe's schedule for a network whose algorithm wants its rate kept.
UNSCHEDULED = {"schedule": {"name": "constant", "warmup_epochs": 0, "milestones": ()}}


class Plain(Algorithm):
    """Train on the task alone: the control, and a teacher that is trained first."""

    default_weights = {"task": 1.0}

    def losses(self, ctx: StepContext) -> Mapping[str, Tensor]:
        return {}


@dataclass
class Job:
    """All that one stage trains with. ``loader`` is None when the algorithm is handed no data."""

    name: str
    algorithm: Algorithm
    loss_weights: Mapping[str, float]
    student: Network
    precision: Precision
    train: TrainRecipe
    seed: int
    batch_size: int
    steps_per_epoch: int
    loader: Loader | None
    teachers: Sequence[Teacher] = ()
    peers: Sequence[Network] = ()
    student_levels: tuple[int, ...] = ()
    peer_levels: Sequence[tuple[int, ...]] = ()
    views: int | None = None  # augmentations that repeat, for cached teachers; None: a fresh one each epoch
    validate: Callable[[Network], dict[str, float]] | None = None
    task_classes: tuple[int, ...] | None = None  # classes of the task loss; None: all, (): it has samples of others
    ranks: Ranks = field(default_factory=Ranks)


@dataclass
class Progress:
    """What a display is told after each step."""

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    samples_per_s: float
    shares: Mapping[str, float]  # of the time: data, teacher, student
    values: Mapping[str, float]
    end_of_epoch: bool = False


class Engine:
    """Runs one stage from its first step, or from a saved state, to its last."""

    def __init__(self, job: Job, on_progress: Callable[[Progress], None] | None = None) -> None:
        self.job = job
        self.on_progress = on_progress or (lambda progress: None)
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.best: dict[str, Any] = {"top1_percent": -math.inf, "epoch": -1}
        self.best_weights: dict[str, Tensor] = {}
        self.best_algorithm: dict[str, Tensor] = {}  # what the algorithm had learnt by then, if it shows that
        self.logged_of: dict[str, str] = {}  # what is logged by a name -> the network that it trains, or NOTES
        self._sums: dict[str, float] = {}
        self._extremes: dict[str, list[float]] = {}
        self._time = {"data": 0.0, "teacher": 0.0, "student": 0.0}
        self._build()
        epochs, warmup = job.train.epochs, job.train.schedule.warmup_epochs
        if warmup >= epochs:
            self._warn(
                f"stage '{job.name}': the learning rate warms up over {warmup} epochs (train.schedule.warmup_epochs), "
                f"and the stage ends after {epochs}, before it is reached"
            )

    def _build(self) -> None:
        job = self.job
        for network in (job.student, *job.peers):
            check_gradients(job.precision, network)
            job.precision.place(network)
        job.algorithm.to(job.precision.device)
        if job.ranks.world > 1:
            for module in (job.student, *job.peers, job.algorithm):
                use_global_batch_norm(module)
        self.trained: dict[str, nn.Module] = {"student": job.student.model}
        self.trained |= {f"peer_{i}": peer.model for i, peer in enumerate(job.peers)}
        own = dict(job.algorithm.networks())
        for name, mine in own.items():
            if name in self.trained:
                raise ContractError(f"{_title(job.algorithm)}: networks() may not name '{name}', which the core trains")
            self.trained[name] = mine.module
        common = settings_of(job.train.optimizer)
        with_student = nn.ModuleDict({"network": job.student.model, "algorithm": _rest(job.algorithm, own)})
        optimized = partial(Optimized, train=job.train, steps_per_epoch=job.steps_per_epoch, precision=job.precision)
        self.optimized = {"student": optimized(with_student, common)}
        for i, peer in enumerate(job.peers):
            self.optimized[f"peer_{i}"] = optimized(peer.model, common)
        for name, mine in own.items():
            where = f"{_title(job.algorithm)}: optimizer of network '{name}'"
            train = job.train if mine.scheduled else job.train.merged(UNSCHEDULED)
            self.optimized[name] = optimized(mine.module, mine.optimizer, train=train, where=where)
        self._check_disjoint()
        self._places: Tensor | None = None  # of the classes that the task loss tells apart, among each other
        if job.task_classes:
            self._places = torch.full((job.student.num_classes,), -1, device=job.precision.device)
            self._places[list(job.task_classes)] = torch.arange(len(job.task_classes), device=job.precision.device)
        self._modes = [(module, tuple(module.modules())) for module in (*self.trained.values(), job.algorithm)]
        decay = job.train.ema_decay
        self.ema = None
        if decay is not None:
            self.ema = AveragedModel(job.student.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._forward_student = job.student
        if job.train.compile:
            self._forward_student = torch.compile(job.student)  # type: ignore[assignment]

    def _check_disjoint(self) -> None:
        """Each parameter belongs to one optimizer, and no teacher's to any."""
        teachers = {id(p) for teacher in self.job.teachers for p in teacher.network.parameters()}
        seen: dict[int, str] = {}
        who = _title(self.job.algorithm)
        for name, optimized in self.optimized.items():
            for parameter in optimized.parameters:
                if id(parameter) in teachers:
                    raise ContractError(f"{who}: the optimizer of '{name}' holds teacher weights")
                if id(parameter) in seen:
                    other = seen[id(parameter)]
                    raise ContractError(f"{who}: '{name}' and '{other}' train the same parameter")
                seen[id(parameter)] = name

    # --- the loop -----------------------------------------------------------------------------

    def run(self, save: Callable[[Engine], None], stop: Callable[[], bool]) -> bool:
        """Train to the end. ``save`` is called at checkpoints; returns False when ``stop`` asked to stop."""
        job = self.job
        last_save, saving = time.monotonic(), 0.0
        while self.step < job.train.epochs * job.steps_per_epoch:
            epoch, start = divmod(self.step, job.steps_per_epoch)
            if start == 0:
                self._sums, self._extremes = {}, {}
            for batch in self._timed_data(self._batches(epoch, start)):
                self._train_step(batch, epoch)
                self.step += 1
                if self.step % job.steps_per_epoch == 0:
                    self._end_epoch(epoch)
                if job.ranks.any(stop()):
                    save(self)
                    return False
                now = time.monotonic()
                overdue = now - last_save > job.train.checkpoint_seconds
                epoch_over = self.step % job.steps_per_epoch == 0 and now - last_save >= saving / SAVING_SHARE
                if job.ranks.any(epoch_over or overdue):  # clocks differ, so all have to be asked
                    save(self)
                    last_save = time.monotonic()
                    saving = last_save - now
        return True

    def dry_step(self) -> dict[str, float]:
        """Run the first batch up to its first backward and return the raw terms; nothing is trained."""
        batch = next(self._batches(0, 0))
        ctx = self.context(batch, Clock(0, self.job.train.epochs, 0, self.job.steps_per_epoch))
        update = next(iter(self.job.algorithm.step(ctx)))
        self._optimized(update)
        _, terms = self._weigh(update)
        self._check_finite(terms, batch)
        return terms

    def _batches(self, epoch: int, start: int) -> Iterator[Batch | None]:
        job = self.job
        if job.loader is None:
            yield from [None] * (job.steps_per_epoch - start)
            return
        view = epoch if job.views is None else epoch % job.views
        batches = job.loader.train_batches(epoch, view, start, job.ranks.rank, job.ranks.world)
        yield from islice(batches, job.steps_per_epoch - start)

    def _timed_data(self, batches: Iterator[Batch | None]) -> Iterator[Batch | None]:
        while True:
            begin = time.perf_counter()
            batch = next(batches, _END)
            self._time["data"] += time.perf_counter() - begin
            if batch is _END:
                return
            yield batch

    def _train_step(self, batch: Batch | None, epoch: int) -> None:
        job = self.job
        begin, teacher_before = time.perf_counter(), self._time["teacher"]
        seed_generators(job.precision.device, derive_seed(job.seed, "step", self.step, job.ranks.rank))
        for module, inner in self._modes:
            if not all(part.training for part in inner):  # which is many times faster than train()
                module.train()
        clock = Clock(epoch, job.train.epochs, self.step, job.steps_per_epoch)
        for optimized in self.optimized.values():
            optimized.to_step(self.step)
        parts = _split(batch, job.train.accumulate)
        contexts: list[StepContext] = []
        values: dict[str, float] = {}
        counts: Counter[str] = Counter()
        notes: dict[str, list[Tensor | float]] = {}
        try:
            generators = [self._start(part, clock, contexts, number, notes) for number, part in enumerate(parts)]
            for _ in range(1_000):
                updates = self._backward(generators, parts, values, counts)
                if updates is None:
                    break
            else:
                raise ContractError(f"{_title(job.algorithm)}: step() yielded 1000 updates for one batch")
            if type(job.algorithm).update is not Algorithm.update:
                # Of parts without data none has samples of its own: the state changes once a step.
                for ctx in contexts if batch is not None else contexts[:1]:
                    with torch.no_grad():
                        job.algorithm.update(self._global(ctx))
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            raise OutOfMemory(
                f"stage '{job.name}': out of memory at batch size {job.batch_size}; lower data.batch_size, raise "
                f"train.accumulate (same batch in smaller parts), or choose precision: bf16\n  {error}"
            ) from error
        if self.ema is not None:
            self.ema.update_parameters(job.student.model)
        values |= {name: values[name] / count for name, count in counts.items()}
        values |= self._noted(notes, values)
        self._note(values)
        spent = time.perf_counter() - begin
        self._time["student"] += spent - (self._time["teacher"] - teacher_before)
        total = sum(self._time.values())
        self.on_progress(
            Progress(
                stage=job.name,
                epoch=epoch,
                epochs=job.train.epochs,
                step=self.step + 1,
                steps=clock.steps,
                samples_per_s=job.batch_size * job.ranks.world / max(spent, 1e-9),
                shares={name: part / max(total, 1e-9) for name, part in self._time.items()},
                values=values,
            )
        )

    def _start(
        self,
        batch: Batch | None,
        clock: Clock,
        contexts: list[StepContext],
        part: int,
        notes: dict[str, list[Tensor | float]],
    ) -> Iterator[Update]:
        """One micro-batch's generator; its forward runs when the first update is asked for."""
        ctx = self.context(batch, clock, part, notes)
        contexts.append(ctx)
        yield from self.job.algorithm.step(ctx)

    def _backward(
        self,
        generators: list[Iterator[Update]],
        parts: list[Batch | None],
        values: dict[str, float],
        counts: Counter[str],
    ) -> str | None:
        """Backward of every micro-batch's next update, then that network's step; None when there is none.

        Terms are added to ``values``; ``counts`` says in how many updates each was.
        """
        job = self.job
        network: str | None = None
        for number, (generator, part) in enumerate(zip(generators, parts, strict=True)):
            update = next(generator, None)
            optimized = None if update is None else self._optimized(update)
            got = None if update is None else update.network
            if number == 0:
                network = got
            elif got != network:
                raise ContractError(
                    f"{_title(job.algorithm)}: step() yielded '{got or 'nothing'}' for one part of a batch, "
                    f"'{network or 'nothing'}' for the first"
                )
            if update is None or optimized is None:
                continue
            if number == 0:
                optimized.optimizer.zero_grad(set_to_none=True)
            total, terms = self._weigh(update)
            self._check_finite(terms, part)
            optimized.scaler.scale(total / len(parts)).backward()
            prefix = f"{update.network}." if update.network.startswith("peer_") else ""
            for term, value in terms.items():
                values[prefix + term] = values.get(prefix + term, 0.0) + value / len(parts)
                self.logged_of.setdefault(prefix + term, update.network)
                counts[prefix + term] += number == 0
        if network is not None:
            self._optimizer_step(network, parts, values)
        return network

    def _optimized(self, update: Update) -> Optimized:
        if not isinstance(update, Update) or update.network not in self.optimized:
            known = ", ".join(self.optimized)
            got = getattr(update, "network", update)
            raise ContractError(f"{_title(self.job.algorithm)}: step() yielded an update of '{got}'; known: {known}")
        return self.optimized[update.network]

    def _weigh(self, update: Update) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of an update's terms, and the raw value of each (one transfer from the device)."""
        job = self.job
        total: Tensor | None = None
        for name, term in update.loss.items():
            if name not in job.loss_weights:
                known = ", ".join(job.loss_weights)
                raise ContractError(f"{_title(job.algorithm)}: no weight for the loss term '{name}'; known: {known}")
            if not isinstance(term, Tensor) or term.dim() != 0:
                raise ContractError(f"{_title(job.algorithm)}: the loss term '{name}' is not a scalar tensor")
            weighted = job.loss_weights[name] * term
            total = weighted if total is None else total + weighted
        if total is None or not total.requires_grad:
            raise ContractError(f"{_title(job.algorithm)}: the update of '{update.network}' has nothing to train on")
        raw = torch.stack([term.detach().float() for term in update.loss.values()])
        return total, dict(zip(update.loss, job.ranks.mean(raw).tolist(), strict=True))

    def _check_finite(self, terms: Mapping[str, float], batch: Batch | None) -> None:
        broken = [name for name, value in terms.items() if not math.isfinite(value)]
        if broken:
            named = ", ".join(f"'{name}' is {terms[name]}" for name in broken)
            raise self._diverged(f"loss term {named}", [batch])

    def _optimizer_step(self, network: str, parts: list[Batch | None], values: dict[str, float]) -> None:
        job, optimized = self.job, self.optimized[network]
        optimized.scaler.unscale_(optimized.optimizer)
        job.ranks.average_gradients(optimized.parameters)
        limit = job.train.grad_clip_norm if job.train.grad_clip_norm is not None else math.inf
        gradients = [p.grad for p in optimized.parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        if not math.isfinite(norm) and not optimized.scaler.is_enabled():
            raise self._diverged(f"the gradient norm of '{network}' is {norm}", parts)
        if norm > limit:
            torch.nn.utils.clip_grads_with_norm_(optimized.parameters, limit, torch.tensor(norm))
        values["grad_norm" if network == "student" else f"grad_norm_{network}"] = norm
        optimized.scaler.step(optimized.optimizer)
        optimized.scaler.update()

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

    # --- what a step sees ---------------------------------------------------------------------

    def context(
        self,
        batch: Batch | None,
        clock: Clock,
        part: int = 0,
        notes: dict[str, list[Tensor | float]] | None = None,
    ) -> StepContext:
        """Run the networks on a batch and wrap all that the algorithm may read; what it notes goes to ``notes``."""
        job = self.job
        if batch is not None and job.algorithm.needs.data == "unlabelled":
            batch = replace(batch, targets=torch.full_like(batch.targets, -1))
        student: Any = None
        teachers: tuple[Outputs, ...] = ()
        peers: tuple[Outputs, ...] = ()
        if batch is not None:
            begin = time.perf_counter()
            teachers = tuple(teacher.outputs(batch) for teacher in job.teachers)
            self._time["teacher"] += time.perf_counter() - begin
            student = self._network(self._forward_student, job.student_levels)(batch.inputs)
            peers = tuple(self._network(p, lv)(batch.inputs) for p, lv in zip(job.peers, job.peer_levels, strict=True))
        labels = None if batch is None or job.algorithm.needs.data == "unlabelled" else batch.targets
        handed: Any = batch  # None where the algorithm is handed no data; its author knows
        # Nothing in here may lead back to this engine: from it one comes to the data, which needs.data may forbid.
        return StepContext(
            batch=handed,
            student=student,
            teachers=teachers,
            peers=peers,
            clock=clock,
            networks=self._networks(),
            task_loss=partial(
                _task_loss, labels, job.train.label_smoothing, _title(job.algorithm), job.task_classes, self._places
            ),
            random=partial(_random, job.seed, clock.step, job.ranks.rank, part),
            device=job.precision.device,
            batch_size=len(batch.index) if batch is not None else job.batch_size // job.train.accumulate,
            modules={
                "student": job.student.model,
                **{f"peer_{i}": peer.model for i, peer in enumerate(job.peers)},
                **{f"teacher_{i}": teacher.network.model for i, teacher in enumerate(job.teachers)},
                **({"teacher": job.teachers[0].network.model} if job.teachers else {}),
            },
            note=partial(_keep, {} if notes is None else notes),
        )

    def _networks(self) -> dict[str, Callable[[Tensor], Outputs]]:
        job = self.job
        networks: dict[str, Callable[[Tensor], Outputs]] = {
            "student": self._network(self._forward_student, job.student_levels)
        }
        for i, (peer, levels) in enumerate(zip(job.peers, job.peer_levels, strict=True)):
            networks[f"peer_{i}"] = self._network(peer, levels)
        for i, teacher in enumerate(job.teachers):
            networks[f"teacher_{i}"] = teacher.through
        if job.teachers:
            networks["teacher"] = job.teachers[0].through
        return networks

    def _network(self, network: nn.Module, levels: tuple[int, ...]) -> Callable[[Tensor], Outputs]:
        return partial(_forward, network, levels, self.job.algorithm.needs.pre_logits, self.job.precision)

    def _global(self, ctx: StepContext) -> StepContext:
        """The context of the global batch, detached: what ``update`` sees on every rank alike."""
        ranks = self.job.ranks
        if ranks.world == 1 or ctx.batch is None:
            return ctx
        shares: Any = {name: ranks.gather(getattr(ctx.batch, name)) for name in ("inputs", "targets", "index")}
        batch = replace(ctx.batch, **shares)

        def whole(outputs: Outputs) -> Outputs:
            pre_logits: Any = None if outputs.pre_logits is None else ranks.gather(outputs.pre_logits.detach())
            features = tuple(ranks.gather(feature.detach()) for feature in outputs.features)
            return Outputs(ranks.gather(outputs.logits.detach()), features, pre_logits)

        return replace(
            ctx,
            random=partial(_random, self.job.seed, ctx.clock.step, 0, 0),  # the same draws on every rank
            batch=batch,
            student=whole(ctx.student),
            teachers=tuple(map(whole, ctx.teachers)),
            peers=tuple(map(whole, ctx.peers)),
        )

    # --- bookkeeping --------------------------------------------------------------------------

    def _noted(self, notes: Mapping[str, Sequence[Tensor | float]], taken: Mapping[str, float]) -> dict[str, float]:
        """The mean of what the algorithm noted in a step, over its parts and over all processes."""
        if not notes:
            return {}
        means = []
        for name, noted in notes.items():
            if name in taken or name in self.job.loss_weights:
                raise ContractError(f"{_title(self.job.algorithm)}: the note '{name}' has the name of something logged")
            self.logged_of[name] = NOTES
            values = [torch.as_tensor(value, device=self.job.precision.device).detach().float() for value in noted]
            if any(value.dim() for value in values):
                raise ContractError(f"{_title(self.job.algorithm)}: the note '{name}' is not a scalar")
            means.append(torch.stack(values).mean())
        numbers = dict(zip(notes, self.job.ranks.mean(torch.stack(means)).tolist(), strict=True))
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ContractError(f"{_title(self.job.algorithm)}: the note '{name}' is {value}")
        return numbers

    def _note(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            low, high = self._extremes.get(name, [math.inf, -math.inf])
            self._extremes[name] = [min(low, value), max(high, value)]

    def _end_epoch(self, epoch: int) -> None:
        job = self.job
        means = {name: total / job.steps_per_epoch for name, total in self._sums.items()}
        row = {"stage": job.name, "epoch": epoch, "step": self.step, "split": "train"}
        self.rows.append({**row, **means, "lr": self.optimized["student"].lr})
        self._warn_about(means)
        for text in job.algorithm.warnings(means):
            self._warn(f"stage '{job.name}': {text}")
        if job.validate is not None:
            metrics = job.validate(self.result_network())
            self.rows.append({**row, "split": "validation", **metrics})
            if metrics["top1_percent"] > self.best["top1_percent"]:
                self.best = {"top1_percent": metrics["top1_percent"], "epoch": epoch}
                if job.train.select == "best":
                    self.best_weights = _copy(self._result_model())
                    self.best_algorithm = _copy(job.algorithm) if has_report_items(type(job.algorithm)) else {}
            means = {**means, **{f"validation_{name}": value for name, value in metrics.items()}}
        self.on_progress(
            Progress(
                job.name,
                epoch,
                job.train.epochs,
                self.step,
                job.train.epochs * job.steps_per_epoch,
                0.0,
                {},
                means,
                True,
            )
        )

    def _warn_about(self, means: Mapping[str, float]) -> None:
        """Name terms that cannot help: constant over an epoch, or drowning all others."""
        weights = self.job.loss_weights
        weighted = {name: abs(weights[name] * means[name]) for name in means if weights.get(name)}
        for name in weighted:
            low, high = self._extremes[name]
            if self.job.steps_per_epoch > 1 and low == high:
                self._warn(f"stage '{self.job.name}': the loss term '{name}' is constant ({low:g}): it trains nothing")
        if self.step > self.job.steps_per_epoch:
            return  # later a small term may be small because it is solved
        for name, value in weighted.items():
            rest = max((other for key, other in weighted.items() if key != name), default=0.0)
            if value > DOMINANT_RATIO * rest > 0:
                self._warn(
                    f"stage '{self.job.name}': in the first epoch the weighted term '{name}' is {value / rest:.0f} "
                    "times every other; see algorithm.loss_weights"
                )

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    # --- results and state --------------------------------------------------------------------

    def _result_model(self) -> nn.Module:
        return self.job.student.model if self.ema is None else self.ema.module

    def result_network(self) -> Network:
        """The student as it would be delivered now: averaged when the recipe asks for EMA."""
        return self.job.student if self.ema is None else self.job.student.with_model(self.ema.module)

    def result_weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights to keep: the student as selected, what the algorithm shows beside it, and peers as they ended."""
        weights = {"student": self.best_weights or self._result_model().state_dict()}
        quantizer = self.job.student.quantizer
        if quantizer is not None:
            weights = {"student": quantizer.plain(weights["student"]), "student_quantized": weights["student"]}
        if has_report_items(type(self.job.algorithm)):
            weights["algorithm"] = self.best_algorithm or self.job.algorithm.state_dict()
        return weights | {f"peer_{i}": peer.model.state_dict() for i, peer in enumerate(self.job.peers)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed stage needs: tensors by name, and JSON."""
        tensors: dict[str, Tensor] = {}
        for name, module in self.trained.items():
            tensors |= {f"network/{name}/{key}": value for key, value in module.state_dict().items()}
        own = {id(t) for m in self.trained.values() for t in m.state_dict(keep_vars=True).values()}
        for key, value in self.job.algorithm.state_dict(keep_vars=True).items():
            if id(value) not in own:
                tensors[f"algorithm/{key}"] = value.detach()
        if self.ema is not None:
            tensors |= {f"ema/{key}": value for key, value in self.ema.state_dict().items()}
        tensors |= {f"best/{key}": value for key, value in self.best_weights.items()}
        tensors |= {f"best_algorithm/{key}": value for key, value in self.best_algorithm.items()}
        optimizers: dict[str, Any] = {}
        for name, optimized in self.optimized.items():
            slots, optimizers[name] = optimized.state()
            tensors |= {f"optimizer/{name}/{key}": value for key, value in slots.items()}
        state = {
            "step": self.step,
            "rows": self.rows,
            "warnings": self.warnings,
            "logged_of": self.logged_of,
            "best": self.best if self.best["epoch"] >= 0 else None,
            "sums": self._sums,
            "extremes": self._extremes,
            "optimizers": optimizers,
            "tensors": sorted(tensors),
        }
        return tensors, state

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from a saved state; bit-identical to never having stopped."""
        absent = sorted(set(state["tensors"]) - tensors.keys())
        if absent:
            raise CorruptError(f"stage '{self.job.name}': the saved state lacks {', '.join(absent[:5])}")
        for name, module in self.trained.items():
            module.load_state_dict(_below(tensors, f"network/{name}/"), strict=True)
        own = self.job.algorithm.state_dict(keep_vars=True)
        with torch.no_grad():
            for key, value in _below(tensors, "algorithm/").items():
                own[key].copy_(value)
        if self.ema is not None:
            self.ema.load_state_dict(_below(tensors, "ema/"), strict=True)
        device = self.job.precision.device
        self.best_weights = {key: value.to(device) for key, value in _below(tensors, "best/").items()}
        self.best_algorithm = {key: value.to(device) for key, value in _below(tensors, "best_algorithm/").items()}
        for name, optimized in self.optimized.items():
            optimized.restore(_below(tensors, f"optimizer/{name}/"), state["optimizers"][name])
        self.step = state["step"]
        self.rows, self.warnings = list(state["rows"]), list(state["warnings"])
        self.logged_of = dict(state["logged_of"])
        self.best = state["best"] or {"top1_percent": -math.inf, "epoch": -1}
        self._sums, self._extremes = dict(state["sums"]), {k: list(v) for k, v in state["extremes"].items()}


_END: Any = object()


def has_report_items(cls: type[Algorithm]) -> bool:
    """Whether an algorithm has report_items, for which its stages keep what it had learnt."""
    return cls.report_items.__func__ is not Algorithm.report_items.__func__  # type: ignore[attr-defined]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def _keep(notes: dict[str, list[Tensor | float]], name: str, value: Tensor | float) -> None:
    notes.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU torch says so in words only."""
    words = ("can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in words)


def _forward(
    network: nn.Module, levels: tuple[int, ...], pre_logits: bool, precision: Precision, inputs: Tensor
) -> Outputs:
    """A trained network's outputs in float32, whatever it runs in."""
    with precision.autocast():
        outputs = network(inputs, levels=levels, pre_logits=pre_logits)
    return outputs.float()


def _task_loss(
    labels: Tensor | None,
    smoothing: float,
    title: str,
    task_classes: tuple[int, ...] | None,
    places: Tensor | None,
    logits: Tensor,
) -> Tensor:
    if labels is None:
        raise ContractError(f"{title}: asked for the task loss, but declared to read no labels")
    if task_classes == ():
        raise ContractError(
            f"{title}: asked for the task loss, which leaves out the classes of earlier stages, in a stage that has "
            "samples of them"
        )
    if task_classes is not None and places is not None:
        logits, labels = logits[:, list(task_classes)], places[labels]
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def _random(seed: int, step: int, rank: int, part: int, name: str, shared: bool = False) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "random", name, step, 0 if shared else rank, part))


def _split(batch: Batch | None, parts: int) -> list[Batch | None]:
    """A batch in ``parts`` micro-batches along N."""
    if batch is None or parts == 1:
        return [batch] * parts
    fields = {name: getattr(batch, name).chunk(parts) for name in ("inputs", "targets", "index")}
    return [replace(batch, **dict(zip(fields, part, strict=True))) for part in zip(*fields.values(), strict=True)]


def _rest(algorithm: Algorithm, own: Mapping[str, Any]) -> nn.Module:
    """The algorithm's parameters that no network of its own claims."""
    claimed = {id(p) for network in own.values() for p in network.module.parameters()}
    rest = nn.Module()
    for index, (_, parameter) in enumerate(algorithm.named_parameters()):
        if id(parameter) not in claimed:
            rest.register_parameter(f"own_{index}", parameter)  # type: ignore[arg-type]
    return rest


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _title(algorithm: Algorithm) -> str:
    return f"algorithm '{getattr(algorithm, 'name', type(algorithm).__name__)}'"
