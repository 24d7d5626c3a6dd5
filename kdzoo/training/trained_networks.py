"""The networks that a stage trains, each with its optimizer, and the student's moving average."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.step import Update
from kdzoo.errors import ContractError
from kdzoo.training.batch_norm import running_statistics, use_global_batch_norm
from kdzoo.training.device import check_gradients
from kdzoo.training.freezing import Freezing, checkpoint_gradients
from kdzoo.training.gradient_averaging import GradientAveraging
from kdzoo.training.optimization import Optimized, settings_of
from kdzoo.training.sharding import is_sharded, shard

if TYPE_CHECKING:
    from kdzoo.models.network import Network
    from kdzoo.training.job import Job

#: The schedule of a network that the algorithm wants to keep its learning rate.
UNSCHEDULED = {"schedule": {"name": "constant", "warmup_epochs": 0, "milestones": ()}}


class TrainedNetworks:
    """The networks of a job by name: "student", ``peer_<i>`` and those of ``Algorithm.networks()``.

    ``modules`` holds the networks, ``optimized`` their optimizers, ``averaging`` what averages the gradients of each
    over the processes. The student's optimizer also trains the parameters of the algorithm that belong to no network of
    its own. ``forward_student`` is the student as steps call it.
    """

    def __init__(self, job: Job) -> None:
        """Place the networks on their device. Raises ContractError for parameters that two optimizers would train."""
        self._job = job
        self._place()
        self._freezing = self._frozen()
        own = dict(job.algorithm.networks())
        self.modules: dict[str, nn.Module] = {"student": job.student.model}
        self.modules |= {f"peer_{i}": peer.model for i, peer in enumerate(job.peers)}
        for name, mine in own.items():
            if name in self.modules:
                raise ContractError(f"{job.title}: networks() may not name '{name}', which the core trains")
            self.modules[name] = mine.module
        self.optimized = self._optimizers(own)
        self._check_disjoint()
        self.averaging = {
            name: GradientAveraging([p for p in optimized.parameters if not is_sharded(p)], job.ranks)
            for name, optimized in self.optimized.items()
        }
        everything = {**self.modules, "": job.algorithm}
        self._parts = [(name, module, tuple(module.modules())) for name, module in everything.items()]
        decay = job.train.ema_decay
        self.ema = None
        if decay is not None:
            self.ema = AveragedModel(job.student.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.forward_student: nn.Module = torch.compile(job.student) if job.train.compile else job.student  # type: ignore[assignment]

    def _place(self) -> None:
        job = self._job
        for network in (job.student, *job.peers):
            check_gradients(job.precision, network)
            job.precision.place(network)
        job.algorithm.to(job.precision.device)
        self._statistics: list[Tensor] = []
        if job.ranks.world > 1:
            for module in (job.student, *job.peers, job.algorithm):
                if job.train.batch_norm == "global":
                    use_global_batch_norm(module)
                else:
                    self._statistics += running_statistics(module)

        if job.sharded:
            for network in (job.student, *job.peers):
                shard(network.model)

    def _frozen(self) -> Freezing:
        """What of the networks stands still, before their optimizers look for what is trained."""
        job = self._job
        networks = {"student": job.student.model} | {f"peer_{i}": peer.model for i, peer in enumerate(job.peers)}
        if job.train.grad_checkpointing:
            for name, model in networks.items():
                checkpoint_gradients(name, model, job.train)
        return Freezing(networks, job.train, job.steps_per_epoch)

    def _optimizers(self, own: Mapping[str, Any]) -> dict[str, Optimized]:
        job = self._job
        common = settings_of(job.train.optimizer)
        with_student = nn.ModuleDict({"network": job.student.model, "algorithm": _rest(job.algorithm, own)})
        optimized = partial(Optimized, train=job.train, steps_per_epoch=job.steps_per_epoch, precision=job.precision)
        found = {"student": optimized(with_student, common, network=job.student.model)}
        for i, peer in enumerate(job.peers):
            found[f"peer_{i}"] = optimized(peer.model, common, network=peer.model)
        for name, mine in own.items():
            where = f"{job.title}: optimizer of network '{name}'"
            train = job.train if mine.scheduled else job.train.merged(UNSCHEDULED)
            found[name] = optimized(mine.module, mine.optimizer, train=train, where=where)
        return found

    def _check_disjoint(self) -> None:
        """Raise ContractError where two optimizers train one parameter, or one trains a teacher's."""
        job = self._job
        teachers = {id(p) for network in job.teacher_networks.values() for p in network.parameters()}
        seen: dict[int, str] = {}
        for name, optimized in self.optimized.items():
            for parameter in optimized.parameters:
                if id(parameter) in teachers:
                    raise ContractError(f"{job.title}: the optimizer of '{name}' holds teacher weights")
                if id(parameter) in seen:
                    other = seen[id(parameter)]
                    raise ContractError(f"{job.title}: '{name}' and '{other}' train the same parameter")
                seen[id(parameter)] = name

    def start_step(self, step: int) -> None:
        """Put every network in training mode and set the learning rates of optimizer step ``step``."""
        self._freezing.start_step(step)
        for name, module, parts in self._parts:
            if not all(part.training for part in parts):  # which is many times faster than train()
                module.train()
            for part in self._freezing.still(name, step):
                part.training = False
        for optimized in self.optimized.values():
            optimized.to_step(step)

    def average_statistics(self) -> None:
        """Give every process the mean of the running statistics that each took of its share of the batch.

        It is done after each step, so that a checkpoint of the first process is the state of all.
        """
        if self._statistics:
            flat = self._job.ranks.mean(torch.cat([values.reshape(-1) for values in self._statistics]))
            means = flat.split([values.numel() for values in self._statistics])
            for values, mean in zip(self._statistics, means, strict=True):
                values.copy_(mean.view_as(values))

    def average(self) -> None:
        """Let the moving average follow the student, where the recipe asks for one."""
        if self.ema is not None:
            self.ema.update_parameters(self._job.student.model)

    def of(self, update: Update) -> Optimized:
        """The optimizer that an update asks for; raises ContractError for an unknown network."""
        if not isinstance(update, Update) or update.network not in self.optimized:
            known = ", ".join(self.optimized)
            got = getattr(update, "network", update)
            raise ContractError(f"{self._job.title}: step() yielded an update of '{got}'; known: {known}")
        return self.optimized[update.network]

    @property
    def result_model(self) -> nn.Module:
        """The student's model as it would be delivered now: averaged when the recipe asks for EMA."""
        return self._job.student.model if self.ema is None else self.ema.module

    @property
    def result(self) -> Network:
        """The student around ``result_model``."""
        return self._job.student if self.ema is None else self._job.student.with_model(self.ema.module)


def _rest(algorithm: Algorithm, own: Mapping[str, Any]) -> nn.Module:
    """The algorithm's parameters that no network of its own claims."""
    claimed = {id(p) for network in own.values() for p in network.module.parameters()}
    rest = nn.Module()
    for index, (_, parameter) in enumerate(algorithm.named_parameters()):
        if id(parameter) not in claimed:
            rest.register_parameter(f"own_{index}", parameter)  # type: ignore[arg-type]
    return rest
