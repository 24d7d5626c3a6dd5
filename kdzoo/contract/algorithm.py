"""The contract: one base class, three rungs.

An algorithm overrides the lowest rung that does its job: ``losses`` (named terms), ``step`` (several
optimizer steps in order) or ``stages`` (several phases of training).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kdzoo.contract.declared import Needs, OwnNetwork, Paper, Shapes
from kdzoo.contract.report_items import FinishedRun, ReportItem
from kdzoo.contract.stage import Stage, StagePlan, StageResult
from kdzoo.contract.step import StepContext, Update
from kdzoo.types import NAME

#: The answer to a list of stages is a list of results; no generator type can express that.
Stages = Generator["Stage | list[Stage]", Any, "StageResult"]


class AlgorithmOptions(BaseModel):
    """Base of every algorithm's options: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


#: Type of an option that softens answers.
Temperature = Annotated[
    float,
    Field(
        ge=0.01,
        le=1000,
        description="Divides logits before the softmax: above 1 it softens the answers, 1 leaves them as they are; "
        "dimensionless.",
    ),
]
#: Type of an option that names another algorithm, see ``Algorithm.delegate``.
AlgorithmName = Annotated[str, Field(pattern=rf"^{NAME}$")]


class Algorithm(nn.Module):
    """Base class of every algorithm.

    Subclasses set ``name``, ``paper`` and ``default_weights`` (one entry a loss term; ``task`` is the
    cross-entropy that the default ``step`` adds) and override one rung. Projectors and memory banks are built
    in ``__init__`` from ``shapes``; they are trained and checkpointed with the algorithm and never reach the
    student's file.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    needs: ClassVar[Needs] = Needs()
    default_weights: ClassVar[Mapping[str, float]] = {}
    #: The pure functions that the distillation terms come from, each at the top of its module and named ``..._loss``;
    #: ``kdzoo.losses`` offers them for other training loops.
    loss_functions: ClassVar[tuple[Callable[..., Tensor], ...]] = ()
    also_known_as: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type[AlgorithmOptions]] = AlgorithmOptions
    #: Name of the option that chooses the algorithm for the stages; options that this class does not declare then go to
    #: that algorithm, and so do the loss weights.
    delegate: ClassVar[str | None] = None
    #: Options and loss weights, under ``options`` and ``loss_weights``, that an algorithm has by default where this one
    #: hands its work to it, by that algorithm's name.
    delegate_defaults: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    #: Conformance checks that do not apply, each with the reason; shown on the card.
    skip_checks: ClassVar[Mapping[str, str]] = {}
    #: What every recipe of this algorithm needs, e.g. a student of some kind; the conformance suite adds it to its own
    #: recipe.
    tiny_recipe: ClassVar[Mapping[str, Any]] = {}
    #: How the control is trained, if the student is not expected to beat it, e.g. "on all tasks at once"; empty if the
    #: control shows what distillation is worth.
    upper_bound: ClassVar[str] = ""
    #: Name of the quantizer that the delivered student is trained in, see ``ModelSpec``; None: floats.
    quantizer: ClassVar[str | None] = None
    #: Whether ``stages`` delivers a network of its own choice in place of the recipe's student.
    chooses_student: ClassVar[bool] = False

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__()
        self.options: Any = options  # an instance of this class's own Options
        self.shapes = shapes

    def networks(self) -> Mapping[str, OwnNetwork]:
        """Return the algorithm's networks that have their own optimizer, e.g. a discriminator."""
        return {}

    def losses(self, ctx: StepContext) -> Mapping[str, Tensor]:
        """Return named, unweighted, finite scalars. Pure: state changes belong in ``update``."""
        raise TypeError(f"{type(self).__name__} overrides none of losses, step and stages")

    def step(self, ctx: StepContext) -> Iterator[Update]:
        """Yield optimizer steps in order; the core runs backward and the step before resuming."""
        yield Update("student", {"task": ctx.task_loss(ctx.student.logits), **self.losses(ctx)})

    def update(self, ctx: StepContext) -> None:
        """Change state (banks, moving averages) after the optimizer steps, without gradient."""

    def warnings(self, means: Mapping[str, float]) -> Iterable[str]:
        """Return what is wrong, if anything; called at the end of each epoch with the mean of every term and note."""
        return ()

    @classmethod
    def load_start(cls, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of ``Stage.start`` into a stage's network; by default both must be the same network.

        Override it if they are weights of another network, e.g. to cut a narrow network out of a wide one.
        """
        model.load_state_dict(weights, strict=True)

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        """Yield stages, alone or as a list of independent ones; return the student's result."""
        return (yield Stage("student", plan.student, plan.own, plan.teachers, plan.peers))

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        """Return what else the report shows of a finished run: tables, plots, pictures, further measurements."""
        return ()
