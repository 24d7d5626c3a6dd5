"""OpenVINO's intermediate representation, in float32 or in int8 quantized after training."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from kdzoo.api.export import (
    INPUT_NAME,
    OUTPUT_NAME,
    Exporter,
    ExportError,
    OfferOptions,
    Usage,
    export_errors,
    onnx_graph,
    quantize_onnx,
)
from kdzoo_openvino.openvino_usage import PRECISION, SECTION, snippet, text_snippet

if TYPE_CHECKING:  # the process that checks a file imports this module, and needs no torch
    from torch import Tensor, nn


class OpenVino(Exporter):
    """A graph in .xml and its weights in .bin next to it, whose batch size is free.

    The graph takes normalised inputs (N, C, H, W), float32, or ids of tokens (N, L), int64, whose length is free too,
    and returns logits (N, K), float32. The metadata are in the section ``kdzoo`` of the graph's runtime information.
    It is made of the same ONNX graph that the format ``onnx`` writes, quantized in the same way.

    Where the CPU has instructions for bfloat16, OpenVINO computes in it unless it is asked for float32.
    """

    name = "openvino"
    suffix = ".xml"
    further_suffixes = (".bin",)
    description = "OpenVINO, float32 or int8 quantized after training"

    class Options(OfferOptions):
        quantize: Literal["int8"] | None = Field(
            None, description="int8 quantizes weights and activations after training."
        )
        reduce_range: bool = Field(
            True,
            description="int8 gives weights 7 of their 8 bits, so that sums do not overflow on x86 CPUs without VNNI.",
        )
        tolerance_points: NonNegativeFloat | None = Field(
            None, description="Accuracy it may lose against the student, in points; null: 0.1, or 0.5 in int8."
        )

    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if find_spec("openvino") is None:
            raise ExportError('openvino: the library openvino is not installed; pip install "kdzoo[openvino]"')
        if options.quantize:
            self.tolerance_points, self.tolerance_logits, self.quantizes = 0.5, None, True
        if options.tolerance_points is not None:
            self.tolerance_points = options.tolerance_points

    @property
    def label(self) -> str:
        return self.options.quantize or ""

    def export(
        self, model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str], calibration: Sequence[Tensor]
    ) -> None:
        with export_errors("openvino", model, calibration if self.options.quantize else None):
            import openvino

            graph = onnx_graph(model, example)
            if self.options.quantize:
                graph = quantize_onnx(graph, calibration, self.options.reduce_range)
            converted = core().read_model(graph.SerializeToString())
            for key, text in metadata.items():
                converted.set_rt_info(text, [SECTION, key])
            openvino.save_model(converted, path, compress_to_fp16=False)

    def load(self, path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        settings = {
            **PRECISION,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "ENABLE_CPU_PINNING": "NO",  # this process runs more than this file
        }
        compiled = core().compile_model(os.fspath(path), "CPU", settings)
        request = compiled.create_infer_request()
        kind = compiled.input(INPUT_NAME).get_element_type().to_dtype()

        def run(inputs: np.ndarray) -> np.ndarray:
            answers = request.infer({INPUT_NAME: np.ascontiguousarray(inputs, dtype=kind)})
            return np.array(answers[OUTPUT_NAME])

        return run

    def usage(self, file: str, kind: str, pixels: Sequence[str] = ()) -> Usage:
        alone = "openvino and tokenizers" if kind == "text" else "openvino alone"
        code = text_snippet(file) if kind == "text" else snippet(file, kind, pixels)
        return Usage(f"With {alone}; the file itself says how to feed it", code)


@functools.cache
def core() -> Any:
    """Return the one Core of this process, which lasts as long as it.

    Where several end in the order in which they began, OpenVINO 2026.4 leaves the thread a stack for signals that is
    no longer there, and the next signal that Python handles ends the process.
    """
    import openvino

    return openvino.Core()
