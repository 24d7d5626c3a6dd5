"""Models as candidates for a student: built untrained, exported, weighed and timed before any of them is trained.

The size and the speed of a file do not depend on what its network has learned. What was measured is kept in the user's
cache: sizes by model, inputs, format and versions; times by the machine and the number of threads too.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.contract.extension_points import Exporter
from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Inputs
from kdzoo.errors import KdzooError, in_words
from kdzoo.evaluation.steadiness import Timing, timed
from kdzoo.evaluation.verification import file_label, file_metadata
from kdzoo.models.building import build_network
from kdzoo.models.network import Network
from kdzoo.models.weights import count_parameters
from kdzoo.run.keys import core_hash, model_hash, source_hash
from kdzoo.storage.atomic import write_json
from kdzoo.storage.cache_folder import cache_folder, read_entry, write_entry
from kdzoo.storage.json_reading import parse_object
from kdzoo.storage.store import Store
from kdzoo.training.environment import environment
from kdzoo.types import derive_seed, stable_hash

#: Raise when what is kept of older versions must not be used.
FORMAT = 1
#: Entries that the cache keeps.
KEPT = 4096
#: For how long a time of a busy machine is kept, seconds: so long that a command that was interrupted goes on.
NOISY_LASTS_S = 3600.0
#: Bytes that a weight takes at least in a file, in floats and in coarser numbers, whatever the format.
LEAST_BYTES = {False: 3.5, True: 0.5}
#: Made-up samples that int8 learns ranges from where there is no data: batches, samples in each.
MADE_UP_BATCHES, MADE_UP_SAMPLES = 2, 4
#: How far values that are all equal are moved apart, as a share of their size.
APART = 0.1


@dataclass(frozen=True)
class Candidate:
    """A model that may become the student; ``label`` is its name in a study."""

    label: str
    spec: ModelSpec


@dataclass(frozen=True)
class Measurement:
    """What a candidate costs. What is None was not measured, because the rest rules the candidate out already.

    ``least_bytes`` is what its weights take in any file of the format. ``problem`` says why it has no file that
    answers; empty if it has one, or none was tried.
    """

    params_m: float | None = None
    macs_g: float | None = None
    least_bytes: float | None = None
    size_bytes: int | None = None
    timing: Timing | None = None
    problem: str = ""

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "timing": None if self.timing is None else self.timing.record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Measurement:
        timing = record["timing"]
        return cls(**{**record, "timing": None if timing is None else Timing.from_record(timing)})


def made_up(network: Network) -> Sequence[Tensor]:
    """Return calibration batches of made-up samples, as the network's model takes them."""
    return network.inputs.model_example(MADE_UP_BATCHES * MADE_UP_SAMPLES).split(MADE_UP_SAMPLES)


def as_built(network: Network) -> Network:
    """Return a network as it is: most formats write the plain model."""
    return network


@dataclass(frozen=True)
class Target:
    """What candidates are measured for: the data's inputs and classes, and the file that is to be delivered.

    ``calibration`` gives training batches as a network's model takes them. ``converted`` turns a network into what the
    format writes.
    """

    inputs: Inputs
    classes: tuple[str, ...]
    exporter: Exporter
    threads: int = 1
    calibration: Callable[[Network], Sequence[Tensor]] = made_up
    converted: Callable[[Network], Network] = as_built

    def describe(self) -> dict[str, Any]:
        """Describe, as JSON, what the size of a candidate's file depends on apart from the candidate."""
        exporter = self.exporter
        return {
            "inputs": [self.inputs.kind, self.inputs.metadata(), self.inputs.content()],
            "classes": list(self.classes),
            "exporter": [exporter.name, exporter.options.model_dump(mode="json"), source_hash(type(exporter))],
            "code": [FORMAT, core_hash()],
            "versions": installed_versions(),
        }


@dataclass
class Measuring:
    """Measures candidates for a target, or takes what is known of them from the cache.

    With a ``store`` a measurement is made once and stays: a study that goes on decides as it did before. ``cache`` is a
    folder; None: nothing is kept. ``say`` hears what is being done. ``time`` times a call; None: ``timed``.
    """

    target: Target
    limits: Mapping[str, float] = field(default_factory=dict)
    cache: Path | None = None
    store: Store | None = None
    say: Callable[[str, str], None] = lambda label, state: None
    time: Callable[[Callable[[], Any]], Timing] | None = None

    def __post_init__(self) -> None:
        self._target = self.target.describe()

    def measure(self, candidate: Candidate) -> Measurement:
        """Return what a candidate costs; what cannot be built, exported or run is a measurement with a problem."""
        key = stable_hash([self._costs_key(candidate.spec), machine(), self.target.threads, dict(self.limits)])
        if self.store is not None and (folder := self.store.find("candidate", key)) is not None:
            return Measurement.from_record(parse_object((folder / "measurement.json").read_bytes()))
        found = self._measured(candidate)
        if self.store is not None:

            def write(folder: Path) -> None:
                write_json(folder / "measurement.json", found.record())

            self.store.publish("candidate", key, write)
        return found

    def _measured(self, candidate: Candidate) -> Measurement:
        found = self._known(candidate.spec)
        if found is None:
            self.say(candidate.label, "building")
            found = self._built(candidate.spec)
            self._keep(candidate.spec, found)
        if found.problem or self._out(found) or (found.size_bytes is not None and found.timing is not None):
            return found
        self.say(candidate.label, f"exporting as {file_label(self.target.exporter)}, untrained")
        found = self._exported(candidate, found)
        self._keep(candidate.spec, found)
        return found

    def _out(self, found: Measurement) -> bool:
        """Whether a candidate is over the budget by what is known without a file, or without a time."""
        known = {"params_m": found.params_m, "macs_g": found.macs_g, "size_bytes": found.size_bytes}
        known["size_bytes"] = found.least_bytes if found.size_bytes is None else found.size_bytes
        return any(value is not None and value > self.limits.get(name, value) for name, value in known.items())

    def _network(self, spec: ModelSpec) -> Network:
        target = self.target
        seed = derive_seed(0, "candidate", spec.name)
        return build_network(spec, inputs=target.inputs, num_classes=len(target.classes), seed=seed, load=False)

    def _built(self, spec: ModelSpec) -> Measurement:
        try:
            network = self._network(spec)
        except KdzooError as error:
            return Measurement(problem=str(error))
        parameters = count_parameters(network.model)
        least = parameters * LEAST_BYTES[self.target.exporter.quantizes]
        return Measurement(parameters / 1e6, network.macs / 1e9, least)

    def _exported(self, candidate: Candidate, found: Measurement) -> Measurement:
        target, exporter = self.target, self.target.exporter
        name = exporter.file_names("candidate")[0]
        try:
            network = self._network(candidate.spec)
            move_apart(network.model, derive_seed(0, "apart", candidate.spec.name))
            network = target.converted(network)
            network.model.eval().requires_grad_(False)
            with tempfile.TemporaryDirectory(prefix="kdzoo-candidate-") as folder:
                path, example = Path(folder) / name, network.inputs.model_example(2)
                about = file_metadata(network, target.classes)
                exporter.export(network.model, example, path, about, target.calibration(network))
                size = sum((path.parent / each).stat().st_size for each in exporter.file_names("candidate"))
                found = replace(found, size_bytes=size)
                if self._out(found):
                    return found
                answer = exporter.load(path, target.threads)
                sample = example[:1].numpy()
                self.say(candidate.label, "timing")
                return replace(found, timing=(self.time or timed)(lambda: answer(sample)))
        except KdzooError as error:
            return replace(found, problem=str(error))
        except Exception as error:  # a runtime raises whatever it likes; other candidates go on
            return replace(found, problem=f"{exporter.name}: does not run: {in_words(error)}")

    # --- what is kept -------------------------------------------------------------------------

    def _costs_key(self, spec: ModelSpec) -> str:
        try:
            source = model_hash(spec.name)
        except KdzooError as error:
            source = str(error)
        return stable_hash([asdict(spec), source, self._target])

    def _places(self, spec: ModelSpec) -> tuple[Path, Path] | None:
        """Return where costs and times of a model are kept."""
        if self.cache is None:
            return None
        costs = self._costs_key(spec)
        times = stable_hash([costs, machine(), self.target.threads])
        return self.cache / f"costs-{costs}.json", self.cache / f"times-{times}.json"

    def _known(self, spec: ModelSpec) -> Measurement | None:
        if (places := self._places(spec)) is None or (record := read_entry(places[0])) is None:
            return None
        found = Measurement.from_record(record)
        times = read_entry(places[1])
        if times is None:
            return found
        timing = Timing.from_record(times)
        return replace(found, timing=timing) if timing.quiet or read_entry(places[1], NOISY_LASTS_S) else found

    def _keep(self, spec: ModelSpec, found: Measurement) -> None:
        if (places := self._places(spec)) is None:
            return
        write_entry(places[0], replace(found, timing=None).record(), KEPT)
        if found.timing is not None:
            write_entry(places[1], found.timing.record(), KEPT)


def candidate_cache() -> Path | None:
    """Return the user's cache folder of measured candidates; None where there is no home."""
    folder = cache_folder()
    return None if folder is None else folder / "candidates"


@torch.no_grad()
def move_apart(model: nn.Module, seed: int) -> None:
    """Make values that are all equal in a tensor, as in fresh BatchNorm, differ, as they do after training.

    Otherwise equal tensors would be written once for many layers, and branches that begin at zero computed as zeros:
    the file would be smaller than that of a trained network.
    """
    draw = torch.Generator().manual_seed(seed)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            first = abs(float(tensor.flatten()[0])) or APART
            tensor.add_(APART * first * torch.rand(tensor.shape, generator=draw, dtype=tensor.dtype))


def machine() -> dict[str, Any]:
    """Describe, as JSON, what the time of a file depends on apart from the file."""
    found = environment(torch.device("cpu"))
    return {**{name: found[name] for name in ("machine", "cpu", "isa", "variables")}, "cores": os.cpu_count()}


def installed_versions() -> dict[str, str]:
    """Return the versions of kdzoo and of everything installed that it can use, by distribution."""
    try:
        wanted = {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in metadata.requires("kdzoo") or ()}
    except metadata.PackageNotFoundError:
        wanted = set()
    found = {}
    for name in sorted(wanted | {"kdzoo", "torch", "timm", "numpy"}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
