"""results.json as typed data: what a run measured, and of which network and file.

Shares are in percent where the name says so. A measurement that was not made is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kdzoo.contract.classification import QUALITY, quality
from kdzoo.errors import ReportError, plain

NetworkKind = Literal["teacher", "control", "student", "peer"]


class Part(BaseModel):
    """A part of results.json. Keys that the report does not show are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


_Part = TypeVar("_Part", bound=Part)


class Latency(Part):
    """Milliseconds for a batch of one."""

    p50: float
    p95: float


class Usage(Part):
    """Code that loads a file and answers one sample; run from the run folder."""

    title: str
    code: str


class StudentUsage(Usage):
    """How the student is loaded and fed."""

    kind: Literal["image", "text", "measurements"]
    inputs: str


class Measurements(Part):
    """What is known of one network or file on the test split."""

    label: str
    top1_percent: float | None = None
    agreement_percent: float | None = None
    ece: float | None = None
    params_m: float | None = None
    size_mib: float | None = None
    macs_g: float | None = None
    latency_ms: Latency | None = None


class Variant(Measurements):
    """Another way to answer that the algorithm measured, such as an early exit."""

    latency_ratio: float | None = None


class Entry(Measurements):
    """One network, or one exported file. ``of`` is the label of the network that a file was made from."""

    model: str
    network: NetworkKind
    index: int = 0
    format: str | None = None
    quantize: str | None = None
    of: str | None = None
    file: str | None = None
    rejected: list[str] = []
    usage: Usage | None = None

    @property
    def role(self) -> str:
        """What the page draws it as: a student's file has a colour of its own."""
        return "export" if self.format is not None and self.network == "student" else self.network


class Network(Entry):
    """A network, which is always measured: by its accuracy, or, without labels, by its agreement with the teacher."""

    @model_validator(mode="after")
    def _is_measured(self) -> Network:
        if self.top1_percent is None and self.agreement_percent is None:
            raise ValueError("has neither top1_percent nor agreement_percent")
        return self

    @property
    def quality(self) -> float:
        """The quantity that a network is judged by; more is better."""
        return quality({QUALITY: self.top1_percent, "agreement_percent": self.agreement_percent})


class PerClass(Part):
    """Accuracy by class, for each label; None for a class without test samples."""

    classes: list[str] = []
    top1_percent: dict[str, list[float | None]] = {}


class DataFacts(Part):
    """The data set and its splits."""

    name: str = ""
    test_samples: int | None = None
    most_common_class_percent: float | None = None
    train: int | None = None
    labelled: int | None = None


class Paired(Part):
    """On how many test samples student and control were right."""

    both: int
    student_only: int
    control_only: int
    neither: int


class Kept(Part):
    """What was kept of a teacher's logits; ``top_k`` None: all classes."""

    classes: int
    top_k: int | None = None
    dtype: str = ""

    def __str__(self) -> str:
        what = "all" if self.top_k is None else f"the {self.top_k} likeliest of"
        return f"{what} {self.classes} classes, {self.dtype}"


class StageFacts(Part):
    """How one stage of the run went."""

    name: str
    key: str | None = None
    best_epoch: int | None = None  # 0-based; -1 without a validation split
    precision: str | None = None
    seconds: float | None = None
    logged_of: dict[str, str] = {}
    stated_top1_percent: float | None = None  # of ready weights, by the file ``stated_by``
    stated_by: str = ""
    imported: str | None = None  # where ready weights, or stored answers, came from
    answers: list[Kept] = []  # what was kept of each teacher's answers, where it was less than all


#: A text of an item, which a plugin may have given as a number.
Words = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]


class Shown(Part):
    """Something that the algorithm shows."""

    title: Words
    note: Words = ""


class Table(Shown):
    kind: Literal["table"]
    columns: list[Words]
    rows: list[list[str | int | float | bool | None]]


class HeatMap(Shown):
    kind: Literal["heat_map"]
    rows: list[Words]
    columns: list[Words]
    values: list[list[float | None]]
    unit: Words = ""


class Point(Part):
    x: float
    y: float
    label: Words = ""
    group: Words = ""


class Scatter(Shown):
    kind: Literal["scatter"]
    x_label: Words
    y_label: Words
    points: list[Point]
    front: Words | None = None


class Images(Shown):
    """Pictures as PNG in base64."""

    kind: Literal["images"]
    images: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$")]]
    captions: list[Words] = []


Item = Annotated[Table | HeatMap | Scatter | Images, Field(discriminator="kind")]


class Results(Part):
    """What a finished run found."""

    student: Network
    teacher: Network | None = None
    teachers: list[Network] = []
    control: Network | None = None
    peers: list[Network] = []
    exports: list[Entry] = []
    variants: list[Variant] = []
    paired: Paired | None = None
    per_class: PerClass = PerClass()
    data: DataFacts = DataFacts()
    data_handed: str = ""
    same_network: bool = True
    upper_bound: str = ""
    algorithm: str = ""
    report_items: list[Item] = []
    pairing: dict[str, list[str]] = {}
    stages: list[StageFacts] = []
    warnings: list[str] = []
    seconds: float | None = None
    usage: StudentUsage | None = None

    @property
    def taught_by(self) -> list[Network]:
        """Every teacher."""
        return self.teachers or [teacher for teacher in (self.teacher,) if teacher]

    @property
    def best_teacher(self) -> Network | None:
        return max(self.taught_by, key=lambda teacher: teacher.quality, default=None)

    def entries(self) -> Iterator[Entry]:
        """Every network in the order of the table, each with the files that were made from it."""
        control = [network for network in (self.control,) if network]
        for network in (*self.taught_by, *control, self.student, *self.peers):
            yield network
            yield from (file for file in self.exports if file.of == network.label)


def parse_results(content: Mapping[str, Any], place: Path | str = "results.json") -> Results:
    """Return the content of a results.json as typed data; ReportError names the first part that is not right."""
    return parsed(Results, content, place, "a finished run")


def parsed(kind: type[_Part], content: Mapping[str, Any], place: Path | str, writer: str) -> _Part:
    """Return content as typed data; ReportError names the first part that is not as ``writer`` writes it."""
    try:
        return kind.model_validate(visible(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, problem = ".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:]
        given = "" if first["type"] == "missing" else f", got {plain(repr(first['input']), 40)}"
        raise ReportError(
            f"{place}: {plain(where, 80)}: {plain(problem, 200)}{given}; it is not as {writer} writes it"
        ) from None


def visible(content: Any) -> Any:
    """The same content with every character that cannot be seen written as its escape; line ends stay."""
    if isinstance(content, str):
        return content if content.isprintable() else "\n".join(plain(line, len(line)) for line in content.split("\n"))
    if isinstance(content, Mapping):
        return {visible(key): visible(value) for key, value in content.items()}
    return [visible(value) for value in content] if isinstance(content, list | tuple) else content
