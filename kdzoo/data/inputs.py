"""What goes into a network: pixels, measurements or ids of tokens.

Everything that depends on the kind of the samples is answered here: made-up examples, the way from a sample to what a
model takes, what an exported file says of itself, and the code that loads the student. Other modules ask and do not
branch on the kind. torch is imported when a tensor is made, so that reading a description stays light.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from kdzoo.contract.extension_points import ArraySplit, DataSplits
from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.data.image_code import image_code

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["image", "measurements", "text"]

#: Test texts that are timed one after the other; texts differ in length.
TIMED_TEXTS = 100
#: The file in which the library tokenizers keeps a whole tokenizer.
TOKENIZER = "tokenizer/tokenizer.json"


@dataclass(frozen=True)
class Inputs(ABC):
    """The form of a sample: as a data set has it, or, after ``of_model``, as one network takes it."""

    channels: int
    size: tuple[int, int]  # (H, W); of text (L, 1)
    mean: tuple[float, ...]  # a channel
    std: tuple[float, ...]

    kind: ClassVar[Kind]
    noun: ClassVar[str]  # what one sample is called
    dtype: ClassVar[type[np.generic]]  # of what a model is fed with
    stored_dtype: ClassVar[type[np.generic]]  # of an array of samples in a data set
    #: Whether inputs are maps (N, C, H, W), which can be laid out channels last.
    has_channels: ClassVar[bool] = True
    #: Whether a network is built from what is known of the data, in addition to its name, arguments and seed.
    shapes_the_model: ClassVar[bool] = False
    #: How many test samples are timed one after the other.
    timed_samples: ClassVar[int] = 1

    @property
    def steps(self) -> Preprocessing | None:
        """The steps from an image file to pixels; None where samples come otherwise."""
        return None

    @property
    def pad(self) -> int | None:
        """The id that fills rows up; None where there are no ids."""
        return None

    @property
    def modality(self) -> str | None:
        """The modality that a network reads; None: everything there is."""
        return None

    @property
    def window(self) -> tuple[int, int, int] | None:
        """The channels of that modality, (first, last + 1), of how many there are; None: all of them."""
        return None

    # --- tensors ------------------------------------------------------------------------------

    @abstractmethod
    def example(self, samples: int) -> Tensor:
        """Return made-up samples, the same ones each time, as a data set has them."""

    @abstractmethod
    def model_example(self, samples: int) -> Tensor:
        """Return made-up inputs, the same ones each time, as a model takes them."""

    @abstractmethod
    def preprocess(self, inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Turn samples into what a model takes. ``mean`` and ``std`` are this object's own, on the device."""

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Put batches of prepared inputs together to one array."""
        return np.concatenate(list(parts))

    def as_wide_as(self, batch: Tensor, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Cut stored features of these inputs to the width of ``batch``."""
        return features

    # --- words and records --------------------------------------------------------------------

    @property
    @abstractmethod
    def shape_words(self) -> str:
        """The shape of one input in an error, e.g. ``3 x 32 x 32``."""

    @abstractmethod
    def describe(self) -> str:
        """Say on one line what a network takes."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Return ``preprocessing`` of an exported file: all that a user needs to feed it with."""

    def model_args(self) -> dict[str, Any]:
        """Return the arguments that a network for such inputs is built with."""
        return {}

    def content(self) -> list[Any]:
        """Return what belongs to the data set's fingerprint in addition to the samples."""
        return []

    def record(self) -> dict[str, Any]:
        """Return what student.json holds of the inputs."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "size": list(self.size),
            "channels": self.channels,
            "floats": self.kind == "measurements",
        }

    def signature(self) -> dict[str, Any]:
        """Return what a process needs that feeds a file: the type on the pipe, and the id that fills rows up."""
        return {"dtype": np.dtype(self.dtype).newbyteorder("<").str, "pad": self.pad}

    def files(self, at_root: bool = False) -> dict[str, bytes]:
        """Return the files that are delivered with the student, by path.

        ``at_root``: another library loads the folder as a whole, so it gets them next to the weights too.
        """
        return {}

    def image_code(self) -> list[str]:
        """Return lines of Python that turn an image file into ``pixels``; none where samples come otherwise."""
        return []

    @abstractmethod
    def sentence(self) -> str:
        """Say in one sentence what a user feeds the delivered student with."""

    @abstractmethod
    def code(self, model: str, args: Mapping[str, Any], imports: str | None, classes: Sequence[str]) -> str:
        """Return Python that loads student.safetensors and answers one sample; run from the run folder."""

    @property
    def libraries(self) -> str:
        """What that code needs."""
        return "timm alone"

    def usage(self, model: str, args: Mapping[str, Any], imports: str | None, classes: Sequence[str]) -> dict[str, str]:
        """Return how the delivered student is used: ``kind``, ``inputs``, ``title`` and ``code``."""
        return {
            "kind": self.kind,
            "inputs": self.sentence(),
            "title": f"With {self.libraries}",
            "code": self.code(model, args, imports, classes),
        }


@dataclass(frozen=True)
class Pixels(Inputs):
    """Images: pixels (N, C, H, W) in [0, 1], resized and normalised for the model."""

    #: Of a data set: the channels of each modality, (first, last + 1).
    modalities: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    read: tuple[str, tuple[int, int, int]] | None = None  # of a network: its modality and the window
    preprocessing: Preprocessing | None = None  # of files; None: pixels are as the data set stores them
    stored_size: tuple[int, int] | None = None  # of a network: (H, W) that the data set has

    kind: ClassVar[Kind] = "image"
    noun: ClassVar[str] = "image"
    dtype: ClassVar[type[np.generic]] = np.float32
    stored_dtype: ClassVar[type[np.generic]] = np.uint8
    value_range: ClassVar[list[float] | None] = [0.0, 1.0]
    values: ClassVar[str] = "pixels scaled to [0, 1]"

    @property
    def steps(self) -> Preprocessing | None:
        return self.preprocessing

    @property
    def modality(self) -> str | None:
        return None if self.read is None else self.read[0]

    @property
    def window(self) -> tuple[int, int, int] | None:
        return None if self.read is None else self.read[1]

    def of_modality(self, name: str) -> Pixels:
        """Return one modality's channels of a data set as inputs of their own."""
        first, last = self.modalities[name]
        mean, std = self.mean[first:last], self.std[first:last]
        return replace(self, channels=last - first, mean=mean, std=std, read=(name, (first, last, self.channels)))

    def of_model(
        self,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        preprocessing: Preprocessing | None = None,
    ) -> Pixels:
        """Return these inputs as one network takes them; ``preprocessing`` are its own steps from a file."""
        return replace(
            self,
            channels=channels,
            size=size,
            mean=tuple(mean),
            std=tuple(std),
            modalities={},
            stored_size=self.size,
            preprocessing=preprocessing,
        )

    def example(self, samples: int) -> Tensor:
        import torch

        channels = self.channels if self.window is None else self.window[2]
        return torch.rand(samples, channels, *self.size, generator=torch.Generator().manual_seed(0))

    def model_example(self, samples: int) -> Tensor:
        import torch

        return torch.randn(samples, self.channels, *self.size, generator=torch.Generator().manual_seed(0))

    def preprocess(self, inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Turn (N, C, H, W) into the model's channels and size, normalised."""
        if self.window is not None:
            inputs = inputs[:, self.window[0] : self.window[1]]
        if inputs.shape[1] != self.channels:
            inputs = inputs.expand(-1, self.channels, -1, -1)  # grey to as many equal channels
        if tuple(inputs.shape[2:]) != self.size:
            import torch.nn.functional as F

            inputs = F.interpolate(inputs, self.size, mode="bilinear", antialias=True)
        return (inputs - mean).div_(std)

    @property
    def shape_words(self) -> str:
        return f"{self.channels} x {self.size[0]} x {self.size[1]}"

    def describe(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}" + (f" of {self.modality}" if self.modality else "")
        if self.preprocessing is not None:
            steps = self.preprocessing
            size += f" ({steps.resize}, crop share {steps.crop_share:.4g}, {steps.interpolation}, {steps.color_mode})"
        size += " (resized again, bilinear)" if self._resized_again else ""
        return f"input {size}, mean {_few(self.mean)}, std {_few(self.std)}"

    def metadata(self) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "layout": "NCHW",
            "channels": self.channels,
            "size": list(self.size),
            "range": self.value_range,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.modality is not None:
            entry["modality"] = self.modality
        if self.preprocessing is not None:
            entry["image"] = self.preprocessing.decoding()
        if self._resized_again:
            entry["resize_again"] = {"size": list(self.size), "interpolation": "bilinear", "antialias": True}
        return entry

    @property
    def _resized_again(self) -> bool:
        """Whether samples of the data set are resized for the network; of files it has its own steps instead."""
        return self.preprocessing is None and self.stored_size not in (None, self.size)

    def record(self) -> dict[str, Any]:
        modality = {"modality": self.modality} if self.modality else {}
        return super().record() | modality | {"preprocessing": self.metadata()}

    def image_code(self) -> list[str]:
        return [] if self.preprocessing is None else image_code(self.preprocessing, self.channels)

    def sentence(self) -> str:
        modality = f" of the modality {self.modality}" if self.modality else ""
        files = f" Image files are {self.preprocessing.sentence()}." if self.preprocessing is not None else ""
        again = (
            f" of {self.stored_size[0]}x{self.stored_size[1]}, resized (bilinear, antialiased)"
            if (self.stored_size is not None and self._resized_again)
            else ""
        )
        return (
            f"float32 `(N, {self.channels}, {self.size[0]}, {self.size[1]})`{modality}, {self.values}{again}, then "
            f"normalised by mean `{_listed(self.mean)}` and std `{_listed(self.std)}` a channel.{files}"
        )

    def code(self, model: str, args: Mapping[str, Any], imports: str | None, classes: Sequence[str]) -> str:
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
        given.setdefault("num_classes", len(classes))
        arguments = "".join(f", {key}={value!r}" for key, value in given.items())
        files = self.image_code()
        loaded = [*files, "pixels = torch.from_numpy(pixels)"]
        made_up = [f"pixels = torch.rand{(1, self.channels, *self.size)}  # your images, scaled to [0, 1]"]
        return "\n".join(
            [
                *([f"import {imports}  # makes the network known to timm"] if imports else []),
                *(["import numpy as np"] if files else []),
                "import timm",
                "import torch",
                *(["from PIL import Image, ImageOps"] if files else []),
                "from safetensors.torch import load_file",
                "",
                f"model = timm.create_model({model!r}{arguments})",
                'model.load_state_dict(load_file("student.safetensors"))',
                "model.eval()",
                "",
                *(loaded if files else made_up),
                f"mean = torch.tensor({list(self.mean)}).view(1, -1, 1, 1)",
                f"std = torch.tensor({list(self.std)}).view(1, -1, 1, 1)",
                "with torch.no_grad():",
                "    logits = model((pixels - mean) / std)",
            ]
        )


@dataclass(frozen=True)
class Measurements(Pixels):
    """Measurements in float32 that come as the data set has them: (N, C, H, W), normalised for the model."""

    kind: ClassVar[Kind] = "measurements"
    stored_dtype: ClassVar[type[np.generic]] = np.float32
    value_range: ClassVar[list[float] | None] = None
    values: ClassVar[str] = "measurements as the data set has them"


@dataclass(frozen=True)
class TokenIds(Inputs):
    """Text: ids of tokens (N, L), int64, shorter rows filled up at their end with ``fill``."""

    vocab_size: int
    fill: int
    unknown: int
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)  # its files by name
    seen: tuple[int, ...] | None = None  # ids that occur in the training split

    kind: ClassVar[Kind] = "text"
    noun: ClassVar[str] = "text"
    dtype: ClassVar[type[np.generic]] = np.int64
    stored_dtype: ClassVar[type[np.generic]] = np.int64
    has_channels: ClassVar[bool] = False
    shapes_the_model: ClassVar[bool] = True
    timed_samples: ClassVar[int] = TIMED_TEXTS

    @property
    def pad(self) -> int:
        return self.fill

    def example(self, samples: int) -> Tensor:
        """Return ids (N, L) without fill."""
        import torch

        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1, self.vocab_size, (samples, self.size[0]), generator=generator)
        return (ids + self.fill) % self.vocab_size

    def model_example(self, samples: int) -> Tensor:
        return self.example(samples)

    def preprocess(self, inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return the ids as they are."""
        return inputs

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        width = max(part.shape[1] for part in parts)
        filled = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=self.fill) for part in parts]
        return np.concatenate(filled)

    def as_wide_as(self, batch: Tensor, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(feature[:, :, : batch.shape[1]] for feature in features)

    @property
    def shape_words(self) -> str:
        return f"{self.size[0]} tokens"

    def describe(self) -> str:
        return f"up to {self.size[0]} tokens"

    def with_seen(self, ids: np.ndarray) -> TokenIds:
        """Return these inputs with the ids that occur in a training split, (N, L)."""
        return replace(self, seen=tuple(np.unique(ids).tolist()))

    def content(self) -> list[Any]:
        files = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.tokenizer.items())}
        return [[self.vocab_size, self.fill, self.unknown, files]]

    def numbers(self) -> dict[str, int]:
        """Return the vocabulary's size and its two special ids."""
        return {"vocab_size": self.vocab_size, "pad": self.fill, "unknown": self.unknown}

    def metadata(self) -> dict[str, Any]:
        return {"layout": "NL", **self.numbers()}

    def model_args(self) -> dict[str, Any]:
        return {"tokens": {**self.numbers(), **({} if self.seen is None else {"seen": list(self.seen)})}}

    def record(self) -> dict[str, Any]:
        return super().record() | {"tokens": {**self.numbers(), "files": sorted(self.files())}}

    def files(self, at_root: bool = False) -> dict[str, bytes]:
        below = {f"tokenizer/{name}": content for name, content in self.tokenizer.items()}
        return below | dict(self.tokenizer) if at_root else below

    def sentence(self) -> str:
        return (
            f"ids of tokens, int64 `(N, L)` of any length L, shorter rows filled up at their end with {self.fill}; the "
            "tokenizer lies beside the student."
        )

    @property
    def libraries(self) -> str:
        return "timm and tokenizers"

    def code(self, model: str, args: Mapping[str, Any], imports: str | None, classes: Sequence[str]) -> str:
        return "\n".join(
            [
                f"import {imports}  # makes the network known to timm",
                "import json",
                "",
                "import timm",
                "import torch",
                "from safetensors.torch import load_file",
                "from tokenizers import Tokenizer",
                "",
                'student = json.load(open("student.json"))',
                'model = timm.create_model(student["model"], **student["args"])',
                'model.load_state_dict(load_file("student.safetensors"))',
                "model.eval()",
                "",
                *encoding_code(),
                "with torch.no_grad():",
                "    logits = model(torch.tensor([ids]))",
                'answer = student["classes"][int(logits.argmax())]',
            ]
        )


def encoding_code() -> list[str]:
    """Return lines of Python that turn one text into ``ids``."""
    return [
        f"tokenizer = Tokenizer.from_file({TOKENIZER!r})",
        "tokenizer.no_padding()",
        'ids = tokenizer.encode("your text").ids',
    ]


def inputs_of(splits: DataSplits, preprocessing: Preprocessing | None = None) -> Inputs:
    """Return the form of a data set's samples; ``preprocessing`` are the steps from an image file to pixels."""
    if preprocessing is not None:
        steps = preprocessing
        return Pixels(steps.channels, steps.size, steps.mean, steps.std, dict(splits.modalities), preprocessing=steps)
    channels, size = splits.channels, (int(splits.size[0]), int(splits.size[1]))
    mean, std = tuple(splits.mean), tuple(splits.std)
    tokens = splits.tokens
    if tokens is not None:
        return TokenIds(channels, size, mean, std, tokens.vocab_size, tokens.pad, tokens.unknown, dict(tokens.files))
    floats = isinstance(splits.train, ArraySplit) and splits.train.images.dtype == np.float32
    kind = Measurements if floats else Pixels
    return kind(channels, size, mean, std, dict(splits.modalities))


def _few(numbers: Sequence[float]) -> str:
    return "/".join(f"{number:.3g}" for number in numbers)


def _listed(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
