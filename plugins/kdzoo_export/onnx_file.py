"""ONNX, in float32 or in int8 quantized after training, run by onnxruntime."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from kdzoo.api.export import (
    INPUT_NAME,
    OUTPUT_NAME,
    Exporter,
    OfferOptions,
    Usage,
    export_errors,
    onnx_graph,
    quantize_onnx,
)
from kdzoo_export.onnx_usage import PRECISE, snippet, text_snippet

if TYPE_CHECKING:  # the process that checks a file imports this module, and needs no torch
    import onnx
    from torch import Tensor, nn


class Onnx(Exporter):
    """One self-contained .onnx file whose batch size is free.

    The graph takes normalised inputs (N, C, H, W), float32, or ids of tokens (N, L), int64, whose length is free too,
    and returns logits (N, K), float32, under either ``quantize``; the metadata says how to normalise and names the
    classes. int8 keeps inputs of convolutions and linear layers as uint8 and their weights as int8 with one scale a
    channel, which is what onnxruntime runs fused.

    On an x86 CPU without VNNI onnxruntime adds products of uint8 and int8 in 16 bits, where two of them may not fit.
    Weights of 7 bits always fit. A file with weights of 8 bits is right on such a CPU only in a session with
    ``session.x64quantprecision`` set, which other CPUs ignore.
    """

    name = "onnx"
    suffix = ".onnx"
    description = "ONNX for onnxruntime, float32 or int8 quantized after training"

    class Options(OfferOptions):
        quantize: Literal["int8", "int8-trained"] | None = Field(
            None,
            description="int8 quantizes weights and activations after training; int8-trained writes a student that was "
            "trained in int8 as it is.",
        )
        reduce_range: bool = Field(
            True,
            description="int8 gives weights 7 of their 8 bits, so that onnxruntime answers alike on every CPU; false "
            "is right on an x86 CPU without VNNI only in a session with session.x64quantprecision set.",
        )
        opset: int | None = Field(None, ge=18, le=23, description="ONNX operator set; null: what torch prefers.")
        tolerance_points: NonNegativeFloat | None = Field(
            None, description="Accuracy it may lose against the student, in points; null: 0.1, or 0.5 in int8."
        )

    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if options.quantize:
            self.tolerance_points, self.tolerance_logits, self.quantizes = 0.5, None, True
            self.needs_quantizer = options.quantize == "int8-trained"
        if options.tolerance_points is not None:
            self.tolerance_points = options.tolerance_points

    @property
    def label(self) -> str:
        return self.options.quantize or ""

    @property
    def whole_range(self) -> bool:
        """Whether weights use all 8 bits, so that some CPUs need the session option ``PRECISE``."""
        trained = self.options.quantize == "int8-trained"
        return trained or (self.options.quantize == "int8" and not self.options.reduce_range)

    def export(
        self, model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str], calibration: Sequence[Tensor]
    ) -> None:
        after_training = self.options.quantize == "int8"
        with export_errors("onnx", model, calibration if after_training else None):
            graph = onnx_graph(model, example, self.options.opset)
            if after_training:
                graph = quantize_onnx(graph, calibration, self.options.reduce_range)
            if self.whole_range:
                metadata = {**metadata, "session_options": json.dumps({PRECISE: "1"})}
            finish(graph, path, metadata)

    def load(self, path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry(PRECISE, "1")
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        kind = np.int64 if session.get_inputs()[0].type == "tensor(int64)" else np.float32

        def run(inputs: np.ndarray) -> np.ndarray:
            return session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(inputs, dtype=kind)})[0]

        return run

    def usage(self, file: str, kind: str, pixels: Sequence[str] = ()) -> Usage:
        alone = "onnxruntime and tokenizers" if kind == "text" else "onnxruntime alone"
        code = text_snippet(file, self.whole_range) if kind == "text" else snippet(file, kind, self.whole_range, pixels)
        return Usage(f"With {alone}; the file itself says how to feed it", code)


def finish(graph: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the graph with our metadata and without what torch notes on each node, source paths included."""
    import onnx

    for part in (graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.value_info,
                 *graph.graph.initializer, *graph.functions):  # fmt: skip
        del part.metadata_props[:]
        part.doc_string = ""
    share_no_int8(graph)
    graph.producer_name, graph.producer_version = "kdzoo", metadata.get("kdzoo_version", "")
    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def share_no_int8(graph: onnx.ModelProto) -> None:
    """Give each DequantizeLinear int8 constants of its own.

    onnxruntime 1.31 makes new constants of them under ``PRECISE``, and fails at the second node that shares one.
    """
    import onnx

    constants = {constant.name: constant for constant in graph.graph.initializer}
    taken: set[str] = set()
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if node.op_type != "DequantizeLinear" or name not in constants:
                continue
            if name in taken and constants[name].data_type == onnx.TensorProto.INT8:
                copy = onnx.TensorProto()
                copy.CopyFrom(constants[name])
                copy.name = f"{name}_{len(graph.graph.initializer)}"
                graph.graph.initializer.append(copy)
                node.input[place] = copy.name
            taken.add(name)
