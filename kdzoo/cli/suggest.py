"""The command that lists small models within a budget, measured on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdzoo.cli.arguments import Json
from kdzoo.cli.opening import warn_of_plugins
from kdzoo.terminal import say, warn, width

if TYPE_CHECKING:
    from kdzoo.study.budget import Weighed

commands = typer.Typer()

#: Small networks of several families that are measured where no pattern is given, in a minute or two on one core.
SMALL = (
    "lcnet_050",
    "lcnet_075",
    "lcnet_100",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobilenetv3_small_075",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small_035",
    "mobilenetv4_conv_small",
    "tinynet_e",
    "tinynet_d",
    "efficientnet_lite0",
    "resnet10t",
)

#: A model's row: its names, what it costs, whether its time was taken on a busy machine.
COLUMNS = ("model", "parameters, M", "MACs, G", "MiB", "ms p50", "ms p95")


@commands.command()
def suggest(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN...", help="Models, e.g. 'mobilenetv3_*'; none: a few small families of timm."),
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option("--max-mb", min=1e-6, help="Largest size of the exported file, MiB.")
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option("--max-ms", min=1e-6, help="Longest time of one image, p95, milliseconds.")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, max=8192, help="Height and width of the images, pixels.")] = 224,
    format: Annotated[
        str, typer.Option("--format", help="Export format, with its quantisation after a dash: onnx, onnx-int8 ...")
    ] = "onnx",
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="CPU threads that it is timed with.")] = 1,
    classes: Annotated[int, typer.Option("--classes", min=2, max=1_000_000, help="Number of classes.")] = 1000,
    as_json: Json = False,
) -> None:
    """List which models fit a size and a time: exported untrained and timed on this machine, without any training.

    What was measured is kept, so the same command goes on where it was stopped.
    """
    from kdzoo.zoo.loading import load_zoo

    zoo = load_zoo()
    warn_of_plugins(zoo)
    from kdzoo.data.inputs import Pixels
    from kdzoo.models.matching import models_matching
    from kdzoo.recipe.budget_section import MIB
    from kdzoo.study.budget import as_row, check_plain, check_possible, exporter_named
    from kdzoo.study.candidates import Measuring, Target, candidate_cache

    exporter = exporter_named(format, zoo)
    check_plain(exporter)
    names = models_matching(patterns or SMALL)
    given = {"size_bytes": None if max_mb is None else max_mb * MIB, "latency_ms": max_ms}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    inputs = Pixels(channels=3, size=(size, size), mean=(0.5,) * 3, std=(0.25,) * 3)
    target = Target(inputs, tuple(f"class {i}" for i in range(classes)), exporter, threads)
    found = _measured(names, Measuring(target, limits, candidate_cache()))
    if as_json:
        about = {"limits": limits, "format": format, "threads": threads, "size": size, "classes": classes}
        rows = [as_row(each, limits) for each in found]
        say(json.dumps({**about, "quiet": not any(each.noisy for each in found), "models": rows}, indent=2))
    else:
        _show(found, limits)
    check_possible(found, limits)


def _measured(names: Sequence[str], measuring: Any) -> list[Weighed]:
    """Measure the models one after the other; those that fit come first, those with more MACs before others."""
    from kdzoo.contract.stage import ModelSpec
    from kdzoo.study.budget import weighed
    from kdzoo.study.candidates import Candidate

    found = []
    for number, name in enumerate(names, 1):
        measuring.say = lambda label, state, number=number: warn(f"{number}/{len(names)} {label}: {state}")
        candidate = Candidate(name, ModelSpec(name))
        found.append(weighed(candidate, measuring.measure(candidate), measuring.limits))
    return sorted(found, key=lambda each: (not each.fits, -(each.measurement.macs_g or 0.0)))


def _show(found: Sequence[Weighed], limits: Mapping[str, float]) -> None:
    """Print a table of what fits, and under it why the others do not."""
    from kdzoo.evaluation.steadiness import QUIET_SPREAD
    from kdzoo.report.columns import fitted_text, listed
    from kdzoo.report.tables import text_table
    from kdzoo.study.budget import in_limits

    fitting = [each for each in found if each.fits]
    if fitting:
        say(text_table(COLUMNS, [_row(each) for each in fitting], width=width()))
        order = "Most MACs first: how accurate a model gets is known only after training."
        say(fitted_text(f"{len(fitting)} of {len(found)} models within {in_limits(limits)}. {order}", width()))
    others = [each for each in found if not each.fits]
    if others:
        say("Not within the budget:" if fitting else "None within the budget:")
        say(listed([[each.candidate.label, each.why_not(limits)] for each in others], width()))
    if noisy := sum(each.noisy for each in found):
        text = (
            f"~ {noisy} of {len(found)} models were timed while the machine was busy: a fixed computation between the "
        )
        text += f"calls varied by more than {QUIET_SPREAD:.0%}. Run the command again on a quiet machine."
        say(fitted_text(text, width()))


def _row(found: Weighed) -> tuple[str, ...]:
    from kdzoo.recipe.budget_section import MIB

    measurement = found.measurement
    timing, size = measurement.timing, measurement.size_bytes
    mark = "~" if found.noisy else ""
    return (
        found.candidate.label,
        f"{measurement.params_m:.3g}",
        f"{measurement.macs_g:.3g}",
        "-" if size is None else f"{size / MIB:.3g}",
        *(("-", "-") if timing is None else (f"{mark}{timing.p50_ms:.3g}", f"{mark}{timing.p95_ms:.3g}")),
    )
