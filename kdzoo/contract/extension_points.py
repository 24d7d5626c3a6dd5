"""What a plugin may offer besides algorithms: models, data sets, export formats, quantizers, trackers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


class OfferOptions(BaseModel):
    """Base of the options of data sets, export formats, quantizers and trackers: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


# --- models ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFamily:
    """Models that a plugin adds to timm's registry; after its import ``timm.create_model`` makes them."""

    name: str  # e.g. "cifar_resnet"
    models: tuple[str, ...]
    description: str = ""


# --- data -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArraySplit:
    """A split that lives in memory: images (N, H, W, C) or (N, H, W), uint8; targets (N,), int.

    Measurements that are not pixels are float32, and models take them unchanged.
    """

    images: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class FileSplit:
    """A split of encoded images, which the core decodes sample by sample in DataLoader workers.

    ``content(i)`` returns the bytes of an image file: JPEG, PNG, WebP or BMP. It is called in worker processes too. A
    sample that cannot be read raises DataError and is never replaced. The source is ``encoded``.
    """

    names: tuple[str, ...]  # what to call each sample in an error, e.g. its path
    targets: np.ndarray
    content: Callable[[int], bytes]
    digest: Callable[[int], str] | None = None  # hash of a sample, cheaper than its content; None: hash the content
    #: The file of each sample, as an absolute path, where each has one: what is found out about a file is remembered
    #: until it changes. Empty: nothing is remembered.
    files: tuple[str, ...] = ()
    #: Which part of its file each sample is, where files hold several; empty: a file is a sample.
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenSplit:
    """A split of text: token ids (N, L), int, each row padded at its end; targets (N,), int."""

    ids: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Tokens:
    """How text became ids: 0 to ``vocab_size`` - 1; ``pad`` is the id of padding and occurs in no text.

    ``files`` are the tokenizer's files by name; they are delivered with the student.
    """

    vocab_size: int
    pad: int
    unknown: int  # the id of what the vocabulary lacks
    files: Mapping[str, bytes] = field(default_factory=dict)


Split = ArraySplit | FileSplit | TokenSplit


@dataclass(frozen=True)
class DataSplits:
    """A data set in its official splits. ``test`` is a callable so that nothing reads it too early.

    Of encoded images, channels, size, mean and std are the recipe's to say, in ``data.preprocessing``; leave them out.
    Text has ``tokens`` and no pixels: one channel, a size of (L, 1), a mean of 0 and a std of 1. If a sample has
    several recordings, ``modalities`` name the channels of each, as (first, last + 1).
    """

    train: Split
    test: Callable[[], Split]
    classes: tuple[str, ...]
    channels: int = 0
    size: tuple[int, int] = (0, 0)  # (H, W) that models are fed with
    mean: tuple[float, ...] = ()  # a channel, of pixels in [0, 1]
    std: tuple[float, ...] = ()
    validation: Split | None = None  # None: the core holds out a seeded share of train
    source: str = ""
    licence: str = ""
    modalities: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # none: every model reads all channels
    tokens: Tokens | None = None  # of text; every split is then a TokenSplit
    #: Whether training samples may have no label, their target being NO_LABEL. Where none has one, the test split may
    #: have none either.
    unlabelled: bool = False


class Optioned(ABC):
    """Base of things that a recipe chooses by name and sets by options."""

    name: ClassVar[str]
    description: ClassVar[str] = ""
    Options: ClassVar[type[OfferOptions]] = OfferOptions

    def __init__(self, options: OfferOptions) -> None:
        self.options = options


class DataSource(Optioned):
    """A data set by name. ``load`` may read files below ``root``; it never replaces a bad sample."""

    encoded: ClassVar[bool] = False  # whether its splits are FileSplits, which the recipe's data.preprocessing is for

    @abstractmethod
    def load(self, root: Path) -> DataSplits:
        """Return the splits; raise DataError, which says what would be right, if they are not available."""


# --- export ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """How to use a file: Python ``code`` that runs in the run folder, and a ``title`` such as "With timm alone"."""

    title: str
    code: str


class Exporter(Optioned):
    """One export format, with the runtime that checks its files."""

    suffix: ClassVar[str]  # of the file, e.g. ".onnx"
    #: Suffixes of further files that the format writes next to it, under the same name, e.g. a file of weights.
    further_suffixes: ClassVar[tuple[str, ...]] = ()
    #: Kinds of samples that a file can take. A recipe with other data is refused before training.
    takes: ClassVar[tuple[str, ...]] = ("image", "measurements", "text")

    @property
    def label(self) -> str:
        """Distinguish files of one format, e.g. ``int8``; empty for the plain one."""
        return ""

    #: Whether the file holds the student as its quantizer trained it, not its plain weights.
    needs_quantizer: bool = False
    #: Whether the file computes in coarser numbers than the student, so that accuracy may be lost.
    quantizes: bool = False
    #: Largest loss of accuracy against the student, in points, before the file is rejected.
    tolerance_points: float = 0.1
    #: Largest absolute difference of logits, relative to their largest magnitude; None: only accuracy counts.
    tolerance_logits: float | None = 1e-3
    #: Most samples that the file answers at once; None: any number. The checks feed no more.
    largest_batch: int | None = None

    def file_names(self, stem: str) -> tuple[str, ...]:
        """Return the names of the files that the format writes, first the one that is loaded."""
        name = ".".join(part for part in (stem, self.label) if part)
        return tuple(name + suffix for suffix in (self.suffix, *self.further_suffixes))

    @abstractmethod
    def export(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path,
        metadata: Mapping[str, str],
        calibration: Sequence[Tensor],
    ) -> None:
        """Write ``model`` to ``path``; the batch size is free, up to ``largest_batch``.

        ``model`` is plain and in eval mode. Further files of the format go next to ``path``.
        ``example`` is one normalised batch (N, C, H, W); ``calibration`` are training batches of that kind. For text
        they are ids (N, L), int64, and L is dynamic too.
        """

    @abstractmethod
    def load(self, path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        """Return the file's own runtime: normalised (N, C, H, W) float32, or ids (N, L) int64, -> (N, K) float32.

        Further files of the format are next to ``path``. N is at most ``largest_batch``.
        """

    def usage(self, file: str, kind: str, pixels: Sequence[str] = ()) -> Usage | None:
        """Return code that loads ``file``, a path in the run folder, and answers one sample; None: there is none.

        ``kind`` says what a sample is: "image", "text" or "measurements". A text goes through the tokenizer in
        tokenizer/tokenizer.json. Where images come as files, ``pixels`` are lines of Python that end with ``pixels``,
        float32 (1, C, H, W) in [0, 1]; they use numpy as np, and Image and ImageOps of PIL.
        """
        return None


# --- quantizer -----------------------------------------------------------------------------


class Quantizer(Optioned):
    """A way to compute a network other than in floats: it is trained with the rounding, and converted for export."""

    @abstractmethod
    def prepare(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return a rounding form of ``model``, which is plain and on the CPU: (N, C, H, W) -> logits (N, K), trainable.

        ``example`` is a normalised batch of at least two. The returned network has a training and an eval mode, changes
        no state in the latter, can be copied, and its state dict is its whole state.
        """

    @abstractmethod
    def plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the plain model's weights out of the state dict of a prepared one."""

    @abstractmethod
    def convert(self, prepared: nn.Module) -> nn.Module:
        """Return a copy, on the CPU and in eval mode, for exporters to write."""


# --- tracking -------------------------------------------------------------------------------


RunState = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker tracks.

    ``id`` is 32 hexadecimal digits, the same as often as the run goes on; ``recipe`` holds every default.
    """

    id: str
    folder: Path
    name: str  # of the recipe
    seed: int
    recipe: Mapping[str, Any]
    resumed: bool  # whether it goes on after a stop; every row of the log then comes again, from the first on


class Tracker(ABC):
    """Receives the values that a run also writes to metrics.jsonl.

    A recipe names it, or gives it options: ``{name: mlflow, options: {experiment: digits}}``. Made without arguments,
    it has ``options`` and ``run`` before it is started. What it writes goes below ``<folder>/trackers/``.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    Options: ClassVar[type[OfferOptions]] = OfferOptions
    options: OfferOptions
    run: TrackedRun

    @classmethod
    def check(cls, options: OfferOptions) -> None:
        """Raise NeedsError where it cannot work here, e.g. without its library; called before anything is trained."""
        return

    @abstractmethod
    def start(self, folder: Path) -> None:
        """Begin to track ``run``, whose folder this is."""

    @abstractmethod
    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Record scalars of one stage at one optimizer step."""

    @abstractmethod
    def close(self) -> None:
        """Flush and close: nothing more is logged, and the folder is about to be sealed."""

    def finish(self, state: RunState, results: Mapping[str, Any]) -> None:
        """Learn how the run ended, after ``close``.

        ``finished``: every file of the folder is there and recorded in its manifest, and ``results`` is what
        results.json holds. ``stopped`` by a signal, or ``failed``: ``results`` is empty, and the run may go on later.
        After a kill nothing is called.
        """
        return


@dataclass(frozen=True)
class Offer:
    """A thing offered, with its owner."""

    name: str
    thing: Any
    plugin: str
    distribution: str
    version: str
