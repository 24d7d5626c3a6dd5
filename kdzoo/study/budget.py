"""Hold candidates against a budget: which are within it, by how much the others miss it, and which is nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdzoo.contract.extension_points import Exporter
from kdzoo.errors import BudgetError, KdzooError, NeedsError, UnknownName, nearest, plain, shown
from kdzoo.recipe.budget_section import MIB
from kdzoo.study.candidates import Candidate, Measurement
from kdzoo.zoo.offered import Zoo

#: What a limit is of, its unit, and how many of its unit one of ours is.
WORDS = {
    "size_bytes": ("size", "MiB", 1 / MIB),
    "latency_ms": ("latency (p95)", "ms", 1.0),
    "params_m": ("parameters", "M", 1.0),
    "macs_g": ("MACs", "G", 1.0),
}
#: Below so many bytes sizes are said in bytes.
SMALL_FILE = MIB


@dataclass(frozen=True)
class Weighed:
    """A candidate with what it costs, and the limits that it exceeds: name -> what it has."""

    candidate: Candidate
    measurement: Measurement
    over: Mapping[str, float]

    @property
    def fits(self) -> bool:
        return not self.over and not self.measurement.problem

    @property
    def noisy(self) -> bool:
        """Whether its time was measured on a busy machine."""
        return self.measurement.timing is not None and not self.measurement.timing.quiet

    def why_not(self, limits: Mapping[str, float]) -> str:
        """Say why a candidate does not fit, on one line; empty for one that fits."""
        if self.measurement.problem:
            return plain(self.measurement.problem.splitlines()[0], 200)
        least = "at least " if self.measurement.size_bytes is None else ""
        return ", ".join(
            f"{WORDS[name][0]} {least if name == 'size_bytes' else ''}{amount(name, value, limits[name])}, "
            f"{value / limits[name] - 1:.0%} over {amount(name, limits[name], limits[name])}"
            for name, value in self.over.items()
        )


def weighed(candidate: Candidate, measurement: Measurement, limits: Mapping[str, float]) -> Weighed:
    """Hold what a candidate costs against the limits."""
    size, timing = measurement.size_bytes, measurement.timing
    costs = {
        "params_m": measurement.params_m,
        "macs_g": measurement.macs_g,
        "size_bytes": measurement.least_bytes if size is None else float(size),
        "latency_ms": None if timing is None else timing.p95_ms,
    }
    over = {name: value for name, value in costs.items() if value is not None and value > limits.get(name, value)}
    return Weighed(candidate, measurement, over)


def check_possible(found: Sequence[Weighed], limits: Mapping[str, float]) -> None:
    """Raise BudgetError where no candidate fits; it names the nearest one and by how much that misses."""
    if any(each.fits for each in found):
        return
    lines = [f"budget: none of {len(found)} candidates is within {in_limits(limits)}"]
    measured = [each for each in found if not each.measurement.problem]
    if measured:
        near = min(measured, key=lambda each: max(value / limits[name] for name, value in each.over.items()))
        lines.append(f"the nearest is {near.candidate.label}: {near.why_not(limits)}")
        if near.noisy:
            lines.append("the machine was busy while it was timed; on a quiet one it may be faster")
    for each in [each for each in found if each.measurement.problem][:3]:
        lines.append(f"{each.candidate.label}: {each.why_not(limits)}")
    lines.append("raise the budget, or add smaller students")
    raise BudgetError("\n  ".join(lines))


def in_limits(limits: Mapping[str, float]) -> str:
    """Say the limits on one line."""
    return ", ".join(f"{WORDS[name][0]} {amount(name, limit, limit)}" for name, limit in limits.items()) or "no limit"


def amount(name: str, value: float, limit: float) -> str:
    """Say an amount with its unit; of small files to the byte."""
    if name == "size_bytes" and limit < SMALL_FILE:
        return f"{value:,.0f} bytes"
    _, unit, share = WORDS[name]
    return f"{value * share:.4g} {unit}"


def exporter_named(text: str, zoo: Zoo) -> Exporter:
    """Return the export format of ``onnx``, ``onnx-int8``, ...: its name, then its quantisation after a dash.

    Raises UnknownName for a format or a quantisation that there is not.
    """
    name = max((known for known in zoo.exporters if text == known or text.startswith(f"{known}-")), key=len, default="")
    if not name:
        zoo.exporter(text)  # raises with the nearest name
    cls, quantize = zoo.exporter(name), text[len(name) + 1 :]
    options = {"quantize": quantize} if quantize else {}
    try:
        exporter = cls(cls.Options.model_validate(options, strict=True))
    except (ValueError, KdzooError):  # pydantic's error is a ValueError
        known = quantisations(cls)
        raise UnknownName(
            f"format {shown(text)}: '{name}' has no quantisation {shown(quantize)}{nearest(quantize, known) or ';'} "
            f"known: {', '.join(known) or 'none'}"
        ) from None
    return exporter


def quantisations(cls: type[Exporter]) -> list[str]:
    """Return the quantisations of a format by name, as its options declare them."""
    options = cls.Options.model_json_schema().get("properties", {}).get("quantize", {})
    kinds = [options, *options.get("anyOf", [])]
    return [value for kind in kinds for value in (*kind.get("enum", ()), *([kind["const"]] if "const" in kind else ()))]


def check_plain(exporter: Exporter) -> None:
    """Raise NeedsError for a format that writes what a run trained in integers, where there is no such run."""
    if exporter.needs_quantizer:
        raise NeedsError(
            f"format {exporter.name}-{exporter.label}: is written by a run whose algorithm trains in integers; one "
            "that quantizes after training would be right here, e.g. onnx-int8"
        )


def as_row(found: Weighed, limits: Mapping[str, float]) -> dict[str, Any]:
    """Return a candidate with what it costs as JSON; what was not measured is null."""
    spec, measurement, timing = found.candidate.spec, found.measurement, found.measurement.timing
    size = measurement.size_bytes
    return {
        "label": found.candidate.label,
        "model": spec.name,
        "args": dict(spec.args),
        "params_m": measurement.params_m,
        "macs_g": measurement.macs_g,
        "size_bytes": size,
        "size_mib": None if size is None else size / MIB,
        "latency_p50_ms": None if timing is None else timing.p50_ms,
        "latency_p95_ms": None if timing is None else timing.p95_ms,
        "reference_ms": None if timing is None else timing.reference_ms,
        "reference_spread": None if timing is None else timing.spread,
        "quiet": None if timing is None else timing.quiet,
        "fits": found.fits,
        "why_not": found.why_not(limits),
    }
