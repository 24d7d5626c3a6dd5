"""ExecuTorch programs for phones and small computers, in float32 or in int8 quantized after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from kdzoo.api.export import Exporter, ExportError, OfferOptions, Usage, export_errors, quiet_logger, suppress_output
from kdzoo_executorch.executorch_usage import snippet

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class ExecuTorch(Exporter):
    """One .pte file whose operators run in XNNPACK, the CPU backend of ExecuTorch.

    ``forward`` takes normalised inputs (N, C, H, W), float32, N up to ``max_batch``, and returns logits (N, K),
    float32. The metadata are constant methods: ``get_classes``, ``get_preprocessing`` and so on return a text.

    ExecuTorch plans its memory when the file is written, for the largest input. So text, of any length, is refused.
    """

    name = "executorch"
    suffix = ".pte"
    takes = ("image", "measurements")
    description = "ExecuTorch with XNNPACK, float32 or int8 quantized after training"

    class Options(OfferOptions):
        quantize: Literal["int8"] | None = Field(
            None, description="int8 quantizes weights and activations after training."
        )
        max_batch: int = Field(
            1, ge=1, le=1024, description="Most samples that the file answers at once; memory is planned for so many."
        )
        tolerance_points: NonNegativeFloat | None = Field(
            None, description="Accuracy it may lose against the student, in points; null: 0.1, or 0.5 in int8."
        )

    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if find_spec("executorch") is None:
            raise ExportError('executorch: the library executorch is not installed; pip install "kdzoo[executorch]"')
        self.largest_batch = options.max_batch
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
        with (
            export_errors("executorch", model, calibration if self.options.quantize else None),
            quiet_logger("executorch"),
            quiet_logger("torch.utils._pytree"),
        ):
            program = trace(model, example, self.options.max_batch)
            if self.options.quantize:
                quantized = quantize_int8(program, calibration, self.options.max_batch)
                program = trace(quantized, example, self.options.max_batch)
            path.write_bytes(lowered(program, metadata))

    def load(self, path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        with suppress_output(), quiet_logger("torch.utils._pytree"):
            import torch
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            from executorch.runtime import Runtime

            _unsafe_reset_threadpool(threads)  # it would take all cores
            program: Any = Runtime.get().load_program(path)
            program.load_method("forward")  # prepares it, once

        def run(inputs: np.ndarray) -> np.ndarray:
            return (
                program.load_method("forward")
                .execute([torch.from_numpy(np.array(inputs, dtype=np.float32))])[0]
                .numpy()
            )

        return run

    def usage(self, file: str, kind: str, pixels: Sequence[str] = ()) -> Usage:
        return Usage(
            "With executorch, whose Python package needs torch; the file itself says how to feed it",
            snippet(file, kind, pixels),
        )


def trace(model: nn.Module, example: Tensor, max_batch: int) -> torch.export.ExportedProgram:
    """Return the program of ``model`` for batches of 1 to ``max_batch`` samples."""
    import torch

    # A smaller example would make torch note where it would take other kernels for a larger batch, as a bound.
    batch = example[:1].repeat(max_batch, *[1] * (example.dim() - 1)).contiguous()
    free = None if max_batch == 1 else ({0: torch.export.Dim("batch", min=1, max=max_batch)},)
    return torch.export.export(model, (batch,), dynamic_shapes=free)


def quantize_int8(
    program: torch.export.ExportedProgram, calibration: Sequence[Tensor], max_batch: int
) -> torch.fx.GraphModule:
    """Return the program with int8 activations and weights, one scale a channel, as XNNPACK computes them."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # int8 weights, inputs rounded by the range of each batch as it comes, results in float32.
    by_batch = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    if any(str(node.target) == "aten.layer_norm.default" for node in program.graph.nodes):
        # The sums between the blocks of a transformer hold outliers, which no range that is learned before fits.
        quantizer = XNNPACKQuantizer().set_module_type(torch.nn.Linear, by_batch)
    else:
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        if name := classifier_of(program):  # logits that share 256 values would tie
            quantizer.set_module_name(name, by_batch)
    prepared: Any = prepare_pt2e(program.module(), quantizer)
    samples = torch.cat([batch.detach().cpu().float() for batch in calibration])
    with torch.no_grad():
        for batch in samples.split(max_batch):
            if len(batch) > 1 or max_batch == 1:  # torch takes a batch of one for a constant
                prepared(batch)
    return convert_pt2e(prepared)


def classifier_of(program: torch.export.ExportedProgram) -> str | None:
    """Return the name of the linear layer that gives the logits; None where another operation does."""
    (logits,) = program.graph.find_nodes(op="output")[0].all_input_nodes
    if str(logits.target) != "aten.linear.default":
        return None
    *_, (name, _) = logits.meta["nn_module_stack"].values()
    return name


def lowered(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return the content of a .pte file."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    texts = {f"get_{key}": text for key, text in metadata.items()}
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=texts)
    return bytes(edge.to_executorch().buffer)
