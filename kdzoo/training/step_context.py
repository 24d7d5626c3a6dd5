"""What an algorithm sees of a training step: outputs, networks, task loss, random numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo.contract.classification import NO_LABEL, TaskLoss
from kdzoo.contract.step import Batch, Clock, Mixed, Outputs, StepContext
from kdzoo.errors import ContractError
from kdzoo.training.training_log import StepValues
from kdzoo.types import derive_seed

if TYPE_CHECKING:
    from kdzoo.training.device import Precision
    from kdzoo.training.job import Job


class Withheld(dict[str, nn.Module]):
    """Networks by name, without those that are sharded: between two steps their weights are not in one place."""

    def __init__(self, sharded: Mapping[str, nn.Module], whole: Mapping[str, nn.Module], title: str) -> None:
        super().__init__(whole)
        self._sharded, self._title = tuple(sharded), title

    def __missing__(self, name: str) -> nn.Module:
        if name not in self._sharded:
            raise KeyError(name)
        raise ContractError(
            f"{self._title}: reads the weights of '{name}' in a step, of which train.shard leaves each process a part; "
            "set train.shard: false"
        )


class StepContexts:
    """Makes the contexts of a job's steps. ``teacher_seconds`` is the time that teachers took in all of them."""

    def __init__(self, job: Job, forward_student: nn.Module) -> None:
        """``forward_student`` runs the student: itself, or compiled."""
        self.teacher_seconds = 0.0
        self._job = job
        self._forward_student = forward_student
        self._unlabelled = job.algorithm.needs.data == "unlabelled"
        self._task_loss = TaskLoss.among(
            job.task_classes, job.student.num_classes, job.train.label_smoothing, job.precision.device
        )

    def make(self, batch: Batch | None, clock: Clock, part: int, values: StepValues) -> StepContext:
        """Run the networks on one micro-batch, number ``part`` of its step; the algorithm's notes go to ``values``."""
        job = self._job
        if batch is not None and self._unlabelled:
            batch = replace(batch, targets=torch.full_like(batch.targets, NO_LABEL), mixed=None)
        student: Any = None
        teachers: tuple[Outputs, ...] = ()
        peers: tuple[Outputs, ...] = ()
        if batch is not None:
            begin = time.perf_counter()
            teachers = tuple(teacher.outputs(batch) for teacher in job.teachers)
            self.teacher_seconds += time.perf_counter() - begin
            student = self._network(self._forward_student, job.student_levels)(batch.inputs)
            peers = tuple(self._network(p, lv)(batch.inputs) for p, lv in zip(job.peers, job.peer_levels, strict=True))
        labelled = None if self._unlabelled else batch
        seen: Any = batch  # None for an algorithm that gets no data, which its author knows
        # Nothing in here may lead to the job: through it one comes to the data, which needs.data may forbid.
        return StepContext(
            batch=seen,
            student=student,
            teachers=teachers,
            peers=peers,
            clock=clock,
            networks=self._networks(),
            task_loss=partial(_checked_task_loss, self._task_loss, labelled, job.title),
            random=partial(_random, job.seed, clock.step, job.ranks.rank, part),
            device=job.precision.device,
            batch_size=len(batch.index) if batch is not None else job.batch_size // job.train.accumulate,
            modules=self._modules(),
            note=values.note,
        )

    def whole(self, ctx: StepContext) -> StepContext:
        """The context of the global batch, detached: the same on every process, as ``Algorithm.update`` needs it."""
        ranks = self._job.ranks
        if ranks.world == 1 or ctx.batch is None:
            return ctx
        shares: Any = {name: ranks.gather(getattr(ctx.batch, name)) for name in ("inputs", "targets", "index")}
        if ctx.batch.mixed is not None:
            shares["mixed"] = Mixed(ranks.gather(ctx.batch.mixed.targets), ranks.gather(ctx.batch.mixed.share))

        def gathered(outputs: Outputs) -> Outputs:
            pre_logits: Any = None if outputs.pre_logits is None else ranks.gather(outputs.pre_logits.detach())
            features = tuple(ranks.gather(feature.detach()) for feature in outputs.features)
            return Outputs(ranks.gather(outputs.logits.detach()), features, pre_logits)

        return replace(
            ctx,
            random=partial(_random, self._job.seed, ctx.clock.step, 0, 0),  # the same draws on every process
            batch=replace(ctx.batch, **shares),
            student=gathered(ctx.student),
            teachers=tuple(map(gathered, ctx.teachers)),
            peers=tuple(map(gathered, ctx.peers)),
        )

    def _modules(self) -> Mapping[str, nn.Module]:
        job = self._job
        trained = {"student": job.student.model, **{f"peer_{i}": peer.model for i, peer in enumerate(job.peers)}}
        teachers = {f"teacher_{i}": network.model for i, network in job.teacher_networks.items()}
        if "teacher_0" in teachers:
            teachers["teacher"] = teachers["teacher_0"]
        return Withheld(trained, teachers, job.title) if job.sharded else trained | teachers

    def _networks(self) -> dict[str, Callable[[Tensor], Outputs]]:
        job = self._job
        networks = {"student": self._network(self._forward_student, job.student_levels)}
        for i, (peer, levels) in enumerate(zip(job.peers, job.peer_levels, strict=True)):
            networks[f"peer_{i}"] = self._network(peer, levels)
        for i, teacher in enumerate(job.teachers):
            networks[f"teacher_{i}"] = teacher.through
        if job.teachers:
            networks["teacher"] = job.teachers[0].through
        return networks

    def _network(self, network: nn.Module, levels: tuple[int, ...]) -> Callable[[Tensor], Outputs]:
        return partial(_forward, network, levels, self._job.algorithm.needs.pre_logits, self._job.precision)


def micro_batches(batch: Batch | None, parts: int) -> list[Batch | None]:
    """A batch in ``parts`` of one size along N; None, the batch of an algorithm without data, as often."""
    if batch is None or parts == 1:
        return [batch] * parts
    fields: dict[str, Any] = {name: getattr(batch, name).chunk(parts) for name in ("inputs", "targets", "index")}
    if batch.labelled is not None:
        batch = replace(batch, labelled=batch.labelled / parts)
    if batch.mixed is not None:
        pairs = zip(batch.mixed.targets.chunk(parts), batch.mixed.share.chunk(parts), strict=True)
        fields["mixed"] = tuple(Mixed(*pair) for pair in pairs)
    return [replace(batch, **dict(zip(fields, part, strict=True))) for part in zip(*fields.values(), strict=True)]


def _forward(
    network: nn.Module, levels: tuple[int, ...], pre_logits: bool, precision: Precision, inputs: Tensor
) -> Outputs:
    """A trained network's outputs in float32, in whatever precision it runs."""
    with precision.autocast():
        outputs = network(inputs, levels=levels, pre_logits=pre_logits)
    return outputs.float()


def _checked_task_loss(loss: TaskLoss, batch: Batch | None, title: str, logits: Tensor) -> Tensor:
    if batch is None:
        raise ContractError(f"{title}: asked for the task loss, but declared to read no labels")
    if loss.classes == ():
        raise ContractError(
            f"{title}: asked for the task loss, which leaves out the classes of earlier stages, in a stage that has "
            "samples of them"
        )
    return loss(logits, batch.targets, batch.labelled, batch.mixed)


def _random(seed: int, step: int, rank: int, part: int, name: str, shared: bool = False) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "random", name, step, 0 if shared else rank, part))
