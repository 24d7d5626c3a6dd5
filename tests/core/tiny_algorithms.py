"""Algorithms of a few lines for the tests of the core, and an engine round each on the tiny pieces of kdzoo.testing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, OwnNetwork, Paper, Shapes, StepContext, Update
from kdzoo.contract.stage import Stage, StageResult
from kdzoo.testing.tiny import tiny_runner
from kdzoo.training.engine import Engine
from kdzoo.training.job import Plain
from kdzoo.zoo.loading import load_zoo

PAPER = Paper("A paper", "An author", 2020, "https://example.org")

#: Networks whose training does not depend on the batch a sample comes in.
WITHOUT_BATCHNORM = {"channels": [8, 8, 8, 16], "stem_width": 8, "zero_init_last": False, "norm_layer": "groupnorm1"}


def distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().mean()


class Alone(Plain):
    """The task alone, by a name."""

    name, paper, needs = "alone", PAPER, Needs(teachers=0)


class Match(Algorithm):
    """Rung 1: one term beside the task."""

    name, paper = "match", PAPER
    default_weights: ClassVar = {"task": 1.0, "match": 0.5}

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"match": distance(ctx.student.logits, ctx.teacher.logits)}


class Couple(Algorithm):
    """Rung 2 with a peer, which is updated first."""

    name, paper = "couple", PAPER
    needs = Needs(teachers=0, peers=1)
    default_weights: ClassVar = {"task": 1.0, "agree": 1.0}

    def step(self, ctx: StepContext) -> Iterator[Update]:
        student, peer = ctx.student.logits, ctx.peers[0].logits
        yield Update("peer_0", {"task": ctx.task_loss(peer), "agree": distance(peer, student.detach())})
        yield Update("student", {"task": ctx.task_loss(student), "agree": distance(student, peer.detach())})


class Everything(Algorithm):
    """All state there can be: a teacher, a peer, a critic with an optimizer, a projector, a bank of rows."""

    name, paper = "everything", PAPER
    needs = Needs(teachers=1, peers=1, sample_index=True)
    default_weights: ClassVar = {"task": 1.0, "project": 1.0, "bank": 1.0, "fool": 0.1, "critic": 1.0}
    noise = 0.1
    bank: Tensor

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        classes = shapes.num_classes
        self.projector = nn.Linear(classes, classes)
        self.critic = nn.Sequential(nn.Linear(classes, 8), nn.Tanh(), nn.Linear(8, 1))
        self.register_buffer("bank", torch.zeros(shapes.num_samples, classes))

    def networks(self) -> dict[str, OwnNetwork]:
        return {"critic": OwnNetwork(self.critic, {"name": "adam", "lr": 0.01})}

    def step(self, ctx: StepContext) -> Iterator[Update]:
        student, teacher, peer = ctx.student.logits, ctx.teacher.logits, ctx.peers[0].logits
        noise = self.noise * torch.randn(student.shape, generator=ctx.random("noise"))
        yield Update("critic", {"critic": self.critic(student.detach() + noise).mean() - self.critic(teacher).mean()})
        yield Update("peer_0", {"task": ctx.task_loss(peer)})
        yield Update(
            "student",
            {
                "task": ctx.task_loss(student),
                "project": distance(self.projector(student), teacher),
                "bank": distance(student, self.bank[ctx.batch.index]),
                "fool": -self.critic(student).mean(),
            },
        )

    def update(self, ctx: StepContext) -> None:
        self.bank[ctx.batch.index] = self.bank[ctx.batch.index].lerp(ctx.student.logits, 0.5)


def engine(cls: type[Algorithm], root: Path, **changes: Any) -> Engine:
    """An engine before its first step. Its teachers are trained once, whatever ``changes`` say of training."""
    zoo = load_zoo("none")
    runner = tiny_runner(cls, zoo, root, changes)
    usual = {"data": changes.get("data", {}), "precision": changes.get("precision", "fp32")}
    key = (root, json.dumps(usual), runner.plan.teachers != ())
    if key not in _teachers:
        trainer = tiny_runner(cls, zoo, root, usual)
        _teachers[key] = tuple(trainer.train(Stage(f"teacher_{i}", t)) for i, t in enumerate(trainer.plan.teachers))
    stage = next(cls.stages(runner.stage_plan(_teachers[key])))
    assert isinstance(stage, Stage)
    return Engine(runner.build.job(stage, runner.plan.algorithm, runner.build.train_section(stage))[0])


_teachers: dict[Any, tuple[StageResult, ...]] = {}


def weights_of(engine: Engine, network: str = "student") -> dict[str, Tensor]:
    return {key: value.clone() for key, value in engine.networks.modules[network].state_dict().items()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
