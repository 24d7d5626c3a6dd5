"""What both algorithms of this family do: first learn in floats, then with rounding, and the table of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from kdzoo.api import Algorithm, AlgorithmOptions, FinishedRun, ReportItem, Stage, StagePlan, Stages, Table


class RoundingOptions(AlgorithmOptions):
    """Options of every algorithm of this family."""

    share: float = Field(1.0, gt=0, le=1, description="Share of the recipe's epochs with rounding, the last ones.")
    lr: float | None = Field(
        None, gt=0, le=1000, description="Learning rate of the epochs with rounding; null: the recipe's."
    )
    compare_alone: bool = Field(True, description="Also train the epochs with rounding without teacher, for the table.")


class Rounding(Algorithm):
    """Base of this family: epochs in floats on the labels, then epochs with rounding, under the teacher and without."""

    Options = RoundingOptions

    @classmethod
    def quantizer_options(cls, options: Any) -> Mapping[str, Any]:
        """Options of the quantizer that the algorithm's own ask for."""
        return {}

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        options, epochs = plan.options, plan.train["epochs"]
        rounding = max(1, round(epochs * options.share))
        if options.share < 1:
            rounding = min(rounding, max(1, epochs - 1))
        start = None
        if epochs > rounding:
            start = yield Stage("float", plan.student, train={"epochs": epochs - rounding})
        asked = cls.quantizer_options(options)
        model = replace(plan.student, quantizer=cls.quantizer, quantizer_options=asked)
        train: dict[str, Any] = {"epochs": rounding}
        if options.lr is not None:
            train["optimizer"] = {"lr": options.lr}
        if options.compare_alone:
            yield Stage("alone", model, start=start, train=train)
        return (yield Stage(cls.name, model, plan.own, plan.teachers, start=start, train=train))

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        stages = {stage.name: stage for stage in run.stages}
        labels = {"alone": "trained with rounding, alone", cls.name: "trained with rounding, and taught"}
        prepared = {
            label: run.network(stages[name], "student_quantized") for name, label in labels.items() if name in stages
        }
        files = {
            (entry["network"], entry["format"], entry["quantize"]): entry
            for entry in run.entries.values()
            if entry["format"]
        }
        rows = []
        for quantize, name in ((None, "float32, alone"), ("int8", "int8 afterwards, alone")):
            if ("control", "onnx", quantize) in files:
                rows.append(_row(name, files["control", "onnx", quantize], runs=True))
        rows += [_row(entry["label"], entry) for entry in run.measure(prepared)]
        if ("student", "onnx", "int8-trained") in files:
            rows.append(_row("the same in integers", files["student", "onnx", "int8-trained"], runs=True))
        yield Table(
            "From floats to integers",
            ("student", "top-1 %", "size KiB", "ms at batch 1"),
            tuple(rows),
            note="Files in their own runtime, timed in turn. What is trained with rounding computes in floats until it "
            "is written as a file; until then its size and time mean nothing.",
        )


def _row(name: str, entry: Mapping[str, Any], runs: bool = False) -> tuple[str | float | None, ...]:
    size = round(entry["size_mib"] * 1024, 1) if runs else None
    latency = entry["latency_ms"]["p50"] if runs and entry["latency_ms"] else None
    return name, round(entry["top1_percent"], 2), size, None if latency is None else round(latency, 3)
