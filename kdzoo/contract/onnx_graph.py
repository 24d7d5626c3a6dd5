"""The ONNX graph of a model, in float32 or quantized after training, which several export formats are made of.

torch, onnx and onnxruntime are imported when they are needed: the process that checks a file loads an exporter's module
and should load no more than the file's own runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

#: Names of the graph's input and output.
INPUT_NAME, OUTPUT_NAME = "inputs", "logits"


def onnx_graph(model: nn.Module, example: Tensor, opset: int | None = None) -> onnx.ModelProto:
    """Return the float32 graph of ``model`` with a free batch size, and a free length of text.

    ``model`` is in eval mode, ``example`` one batch (N, C, H, W), or ids (N, L); torch raises whatever it likes.
    """
    import torch

    if len(example) < 2:  # a batch of one would be taken for a constant
        example = example.repeat(2, *[1] * (example.dim() - 1))
    free = {0: torch.export.Dim("batch")}
    if not example.is_floating_point():
        free[1] = torch.export.Dim("length")
    program = torch.onnx.export(
        model,
        (example.contiguous(),),
        dynamo=True,
        dynamic_shapes=(free,),
        external_data=False,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        opset_version=opset,
        verbose=False,
    )
    assert program is not None, "dynamo=True returns a program"
    return program.model_proto


def quantize_onnx(graph: onnx.ModelProto, calibration: Sequence[Tensor], reduce_range: bool) -> onnx.ModelProto:
    """Return the graph with convolutions and linear layers in int8, in Q/DQ form, quantized after training.

    ``calibration`` are batches that the ranges of activations are learned from. With ``reduce_range`` weights use 7 of
    their 8 bits, so that the sum of two products fits into the 16 bits that x86 CPUs without VNNI have for it.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            if batch is None:
                return None
            batch = batch.detach().cpu().contiguous()
            return {INPUT_NAME: (batch.float() if batch.is_floating_point() else batch).numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        if calibration[0].is_floating_point():
            quant_pre_process(graph, prepared)  # fuses BatchNorm, without which each one would be quantized on its own
        else:
            onnx.save(graph, prepared)  # no BatchNorm is in there, and a free length is more than its shapes can follow
        kinds = {node.op_type for node in onnx.load(prepared).graph.node}
        quantize_static(
            prepared,
            quantized,
            Reader(),
            # The sums between the blocks of a transformer hold outliers: 8 bits there cost far more than they save.
            op_types_to_quantize=["Conv", "Gemm", "MatMul"] if "LayerNormalization" in kinds else None,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,  # onnxruntime's default, QInt8, stays unfused and is slower than float32
            weight_type=QuantType.QInt8,
            # Products end in float32, fused all the same: logits that share 256 values would tie.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        return onnx.load(quantized)
