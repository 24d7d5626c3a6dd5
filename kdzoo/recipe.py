"""A recipe: YAML in, a validated ``Recipe`` or every problem at once out. Needs neither torch nor any plugin.

The file is read by a loader of our own over PyYAML's events, because PyYAML takes ``1e-3`` for text and ``no`` for
false, lets a duplicate key win in silence and offers tags and aliases, which a recipe has no use for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kdzoo.errors import RecipeError, nearest
from kdzoo.types import stable_hash

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_SHOWN = 50
NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"

# --- what a recipe holds --------------------------------------------------------------------


def _wrong(*problems: tuple[str, str]) -> PydanticCustomError:
    """Make one validation error out of (path below the model, message) pairs."""
    text = "; ".join(f"{path}: {message}" for path, message in problems)
    return PydanticCustomError("problems", "{text}", {"text": text, "problems": problems})


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("text", "must be one line without control characters")
    return text


# Strict, so that true is no number, "0.1" is no number and 1 is no text; lists still become tuples.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), Field(max_length=10_000)]
Line = Annotated[str, Strict(), StringConstraints(min_length=1, max_length=4096), AfterValidator(_one_line)]
Count = Annotated[Whole, Field(ge=1, le=1_000_000_000)]
Percent = Annotated[Real, Field(ge=0, le=100)]
Options = dict[Line, Any]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AlgorithmRecipe(_Section):
    """Which algorithm, with which options and weights of its loss terms."""

    name: Line = Field(description="Name of the algorithm; `kdzoo list` shows them.")
    options: Options = Field({}, description="Options of the algorithm; `kdzoo info NAME` shows them.")
    loss_weights: dict[Line, Annotated[Real, Field(ge=0, le=1e6)]] = Field(
        {}, description="Weight of each loss term; what is left out keeps the algorithm's default."
    )


class OptimizerRecipe(_Section):
    """An optimizer by timm's name."""

    name: Line = Field("sgd", description="Name of the optimizer, as timm knows it.")
    lr: Annotated[Real, Field(gt=0, le=1000)] = Field(0.05, description="Learning rate at its peak.")
    momentum: Annotated[Real, Field(ge=0, lt=1)] | None = Field(
        0.9, description="Momentum, or first beta; null leaves the optimizer's own."
    )
    weight_decay: Annotated[Real, Field(ge=0, le=10)] = Field(5e-4, description="Weight decay.")
    options: Options = Field({}, description="Further arguments of the optimizer.")


class ScheduleRecipe(_Section):
    """How the learning rate changes over the epochs."""

    name: Literal["cosine", "step", "multistep", "constant"] = Field("cosine", description="Shape of the schedule.")
    warmup_epochs: Annotated[Whole, Field(ge=0, le=100_000)] = Field(0, description="Epochs of linear warm-up.")
    milestones: tuple[Annotated[Whole, Field(ge=1, le=100_000)], ...] = Field(
        (), description="multistep: epochs at which lr is multiplied by decay_rate; step: one number, every so many."
    )
    decay_rate: Annotated[Real, Field(gt=0, le=1)] = Field(0.1, description="Factor of step and multistep.")
    min_lr: Annotated[Real, Field(ge=0, le=1000)] = Field(0.0, description="Learning rate that cosine ends at.")

    @model_validator(mode="after")
    def _milestones_fit(self) -> ScheduleRecipe:
        if self.name == "multistep" and not self.milestones:
            raise _wrong(("milestones", "multistep needs at least one milestone"))
        if self.name == "step" and len(self.milestones) != 1:
            raise _wrong(("milestones", f"step needs exactly one number of epochs, got {len(self.milestones)}"))
        if self.name in ("cosine", "constant") and self.milestones:
            raise _wrong(("milestones", f"{self.name} has no milestones; they belong to step and multistep"))
        if list(self.milestones) != sorted(set(self.milestones)):
            raise _wrong(("milestones", f"must increase, got {_shown(list(self.milestones))}"))
        return self


class TrainRecipe(_Section):
    """The training budget, the same for teacher, control and student unless a model overrides it."""

    epochs: Annotated[Whole, Field(ge=1, le=100_000)] = Field(30, description="Passes over the training split.")
    optimizer: OptimizerRecipe = Field(OptimizerRecipe(), description="The optimizer.")
    schedule: ScheduleRecipe = Field(ScheduleRecipe(), description="The learning rate's schedule.")
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = Field(0.0, description="Smoothing of the task's targets.")
    grad_clip_norm: Annotated[Real, Field(gt=0, le=1e6)] | None = Field(
        None, description="Largest norm of the gradient; null does not clip."
    )
    accumulate: Annotated[Whole, Field(ge=1, le=10_000)] = Field(1, description="Batches in one optimizer step.")
    ema_decay: Annotated[Real, Field(gt=0, lt=1)] | None = Field(
        None, description="Decay of a moving average of the student's weights, which is then kept; null: none."
    )
    channels_last: Flag | None = Field(None, description="Memory format; null chooses what pays.")
    compile: Flag = Field(False, description="Use torch.compile; repays after about 1000 steps.")
    select: Literal["last", "best"] = Field("last", description="Keep the last epoch, or the best on validation.")
    checkpoint_seconds: Annotated[Real, Field(ge=0, le=86_400)] = Field(
        60.0, description="Seconds between checkpoints; 0 saves after each step."
    )

    def merged(self, overrides: Mapping[str, Any] | None) -> TrainRecipe:
        """Return this section with a model's or a stage's overrides; raise RecipeError if they do not fit."""
        data = _merge(self.model_dump(), overrides or {})
        try:
            return TrainRecipe.model_validate(data)
        except ValidationError as error:
            found = explain(error, TrainRecipe, data)
            raise RecipeError("; ".join(f"train.{path}: {message}" for path, message in found)) from None


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "options"
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _partial(model: type[BaseModel]) -> type[BaseModel]:
    """Return ``model`` with every key optional and without its checks between keys."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        nested = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        kind: Any = _partial(info.annotation) if nested else info.rebuild_annotation()
        fields[name] = (kind, Field(None, description=info.description))
    return create_model(f"Partial{model.__name__}", __base__=_Section, __doc__=model.__doc__, **fields)


if TYPE_CHECKING:
    TrainOverrides = dict[str, Any]
else:
    TrainOverrides = Annotated[
        _partial(TrainRecipe),
        AfterValidator(lambda part: part.model_dump(exclude_unset=True)),
        PlainSerializer(lambda part: part),
    ]


class ModelRecipe(_Section):
    """One model."""

    name: Line = Field(description="Name of the model, as timm knows it once the plugins are loaded.")
    weights: Line = Field("train", description="train, pretrained, hf-hub:... or a file.")
    args: Options = Field({}, description="Arguments of the model, e.g. its depth.")
    train: TrainOverrides | None = Field(None, description="What this model's training does otherwise.")
    mean: tuple[Annotated[Real, Field(ge=-1000, le=1000)], ...] | None = Field(
        None, description="Its own normalisation, a number a channel, of pixels in [0, 1]; null: the data set's."
    )
    std: tuple[Annotated[Real, Field(gt=0, le=1000)], ...] | None = Field(None, description="Goes with mean.")
    size: Annotated[Whole, Field(ge=1, le=16_384)] | None = Field(
        None, description="Its own input size in pixels; null: the data set's."
    )

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> ModelRecipe:
        if len(self.mean or ()) != len(self.std or ()):
            raise _wrong(("mean", "mean and std must have one number a channel each, or both be left out"))
        return self


class ModelsRecipe(_Section):
    """All models of the run."""

    teacher: ModelRecipe | None = Field(None, description="The teacher.")
    teachers: tuple[ModelRecipe, ...] = Field((), max_length=64, description="Several teachers, instead of teacher.")
    assistants: tuple[ModelRecipe, ...] = Field((), max_length=64, description="Models between teacher and student.")
    peers: tuple[ModelRecipe, ...] = Field((), max_length=64, description="Models trained along with the student.")
    student: ModelRecipe = Field(description="The student, the model that is exported.")

    @model_validator(mode="after")
    def _one_way_of_naming_teachers(self) -> ModelsRecipe:
        if self.teacher and self.teachers:
            raise _wrong(("teachers", "teacher and teachers exclude each other; list them all under teachers"))
        return self

    @property
    def all_teachers(self) -> tuple[ModelRecipe, ...]:
        return (self.teacher,) if self.teacher else self.teachers

    def each(self) -> Iterator[tuple[str, ModelRecipe]]:
        """Yield (path below models, model) for every model."""
        if self.teacher:
            yield "teacher", self.teacher
        for group in ("teachers", "assistants", "peers"):
            for index, model in enumerate(getattr(self, group)):
                yield f"{group}.{index}", model
        yield "student", self.student


class DataRecipe(_Section):
    """Which data, and how it is fed."""

    name: Line = Field(description="Name of the data set.")
    options: Options = Field({}, description="Options of the data set.")
    root: Line | None = Field(None, description="Folder of the data set's files; null: the usual place.")
    batch_size: Annotated[Whole, Field(ge=1, le=65_536)] = Field(128, description="Samples in a training batch.")
    eval_batch_size: Annotated[Whole, Field(ge=1, le=65_536)] = Field(
        512, description="Samples in an evaluation batch."
    )
    augment: Literal["none", "flip", "crop_flip"] = Field("none", description="Augmentation of the training split.")
    validation: Annotated[Real, Field(ge=0, lt=1)] | Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(
        0.1, description="Share below 1, or number, of training samples that are held out for validation."
    )
    train_limit: Count | None = Field(None, description="Train on so many samples only; null: all.")
    workers: Annotated[Whole, Field(ge=0, le=256)] = Field(0, description="Processes that read files.")
    timeout_s: Annotated[Real, Field(gt=0, le=86_400)] = Field(120.0, description="Seconds to wait for a worker.")


class CacheRecipe(_Section):
    """Teacher outputs kept for reuse: exact, as augmentation is a function of sample and view."""

    views: Annotated[Whole, Field(ge=1, le=100_000)] = Field(description="Augmented views of each sample; they recur.")
    verify_fraction: Annotated[Real, Field(ge=0, le=1)] = Field(0.01, description="Share of hits computed again.")
    max_gib: Annotated[Real, Field(gt=0, le=1_000_000)] = Field(4.0, description="Largest size on disk, GiB.")


class ExportRecipe(_Section):
    """One exported file."""

    format: Line = Field("onnx", description="Name of the export format.")
    quantize: Line | None = Field(None, description="Quantisation of the format, e.g. int8; null: none.")
    options: Options = Field({}, description="Further options of the format.")


class ExpectedRecipe(_Section):
    """The published result, which `kdzoo verify` re-checks."""

    top1_percent: Percent = Field(description="Mean top-1 accuracy of the student on the test split, percent.")
    std: Percent = Field(description="Standard deviation over the seeds, points.")
    seeds: Annotated[Whole, Field(ge=1, le=10_000)] = Field(description="Number of seeds behind the mean.")
    control_top1_percent: Percent | None = Field(None, description="The same mean of the control student.")


class Recipe(_Section):
    """A whole recipe, with every default filled in."""

    version: Literal[1] = Field(description="Version of the recipe format.")
    name: Annotated[str, Strict(), Field(pattern=NAME)] = Field(description="Name of the recipe and its run folders.")
    description: Text = Field("", description="What the recipe shows.")
    algorithm: AlgorithmRecipe = Field(description="The algorithm.")
    models: ModelsRecipe = Field(description="The models.")
    data: DataRecipe = Field(description="The data.")
    train: TrainRecipe = Field(TrainRecipe(), description="The training.")
    cache: CacheRecipe | None = Field(None, description="Keep teacher outputs for reuse; null: do not.")
    control: Flag = Field(True, description="Also train the student alone, under the same budget.")
    export: tuple[ExportRecipe, ...] = Field((), max_length=64, description="Files to export.")
    trackers: tuple[Line, ...] = Field(("tensorboard",), max_length=64, description="Names of the trackers.")
    device: Annotated[str, Strict(), Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")] = Field(
        "auto", description="auto, cpu, cuda, cuda:N or mps."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="Precision of training.")
    threads: Annotated[Whole, Field(ge=1, le=1024)] | None = Field(None, description="CPU threads; null: as torch.")
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] = Field(0, description="Seed of everything random.")
    min_teacher_top1_percent: Percent | None = Field(
        None, description="A teacher worse than this on the validation split stops the run; null: none does."
    )
    expected: ExpectedRecipe | None = Field(None, description="The published result; null: never reproduced.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        problems = []
        for path, model in self.models.each():
            try:
                self.train.merged(model.train)
            except RecipeError as error:
                problems.append((f"models.{path}.train", f"does not fit the train section: {error}"))
        for group in (self.export, self.trackers):
            name = "export" if group is self.export else "trackers"
            for index, item in enumerate(group):
                if item in group[:index]:
                    problems.append((f"{name}.{index}", f"repeats {name}.{group.index(item)}"))
        if problems:
            raise _wrong(*problems)
        return self


# --- problems -------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    """Show a value in an error: short, on one line, control characters escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        cut = value if len(value) <= 60 else value[:57] + "..."
        return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut) + "'"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_shown, value))
        return f"[{inner}]" if len(inner) <= 60 else f"a list of {len(value)}"
    return "nothing" if value is None else _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass
class Positions:
    """Where each path of a recipe was written: (line, column) from 1, or the override that set it."""

    marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)

    def _written(self, path: str) -> str:
        while path and path not in self.marks and path not in self.overridden:
            path = path.rpartition(".")[0]
        return path

    def where(self, path: str) -> str:
        """Return ``line 7`` or ``-o train.epochs``; of the nearest written parent if ``path`` itself is not."""
        written = self._written(path)
        return f"-o {written}" if written in self.overridden else f"line {self.at(path)[0]}"

    def at(self, path: str) -> tuple[int, int]:
        """Return line and column, from 1; overrides come after every line."""
        written = self._written(path)
        return (2**31, 0) if written in self.overridden else self.marks.get(written, (1, 1))


class RecipeProblems:
    """Collects what is wrong with one recipe, so that all of it comes out in one RecipeError."""

    def __init__(self, path: Path | str, positions: Positions) -> None:
        self.path, self.positions = path, positions
        self._found: dict[tuple[str, str], None] = {}
        self._refused: set[str] = set()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: str, message: str) -> None:
        """Report ``message`` about the value at ``path``, e.g. ``train.optimizer.lr``."""
        self._found[path, message] = None

    def refuse(self, path: str, message: str) -> None:
        """Report a value that stands for nothing, so that what its absence causes is not reported too."""
        self.add(path, message)
        self._refused.add(path)

    def add_invalid(self, error: ValidationError, model: type[BaseModel], data: Any, prefix: str = "") -> None:
        """Report what pydantic found in ``data``, which was written below ``prefix``."""
        for path, message in explain(error, model, data):
            path = f"{prefix}.{path}".strip(".")
            if not any(path == refused or path.startswith(f"{refused}.") for refused in self._refused):
                self.add(path, message)

    def raise_if_any(self) -> None:
        """Raise RecipeError with every problem in the order of the file, if there is one."""
        if self._found:
            raise RecipeError(str(self))

    def __str__(self) -> str:
        order = sorted(self._found, key=lambda found: self.positions.at(found[0]))
        spots = [self.positions.where(path) for path, _ in order[:MAX_SHOWN]]
        width = max((len(spot) for spot in spots if spot.startswith("line")), default=0)
        lines = [f"{self.path}: {len(order)} problem{'s' if len(order) != 1 else ''}"]
        for spot, (path, message) in zip(spots, order, strict=False):
            says = f"{_plain(path)}: {message}" if path else message
            lines.append(f"  -o {says}" if spot == f"-o {path}" else f"  {_plain(spot):{width}} {says}")
        if len(order) > MAX_SHOWN:
            lines.append(f"  and {len(order) - MAX_SHOWN} more")
        return "\n".join(lines)


def _plain(path: str) -> str:
    return _shown(path)[1:-1] if len(path) <= 60 or path.isprintable() is False else path


# pydantic's error type -> what the value must be; the rest of its messages are used as they are
_MUST_BE: dict[str, str] = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "text",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "dict_type": "a mapping of keys to values",
    "mapping_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "none_required": "null",
    "string_too_short": "text of at least {min_length} character(s)",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "multiple_of": "a multiple of {multiple_of}",
}


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> list[tuple[str, str]]:
    """Translate pydantic's findings into (path, message) in plain words; alternatives of a union become one."""
    needs: dict[str, list[str]] = {}
    found: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for item in error.errors(include_url=False)[: 2 * MAX_SHOWN]:
        kind, context = item["type"], item.get("ctx", {})
        parts, value = _present(item["loc"], data)
        path = ".".join(map(str, parts))
        if kind == "problems":
            found += [(f"{path}.{below}".strip("."), message) for below, message in context["problems"]]
        elif kind == "missing":
            found.append((".".join([*map(str, parts), str(item["loc"][-1])]), "required, but missing"))
        elif kind == "extra_forbidden":
            known = sorted(_section(model, item["loc"][:-1]).model_fields)
            close = nearest(str(parts[-1]), known) if len(str(parts[-1])) <= 64 else ""
            found.append((path, f"unknown key{close or '; known: ' + (', '.join(known) or 'none')}"))
        else:
            must = _requirement(kind, context, item["msg"])
            if must not in needs.setdefault(path, []):
                needs[path].append(must)
            values[path] = value
    for path, musts in needs.items():
        sentence = [must for must in musts if must.startswith("must ")]
        text = sentence[0] if sentence else musts[0] if musts[0].startswith("=") else "must be " + " or ".join(musts)
        found.append((path, text.removeprefix("=") if text.startswith("=") else f"{text}, {_got(values[path], text)}"))
    return found


def _requirement(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _MUST_BE:
        return _MUST_BE[kind].format(**context)
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}"
    if kind == "value_error":
        return "=" + str(context["error"])
    return message if message.startswith("must ") else "=" + message[:1].lower() + message[1:]


def _got(value: Any, must: str) -> str:
    text = f"got {_shown(value)}"
    if isinstance(value, str) and "number" in must and not isinstance(_scalar(value), str | None):
        return f"{text}, which is text; write it without quotes"
    return text


def _present(location: Sequence[int | str], data: Any) -> tuple[list[int | str], Any]:
    """Follow ``location`` through ``data``; what is not there is pydantic's name of a union's member."""
    parts: list[int | str] = []
    for part in location:
        if isinstance(data, Mapping) and part in data:
            data = data[part]
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        parts.append(part)
    return parts, data


def _section(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    """Return the model that ``location`` leads to."""

    def inside(kind: Any) -> type[BaseModel] | None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        return next(filter(None, map(inside, get_args(kind))), None)

    for part in location:
        info = model.model_fields.get(str(part))
        model = (inside(info.rebuild_annotation()) if info else None) or model
    return model


# --- YAML -----------------------------------------------------------------------------------

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_REAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
# numbers to one YAML reader and text to another
_UNCLEAR = re.compile(
    r"[-+]?(0[0-9_]+|[0-9]+_[0-9_]*|0[xob][0-9a-fA-F_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
    r"|[0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|0[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


def _scalar(text: str) -> Any:
    """Resolve a plain scalar; raise ValueError for a number that readers disagree about."""
    if text in _WORDS:
        return _WORDS[text]
    if _REAL.fullmatch(text):
        if len(text) > 100 or not math.isfinite(float(text)):
            raise ValueError("number too large")
        return int(text) if _WHOLE.fullmatch(text) else float(text)
    if _UNCLEAR.fullmatch(text):
        if text.strip("+-.").lower() in ("inf", "nan"):
            raise ValueError(f"must be a finite number, got {_shown(text)}")
        raise ValueError(f"unclear number {_shown(text)}; write it in plain decimals, or in quotes if it is text")
    return text


class _Reader:
    """Builds plain data out of YAML events and keeps the position of every path."""

    def __init__(self, text: str, problems: RecipeProblems, mark: Callable[[str, yaml.Mark], None]) -> None:
        self.events = yaml.parse(text, Loader=yaml.SafeLoader)
        self.problems, self.mark, self.values = problems, mark, 0

    def document(self, path: str = "") -> Any:
        next(self.events)  # the stream starts
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self.value(next(self.events), path, 1)
        next(self.events)  # the document ends
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            self.stop(event, "a recipe is one YAML document; remove what follows '---'")
        return value

    def stop(self, event: yaml.Event, message: str) -> None:
        """Give up at once."""
        self.problems.positions.marks[""] = (event.start_mark.line + 1, event.start_mark.column + 1)
        self.problems.add("", message)
        self.problems.raise_if_any()

    def value(self, event: yaml.Event, path: str, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            self.stop(event, f"more than {MAX_VALUES} values; a recipe is a page long")
        if depth > MAX_DEPTH:
            self.stop(event, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            self.problems.refuse(path, f"alias {_shown('*' + event.anchor)} is not allowed; write the value out")
            return None
        if event.anchor is not None:
            self.problems.refuse(path, f"anchor {_shown('&' + event.anchor)} is not allowed; write each value out")
        if event.tag is not None:
            self.problems.refuse(path, f"tag {_shown(event.tag)} is not allowed; a recipe holds plain values only")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path, depth)
        return self.text(event, path)

    def text(self, event: yaml.ScalarEvent, path: str) -> Any:
        text = event.value
        if any(not c.isprintable() and c not in "\n\t" for c in text):
            self.problems.refuse(path, f"control character in {_shown(text)}")
            return None
        if "\n" in text and path != "description":
            self.problems.refuse(path, f"must be one line, got {_shown(text)}")
            return None
        try:
            return _scalar(text) if event.style is None else text
        except ValueError as error:
            self.problems.refuse(path, str(error))
            return None

    def sequence(self, path: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            below = f"{path}.{len(items)}".strip(".")
            self.mark(below, event.start_mark)
            items.append(self.value(event, below, depth + 1))
        return items

    def mapping(self, path: str, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            start, key = event.start_mark, self.key(event, path, depth)
            below = f"{path}.{key}".strip(".")
            if key in items:
                self.problems.add(below, f"key written twice, on lines {lines[key]} and {start.line + 1}; keep one")
            else:
                self.mark(below, start)
            value = self.value(next(self.events), below, depth + 1)
            lines.setdefault(key, start.line + 1)
            items.setdefault(key, value)
        return items

    def key(self, event: yaml.Event, path: str, depth: int) -> str:
        """Return a key as text; what cannot be one is reported and keeps its place."""
        plain = isinstance(event, yaml.ScalarEvent) and event.anchor is None and event.tag is None
        key = event.value if plain else "?"
        where = f"{path}.{key}".strip(".") if plain else path
        if not plain:
            self.value(event, where, depth + 1)
            self.problems.refuse(where, "a key must be plain text")
        elif key == "<<" and event.style is None:
            self.problems.refuse(where, "merge keys are not allowed; write the values out")
        elif not key.isprintable() or not key:
            self.problems.refuse(where, "a key must be text on one line, without control characters")
        return key


def _read(text: str, problems: RecipeProblems, mark: Callable[[str, yaml.Mark], None], path: str = "") -> Any:
    """Read YAML text into plain data; raise RecipeError at once where it is not YAML."""
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = len(_BREAK.findall(text[: bad.start()])) + 1
        message = f"control character {_shown(bad.group())}"
    else:
        try:
            return _Reader(text, problems, mark).document(path)
        except yaml.MarkedYAMLError as error:
            place = error.problem_mark or error.context_mark
            line = place.line + 1 if place else 1
            hint = "; indent with spaces" if "'\\t'" in (error.problem or "") else ""
            message = f"not valid YAML: {error.problem or error.context}{hint}"
        except (ValueError, OverflowError):  # PyYAML leaves escapes beyond Unicode to chr()
            line, message = 1, "not valid YAML: an escape in quotes that is no character"
    if not path:
        problems.positions.marks[""] = (line, 1)
    problems.add(path, message)
    raise RecipeError(str(problems))


# --- overrides ------------------------------------------------------------------------------


def _override(data: Any, text: str, problems: RecipeProblems) -> None:
    """Apply one ``train.epochs=2`` to ``data``; numbers in the path index lists."""
    path, equals, written = text.partition("=")
    path = path.strip()
    problems.positions.overridden.add(path)
    if not equals or not all(path.split(".")):
        problems.refuse(path, f"cannot read {_shown(text)}; write -o KEY=VALUE, e.g. -o train.epochs=2")
        return
    value = _read(written, problems, lambda below, mark: None, path)
    *parents, last = parts = path.split(".")
    place, behind = data, ""
    for part, after in zip(parents, parts[1:], strict=True):
        if (step := _slot(place, part, behind, path, problems)) is None:
            return
        if isinstance(place, list) and step == len(place):
            place.append(None)
        if isinstance(place, dict):
            place.setdefault(step, None)
        if place[step] is None:
            place[step] = [] if after.isdecimal() else {}
        place, behind = place[step], f"{behind}.{part}".strip(".")
    if (step := _slot(place, last, behind, path, problems)) is not None:
        if isinstance(place, list) and step == len(place):
            place.append(value)
        else:
            place[step] = value
        for mark in [mark for mark in problems.positions.marks if mark.startswith(f"{path}.")]:
            del problems.positions.marks[mark]


def _slot(place: Any, part: str, behind: str, path: str, problems: RecipeProblems) -> Any:
    """Return the key or index that ``part`` means in ``place``, or report why it means none."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        problems.refuse(path, f"{behind} is {_shown(place)}; it has no keys")
    elif not part.isdecimal() or len(part) > 9 or int(part) > len(place):
        problems.refuse(path, f"{behind} is a list of {len(place)}; {_shown(part)} is none of its indices, from 0")
    else:
        return int(part)
    return None


# --- reading, writing, comparing --------------------------------------------------------------


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe, with where it was written."""

    recipe: Recipe
    path: Path
    positions: Positions = field(compare=False)

    def problems(self) -> RecipeProblems:
        """Return an empty collector for what is found wrong later."""
        return RecipeProblems(self.path, self.positions)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe and apply ``overrides`` (``train.epochs=2``); raise RecipeError with every problem."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{_plain(str(path))}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{_plain(str(path))}: cannot be read: {reason}") from None
    return parse_recipe(content, Path(path), overrides)


def parse_recipe(content: bytes, path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe from the bytes of the file at ``path``."""
    positions = Positions()
    problems = RecipeProblems(path, positions)
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES // 1024} KiB; a recipe is a page long")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{path}: 1 problem\n  line {line} not UTF-8 text: byte 0x{content[error.start]:02x}"
        ) from None
    data = _read(
        text, problems, lambda below, mark: positions.marks.setdefault(below, (mark.line + 1, mark.column + 1))
    )
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: must be a mapping of keys to values, got {_shown(data)}")
    for override in overrides:
        _override(data, override, problems)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems.add_invalid(error, Recipe, data)
    problems.raise_if_any()
    return LoadedRecipe(recipe, path, positions)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what our own loader would not read back as text."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is not yaml.ScalarNode or not implicit[0]:
            return super().resolve(kind, value, implicit)
        try:
            name = type(_scalar(value)).__name__
        except ValueError:
            name = "unclear"
        name = "unclear" if value == "<<" else name
        return "tag:yaml.org,2002:" + {"NoneType": "null"}.get(name, name)


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe with its defaults as YAML that ``load_recipe`` reads back."""
    data = recipe.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def recipe_hash(recipe: Recipe) -> str:
    """Hash the whole recipe, defaults included; the order of keys does not count (64 hex digits)."""
    return stable_hash(recipe.model_dump(mode="json"))


def diff_recipes(old: Recipe, new: Recipe) -> list[str]:
    """Return one line a field that differs, e.g. ``train.optimizer.lr 0.1 -> 0.2``."""
    before, after = (dict(_leaves(recipe.model_dump(mode="json"), "")) for recipe in (old, new))
    paths = [*before, *(path for path in after if path not in before)]
    return [
        f"{_plain(path)} {_shown(before.get(path))} -> {_shown(after.get(path))}"
        for path in paths
        if before.get(path) != after.get(path)
    ]


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    if not pairs:
        yield path, data
    for key, value in pairs:
        yield from _leaves(value, f"{path}.{key}".strip("."))
