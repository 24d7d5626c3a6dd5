"""What a recipe holds: one model a section, with ranges on everything. Needs neither torch nor any plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, cast

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from kdzoo.recipe.image_sections import PRESETS, Augmentation, AugmentRecipe, Batchwise, PreprocessingRecipe
from kdzoo.recipe.problems import explain, misfits
from kdzoo.recipe.train_sections import TrainOverrides, TrainRecipe
from kdzoo.recipe.values import Count, Device, Flag, Line, Name, Options, PathText, Percent, Real, Section, Text, Whole


class AlgorithmRecipe(Section):
    """Which algorithm, with which options and weights of its loss terms."""

    name: Line = Field(description="Name of the algorithm; `kdzoo list` shows them.")
    options: Options = Field({}, description="Options of the algorithm; `kdzoo show NAME` shows them.")
    loss_weights: dict[Line, Annotated[Real, Field(ge=0, le=1e6)]] = Field(
        {}, description="Weight of each loss term; what is left out keeps the algorithm's default."
    )


class ModelRecipe(Section):
    """One model."""

    name: Line = Field(description="Name of the model, as timm knows it once the plugins are loaded.")
    weights: PathText = Field(
        "train",
        description="train, pretrained, hf-hub:..., a file, or teacher: start from the first teacher's. For a teacher "
        "also answers:<folder>: its stored answers, and no network.",
    )
    weights_key: Line | None = Field(
        None,
        description="Below which key of the file the weights lie; null: the first of state_dict_ema, model_ema, "
        "state_dict, model and net that is there.",
    )
    finetune: Flag = Field(False, description="For a teacher: train it from its ready weights, not only use them.")
    args: Options = Field({}, description="Arguments of the model, e.g. its depth.")
    train: TrainOverrides | None = Field(None, description="Keys of train with other values for this model.")
    preprocessing: PreprocessingRecipe | None = Field(
        None,
        description="Its own, where it differs from the data's. Left out, a teacher of ready weights takes that of its "
        "timm config, and any other network the data's. Of data in memory: size, mean and std.",
    )
    modality: Line | None = Field(None, description="The modality it takes, if the data set has several.")

    @property
    def is_answers(self) -> bool:
        """Whether it is known by its stored answers only."""
        return self.weights.startswith("answers:")


class ModelsRecipe(Section):
    """All models of the run."""

    teacher: ModelRecipe | None = Field(None, description="The teacher.")
    teachers: tuple[ModelRecipe, ...] = Field((), max_length=64, description="Several teachers, instead of teacher.")
    assistants: tuple[ModelRecipe, ...] = Field((), max_length=64, description="Models between teacher and student.")
    peers: tuple[ModelRecipe, ...] = Field((), max_length=64, description="Models trained along with the student.")
    student: ModelRecipe = Field(description="The student, the model that is exported.")

    @model_validator(mode="after")
    def _one_way_of_naming_teachers(self) -> ModelsRecipe:
        if self.teacher and self.teachers:
            raise misfits(("teachers", "teacher and teachers exclude each other; list them all under teachers"))
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


class DataRecipe(Section):
    """Which data, and how it is fed."""

    name: Line = Field(description="Name of the data set.")
    options: Options = Field({}, description="Options of the data set.")
    root: PathText | None = Field(None, description="Folder of the data set's files; null: the usual place.")
    batch_size: Annotated[Whole, Field(ge=1, le=65_536)] = Field(128, description="Samples in a training batch.")
    eval_batch_size: Annotated[Whole, Field(ge=1, le=65_536)] = Field(
        512, description="Samples in an evaluation batch."
    )
    preprocessing: PreprocessingRecipe | None = Field(
        None, description="How image files become pixels; null, as a key: by the timm config of the student's model."
    )
    augment: Augmentation = Field("none", description="Augmentation of the training split, by name or by its values.")
    validation: Annotated[Real, Field(ge=0, lt=1)] | Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(
        0.1, description="Share below 1, or number, of training samples that are held out for validation."
    )
    train_limit: Count | None = Field(None, description="Train on so many samples only; null: all.")
    labelled: Count | None = Field(
        None, description="Only so many training samples have a label for student and control; null: all."
    )
    max_megapixels: Annotated[Real, Field(gt=0, le=10_000)] = Field(
        64.0, description="An image file with more pixels is an error: it may be made to fill the memory."
    )
    workers: Annotated[Whole, Field(ge=0, le=256)] = Field(0, description="Processes that read files.")
    timeout_s: Annotated[Real, Field(gt=0, le=86_400)] = Field(120.0, description="Seconds to wait for a worker.")

    @property
    def augmentation(self) -> Batchwise | AugmentRecipe:
        """The augmentation with the values of a preset in place of its name."""
        found = PRESETS.get(self.augment, self.augment) if isinstance(self.augment, str) else self.augment
        return cast("Batchwise | AugmentRecipe", found)

    @property
    def mixes(self) -> bool:
        """Whether augmentation makes one training sample out of two."""
        return isinstance(self.augmentation, AugmentRecipe) and self.augmentation.mixes


class KeepRecipe(Section):
    """What is kept of a teacher's logits."""

    top_k: Annotated[Whole, Field(ge=1, le=65_535)] | None = Field(
        None,
        description="Keep so many of the likeliest classes; the rest of the probability is spread evenly over the "
        "others. null: all classes.",
    )
    dtype: Literal["float16", "float32"] = Field("float16", description="Type of the numbers that are kept.")


class CacheRecipe(Section):
    """Teacher outputs kept for reuse: exact, as augmentation is a function of sample and view."""

    views: Annotated[Whole, Field(ge=1, le=100_000)] = Field(
        description="Augmented views of each sample; they recur. At most as many as there are epochs."
    )
    verify_fraction: Annotated[Real, Field(ge=0, le=1)] = Field(0.01, description="Share of hits computed again.")
    max_gib: Annotated[Real, Field(gt=0, le=1_000_000)] = Field(4.0, description="Largest size on disk, GiB.")
    keep: KeepRecipe | None = Field(
        None, description="Keep less than all outputs in float32, of logits alone; null: all, exactly."
    )


class ExportRecipe(Section):
    """One exported file."""

    format: Line = Field("onnx", description="Name of the export format.")
    quantize: Line | None = Field(None, description="Quantisation of the format, e.g. int8; null: none.")
    options: Options = Field({}, description="Further options of the format.")
    teacher: Flag = Field(False, description="Also export the teacher, to compare both in one runtime.")


class TrackerRecipe(Section):
    """A tracker with options of its own."""

    name: Line = Field(description="Name of the tracker; `kdzoo list trackers` shows them.")
    options: Options = Field({}, description="Options of the tracker; `kdzoo show NAME` shows them.")


#: A tracker's name, or a section.
TrackerChoice = Annotated[
    Annotated[Line, Tag("text")] | Annotated[TrackerRecipe, Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, Mapping | TrackerRecipe) else "text"),
]


class ExpectedRecipe(Section):
    """The published result, which `kdzoo verify` re-checks."""

    top1_percent: Percent = Field(description="Mean top-1 accuracy of the student on the test split, percent.")
    std: Percent = Field(description="Standard deviation over the seeds, points.")
    seeds: Annotated[Whole, Field(ge=1, le=10_000)] = Field(description="Number of seeds behind the mean.")
    control_top1_percent: Percent | None = Field(None, description="The same mean of the control student.")


class Recipe(Section):
    """A whole recipe, with every default filled in."""

    version: Literal[1] = Field(description="Version of the recipe format.")
    name: Name = Field(description="Name of the recipe and its run folders.")
    description: Text = Field("", description="What the recipe shows.")
    algorithm: AlgorithmRecipe = Field(description="The algorithm.")
    models: ModelsRecipe = Field(description="The models.")
    data: DataRecipe = Field(description="The data.")
    train: TrainRecipe = Field(TrainRecipe(), description="The training.")
    cache: CacheRecipe | None = Field(None, description="Keep teacher outputs for reuse; null: off.")
    control: Flag = Field(True, description="Also train the student alone, under the same budget.")
    export: tuple[ExportRecipe, ...] = Field((), max_length=64, description="Files to export.")
    trackers: tuple[TrackerChoice, ...] = Field(
        ("tensorboard",), max_length=64, description="The trackers, each by its name or with options."
    )
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="Precision of training.")
    threads: Annotated[Whole, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads; null: torch's default."
    )
    jobs: Annotated[Whole, Field(ge=1, le=256)] = Field(
        1, description="Processes that train independent stages, e.g. several teachers, at the same time; same bits."
    )
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] = Field(0, description="Seed of everything random.")
    min_teacher_top1_percent: Percent | None = Field(
        None, description="A teacher worse than this on the validation split stops the run; null: no limit."
    )
    expected: ExpectedRecipe | None = Field(None, description="The published result; null: never reproduced.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        problems = []
        for path, model in self.models.each():
            data = self.train.overridden(model.train)
            try:
                TrainRecipe.model_validate(data)
            except ValidationError as error:
                found = explain(error, TrainRecipe, data)
                problems += [(f"models.{path}.train.{below}", message) for below, message in found]
        problems += self._beginnings()
        problems += self._views()
        if self.data.mixes and (self.cache is not None or any(t.is_answers for t in self.models.all_teachers)):
            path = "cache" if self.cache is not None else "data.augment"
            problems.append((path, "Mixup and CutMix show other images at each step, so no answer of a teacher recurs"))
        tracked = tuple(tracker.name for tracker in self.all_trackers)
        for name, group in (("export", self.export), ("trackers", tracked)):
            for index, item in enumerate(group):
                if item in group[:index]:
                    problems.append((f"{name}.{index}", f"repeats {name}.{group.index(item)}"))
        if problems:
            raise misfits(*problems)
        return self

    @property
    def all_trackers(self) -> tuple[TrackerRecipe, ...]:
        """The trackers, each as a section."""
        return tuple(TrackerRecipe(name=each) if isinstance(each, str) else each for each in self.trackers)

    def _views(self) -> list[tuple[str, str]]:
        """What is wrong with the number of views: each (path, message)."""
        trained = [(model.train or {}).get("epochs") for _, model in self.models.each()]
        most = max([self.train.epochs, *(epochs for epochs in trained if epochs is not None)])
        if self.cache is None or self.cache.views <= most:
            return []
        must = f"must be at most {most}, the number of epochs: further views would never be seen"
        return [("cache.views", f"{must}, got {self.cache.views}")]

    @property
    def views(self) -> int:
        """How many views of each sample a run sees; without a cache each epoch has one of its own."""
        taught = [model.train or {} for path, model in self.models.each() if not path.startswith("teacher")]
        return self.cache.views if self.cache else max(train.get("epochs", self.train.epochs) for train in taught)

    def _beginnings(self) -> list[tuple[str, str]]:
        """What is wrong with where models start from: each (path, message)."""
        problems = []
        for path, model in self.models.each():
            taught = path.split(".")[0] in ("student", "assistants")
            if model.weights == "teacher" and not taught:
                problems.append((f"models.{path}.weights", "only the student and assistants start from the teacher"))
            elif model.weights == "teacher" and not self.models.all_teachers:
                problems.append((f"models.{path}.weights", "starts from the teacher, but the recipe names none"))
            if model.weights_key and model.weights in ("train", "pretrained", "teacher"):
                problems.append((f"models.{path}.weights_key", f"needs a file, got weights: {model.weights}"))
            if model.finetune and not path.startswith("teacher"):
                problems.append((f"models.{path}.finetune", "is for teachers; any other model is trained anyway"))
            elif model.finetune and model.weights == "train":
                problems.append((f"models.{path}.finetune", "needs ready weights to start from, got weights: train"))
        return problems + self._without_network()

    def _without_network(self) -> list[tuple[str, str]]:
        """What is asked of a teacher that is known by its stored answers only: each (path, message)."""
        problems = []
        answered = {path: model for path, model in self.models.each() if model.is_answers}
        for path, model in answered.items():
            if not path.startswith("teacher"):
                problems.append((f"models.{path}.weights", "only a teacher can be known by its stored answers"))
            elif model.finetune:
                problems.append((f"models.{path}.finetune", "stored answers cannot be trained; give weights"))
        starts = [path for path, model in self.models.each() if model.weights == "teacher"]
        if answered.keys() & {"teacher", "teachers.0"}:
            only = "of which there are stored answers only"
            problems += [(f"models.{path}.weights", f"starts from the first teacher, {only}") for path in starts]
        if answered:
            wanted = [index for index, export in enumerate(self.export) if export.teacher]
            problems += [(f"export.{i}.teacher", "there is no network to export, but stored answers") for i in wanted]
        return problems
