"""One training step: what an algorithm may read in it, and the updates it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


Forward = Callable[["Tensor"], "Outputs"]


@dataclass(frozen=True)
class Mixed:
    """What Mixup or CutMix mixed into the samples of a batch."""

    targets: Tensor  # (N,), int64, of the other image; NO_LABEL as in ``Batch``
    share: Tensor  # (N,), float32, of the sample's own image and label in the whole


@dataclass(frozen=True)
class Batch:
    """One batch of training data. Pixels are in [0, 1] and not normalised: each model does that itself.

    Text comes as ids of tokens; shorter rows are filled up to the length of the batch's longest.
    """

    inputs: Tensor  # (N, C, H, W), float32; text: (N, L), int64
    targets: Tensor  # (N,), int64; NO_LABEL, -1, for a sample without a label
    index: Tensor  # (N,), int64, position in the training split
    view: int = 0  # which augmentation of the samples this is
    #: Samples with a label, as the mean over all processes and parts of the step's whole batch, so that losses divided
    #: by it average to the loss of the whole batch. None: all samples have one.
    labelled: float | None = None
    #: What each image is mixed with; ``targets`` and ``index`` are its own sample's, and ``ctx.task_loss`` weighs both
    #: labels. None: nothing is mixed. Only algorithms that read labels by ``ctx.task_loss`` alone, and that need no
    #: ``sample_index``, get such batches.
    mixed: Mixed | None = None


@dataclass(frozen=True)
class Outputs:
    """What a model returns for a batch, always in float32 for an algorithm. Features of text are 0 at padding."""

    logits: Tensor  # (N, K)
    features: tuple[Tensor, ...] = ()  # one (N, C, H, W) per paired level, shallow first; text: (N, D, L, 1)
    pre_logits: Tensor = None  # type: ignore[assignment]  # (N, D), if ``needs.pre_logits`` asks for it

    def float(self) -> Outputs:
        """The same in float32, so that no distillation term is computed in half precision."""
        pre_logits = None if self.pre_logits is None else self.pre_logits.float()
        return Outputs(self.logits.float(), tuple(feature.float() for feature in self.features), pre_logits)


@dataclass(frozen=True)
class Clock:
    """The time in a stage. Epochs and steps count from 0, and ``step`` goes on from epoch to epoch.

    A ramp from 0 to 1 over the first ``n`` epochs is ``min(1, clock.step / (n * clock.steps_per_epoch))``.
    """

    epoch: int
    epochs: int
    step: int  # of the whole stage, 0 to steps - 1; not of the epoch
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Steps of the whole stage."""
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the stage that is done, in [0, 1)."""
        return self.step / max(1, self.steps)


class Draw(Protocol):
    """A fresh CPU generator for a name, fixed by seed and step.

    Each process of a run draws its own numbers; with ``shared`` all draw the same. A draw that decides the shape of a
    network, for example, has to be shared where the network normalises over the global batch.
    """

    def __call__(self, name: str, shared: bool = False) -> torch.Generator: ...


@dataclass(frozen=True)
class StepContext:
    """All that one training step may read. Fields may be added; none is ever removed.

    For an algorithm without data, ``batch`` and ``student`` are None and the tuples are empty. ``networks`` maps
    "student", "teacher", ``teacher_<i>`` and ``peer_<i>`` to a callable that runs that network on new inputs in the
    data's range [0, 1]. The weights of a teacher are frozen, but gradients reach its inputs.
    """

    batch: Batch
    student: Outputs
    teachers: tuple[Outputs, ...]
    peers: tuple[Outputs, ...]
    clock: Clock
    networks: Mapping[str, Forward]
    task_loss: Callable[[Tensor], Tensor]  # logits (N, K) -> the recipe's loss on the batch's targets
    random: Draw
    device: torch.device
    batch_size: int
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)  # the plain networks, for hooks
    #: Log a scalar of this step under a name: it has no weight and no gradient.
    note: Callable[[str, Tensor | float], None] = lambda name, value: None

    @property
    def teacher(self) -> Outputs:
        return self.teachers[0]


@dataclass(frozen=True)
class Update:
    """One optimizer step: of which network, on which loss.

    ``network`` is "student", ``peer_<i>`` or a name in ``Algorithm.networks()``. ``loss`` maps term names to
    unweighted scalars; the core weighs, sums and logs them.
    """

    network: str
    loss: Mapping[str, Tensor]
