"""How a network is trained: the ``train`` section of a recipe, its presets, and what overrides it for one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, PlainSerializer, ValidationError, create_model, model_validator

from kdzoo.errors import RecipeError, shown
from kdzoo.recipe.problems import explain, misfits
from kdzoo.recipe.values import Flag, Line, Options, Real, Section, Whole


class OptimizerRecipe(Section):
    """An optimizer by timm's name."""

    name: Line = Field("sgd", description="Name of the optimizer, as timm knows it.")
    lr: Annotated[Real, Field(gt=0, le=1000)] = Field(0.05, description="Learning rate at its peak.")
    momentum: Annotated[Real, Field(ge=0, lt=1)] | None = Field(
        0.9, description="Momentum, or first beta; null leaves the optimizer's own."
    )
    weight_decay: Annotated[Real, Field(ge=0, le=10)] = Field(5e-4, description="Weight decay.")
    decay_free: Literal["norm_and_bias", "model", "nothing"] = Field(
        "norm_and_bias",
        description="What weight decay leaves alone: norms and biases; also what the model itself names, such as its "
        "position embedding; or nothing.",
    )
    layer_decay: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        None, description="Factor of the learning rate from each layer to the one before; null: all learn at one rate."
    )
    options: Options = Field({}, description="Further arguments of the optimizer.")


class ScheduleRecipe(Section):
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
            raise misfits(("milestones", "multistep needs at least one milestone"))
        if self.name == "step" and len(self.milestones) != 1:
            raise misfits(("milestones", f"step needs exactly one number of epochs, got {len(self.milestones)}"))
        if self.name in ("cosine", "constant") and self.milestones:
            raise misfits(("milestones", f"{self.name} has no milestones; they belong to step and multistep"))
        if list(self.milestones) != sorted(set(self.milestones)):
            raise misfits(("milestones", f"must increase, got {shown(list(self.milestones))}"))
        return self


#: Optimizers whose step on a part of a parameter is that part of the step on the whole.
SHARDED_OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "radam", "rmsprop", "adagrad", "adamax")


#: Values of the keys that a recipe leaves out, by preset; what none says has the defaults below.
TRAIN_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "timm": {},
    "repdistiller": {
        "epochs": 240,
        "optimizer": {"name": "momentum", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "decay_free": "nothing"},
        "schedule": {"name": "multistep", "milestones": [150, 180, 210], "decay_rate": 0.1},
    },
}


class TrainRecipe(Section):
    """The training budget, the same for teacher, control and student unless a model overrides it."""

    preset: Literal["timm", "repdistiller"] = Field(
        "timm",
        description="What the keys that are left out are: timm, the defaults shown here (SGD with Nesterov's momentum, "
        "no weight decay on norms and biases), or repdistiller, the usual one of CIFAR-100 tables (240 epochs, plain "
        "momentum, decay of everything, steps at 150, 180 and 210; batches are of 64). Another optimizer or schedule "
        "replaces the preset's as a whole.",
    )
    epochs: Annotated[Whole, Field(ge=1, le=100_000)] = Field(30, description="Passes over the training split.")
    optimizer: OptimizerRecipe = Field(OptimizerRecipe(), description="The optimizer.")
    schedule: ScheduleRecipe = Field(ScheduleRecipe(), description="The learning rate's schedule.")
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = Field(0.0, description="Smoothing of the task's targets.")
    grad_clip_norm: Annotated[Real, Field(gt=0, le=1e6)] | None = Field(
        None, description="Largest norm of the gradient; null does not clip."
    )
    accumulate: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        1, description="Parts that a batch is split into to save memory; still one optimizer step per batch."
    )
    steps_per_epoch: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = Field(
        None, description="Fewer steps per epoch, or their number for an algorithm without data; null: the split's."
    )
    ema_decay: Annotated[Real, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of a moving average of the student's weights, which is then kept; nothing else is averaged. "
        "null: none.",
    )
    batch_norm: Literal["global", "local"] = Field(
        "global",
        description="Of several processes: BatchNorm over the batch of all, as in one process, or faster over each "
        "process's share.",
    )
    shard: Flag = Field(
        False,
        description="Of several processes: each holds a part of the student and its peers, for those that do not fit.",
    )
    frozen_batch_norm: Flag = Field(
        False, description="Leave BatchNorm as the weights have it: neither its statistics nor its parameters change."
    )
    head_epochs: Annotated[Whole, Field(ge=0, le=100_000)] = Field(
        0, description="First epochs in which only the classifier is trained."
    )
    grad_checkpointing: Flag = Field(
        False, description="Compute blocks again in the backward pass: less memory, about a third more time."
    )
    channels_last: Flag | None = Field(None, description="Memory format; null chooses what pays.")
    compile: Flag = Field(False, description="Use torch.compile; repays after about 1000 steps.")
    select: Literal["last", "best"] = Field("last", description="Keep the last epoch, or the best on validation.")
    checkpoint_seconds: Annotated[Real, Field(ge=0, le=86_400)] = Field(
        60.0, description="Seconds between checkpoints; 0 saves after each step."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, data: Any) -> Any:
        return _filled(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _shards_fit(self) -> TrainRecipe:
        if not self.shard:
            return self
        problems = []
        if self.ema_decay is not None:
            must = "must be null with shard: true, as it averages whole weights"
            problems.append(("ema_decay", f"{must}; got {self.ema_decay:g}"))
        if self.compile:
            problems.append(("compile", "must be false with shard: true, as it compiles whole networks; got true"))
        if self.optimizer.name not in SHARDED_OPTIMIZERS:
            must = f"must be one of {', '.join(SHARDED_OPTIMIZERS)} with shard: true, as others need whole parameters"
            problems.append(("optimizer.name", f"{must}; got {shown(self.optimizer.name)}"))
        if problems:
            raise misfits(*problems)
        return self

    @model_validator(mode="after")
    def _head_comes_first(self) -> TrainRecipe:
        if self.head_epochs >= self.epochs:
            raise misfits(("head_epochs", f"must be less than epochs, {self.epochs}, got {self.head_epochs}"))
        if self.head_epochs and self.shard:
            raise misfits(("head_epochs", "holds parts of a network back, which train.shard cannot; leave out one"))
        return self

    def overridden(self, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the values of this section with those of a model's or a stage's, which are not checked."""
        values = overrides or {}
        return merged_sections(self.model_dump(), _filled(values) if "preset" in values else values)

    def merged(self, overrides: Mapping[str, Any] | None) -> TrainRecipe:
        """Return this section with a model's or a stage's overrides; raise RecipeError if they do not fit."""
        data = self.overridden(overrides)
        try:
            return TrainRecipe.model_validate(data)
        except ValidationError as error:
            found = explain(error, TrainRecipe, data)
            raise RecipeError("\n".join(f"train.{path}: {message}" for path, message in found)) from None


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a train section with what its preset says of the keys that it leaves out."""
    named = values.get("preset")
    preset = TRAIN_PRESETS.get(named, {}) if isinstance(named, str) else {}
    return merged_sections({key: value for key, value in preset.items() if not _other(values.get(key), value)}, values)


def _other(given: Any, preset: Any) -> bool:
    """Whether a section names another thing than the preset's does."""
    return (
        isinstance(given, Mapping)
        and isinstance(preset, Mapping)
        and given.get("name", preset["name"]) != preset["name"]
    )


def merged_sections(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section's values with some of them replaced; options are replaced as a whole."""
    merged = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "options"
        merged[key] = merged_sections(merged[key], value) if nested else value
    return merged


def _partial(model: type[BaseModel]) -> type[BaseModel]:
    """Return ``model`` with every key optional and without its checks between keys."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        kind: Any = info.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        kind = _partial(kind) if nested else info.rebuild_annotation()
        fields[name] = (kind, Field(None, description=info.description))
    return create_model(f"Partial{model.__name__}", __base__=Section, __doc__=model.__doc__, **fields)


if TYPE_CHECKING:
    TrainOverrides = dict[str, Any]
else:
    TrainOverrides = Annotated[
        _partial(TrainRecipe),
        AfterValidator(lambda part: part.model_dump(exclude_unset=True)),
        PlainSerializer(lambda part: part),
    ]
