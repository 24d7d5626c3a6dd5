"""The job of one stage: all that it trains with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdzoo.contract.algorithm import Algorithm
from kdzoo.training.parallel import Ranks

if TYPE_CHECKING:
    from torch import Tensor

    from kdzoo.contract.step import StepContext
    from kdzoo.data.loader import Loader
    from kdzoo.models.network import Network
    from kdzoo.recipe.train_sections import TrainRecipe
    from kdzoo.training.device import Precision
    from kdzoo.training.stored_answers import AnsweringTeacher
    from kdzoo.training.teacher import Teacher


#: The term of the labels, which the default ``step`` of an algorithm adds.
TASK = "task"


class Plain(Algorithm):
    """Train on the task alone: the control, and a teacher that is trained first."""

    default_weights = {TASK: 1.0}

    def losses(self, ctx: StepContext) -> Mapping[str, Tensor]:
        return {}


@dataclass
class Job:
    """All that one stage trains with. ``loader`` is None for an algorithm that gets no data."""

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
    teachers: Sequence[Teacher | AnsweringTeacher] = ()
    peers: Sequence[Network] = ()
    student_levels: tuple[int, ...] = ()
    peer_levels: Sequence[tuple[int, ...]] = ()
    views: int | None = None  # augmentations that repeat, for cached teachers; None: a fresh one each epoch
    validate: Callable[[Network], dict[str, float]] | None = None
    task_classes: tuple[int, ...] | None = None  # classes of the task loss; None: all, (): it has samples of others
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def unlabelled(self) -> bool:
        """Whether no sample has a label, so that the task's loss is 0."""
        return self.loader is not None and self.loader.data.labels == ()

    @property
    def teacher_networks(self) -> dict[int, Network]:
        """The teachers' networks by number, without those of teachers that are known by their answers only."""
        return {i: teacher.network for i, teacher in enumerate(self.teachers) if teacher.network is not None}

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the student and the peers, so that all take part in saving them."""
        return self.train.shard and self.ranks.world > 1

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.train.epochs * self.steps_per_epoch

    @property
    def title(self) -> str:
        """The algorithm as error messages call it."""
        return f"algorithm '{getattr(self.algorithm, 'name', type(self.algorithm).__name__)}'"


def has_report_items(cls: type[Algorithm]) -> bool:
    """Whether an algorithm has report_items, for which its stages keep its weights."""
    return cls.report_items.__func__ is not Algorithm.report_items.__func__  # type: ignore[attr-defined]
