"""Networks in 8 bits, as onnxruntime runs them: trained with the rounding, by torchao's PT2E, and converted."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from kdzoo.api import Arithmetic, KdzooError

aten = torch.ops.aten

#: Operators whose inputs are rounded: those that onnxruntime fuses with the (de)quantization around them.
WEIGHTED = (aten.conv2d.default, aten.linear.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor)
POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d.default, aten.mean.dim)

#: Operators that behave otherwise in training, and which of their arguments says so.
SWITCHES = {aten.batch_norm.default: 5, aten.dropout.default: 2, aten.dropout_.default: 2}


class Int8(Arithmetic):
    """Inputs of convolutions, linear layers, sums, products and pools as uint8 with a scale and a zero point;
    weights of convolutions and linear layers as int8 with a scale an output channel.

    Ranges are moving averages of what was seen in training. BatchNorm is folded into its convolution before the
    weights are rounded.
    """

    name = "int8"
    description = "uint8 activations, int8 weights a channel, by torchao's PT2E (extra: quant)"

    def prepare(self, model: nn.Module, example: Tensor) -> nn.Module:
        pt2e = _pt2e()
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        training = copy.deepcopy(model).train()
        program = torch.export.export(
            training, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=True
        )
        # its guards refuse a batch of one, which every operator in it can do
        graph: Any = program.module(check_guards=False)
        _forget_counters(graph)
        return Rounded(prepare_qat_pt2e(graph, _quantizer(pt2e)), model.state_dict())

    def plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key.removeprefix("body."): value
            for key, value in weights.items()
            if not key.startswith("body.activation_post_process_")
        }

    def convert(self, prepared: nn.Module) -> nn.Module:
        _pt2e()
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        graph: Any = copy.deepcopy(prepared).to("cpu").eval().body
        return Converted(convert_pt2e(graph))


class Rounded(nn.Module):
    """A network with its rounding, in float32, that trains."""

    body: Any

    def __init__(self, graph: fx.GraphModule, plain: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.body = graph
        for key in plain.keys() - graph.state_dict().keys():  # counters of batches, which the graph has no use for
            owner, _, name = key.rpartition(".")
            graph.get_submodule(owner).register_buffer(name, plain[key].clone())
        self.train()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)

    def train(self, mode: bool = True) -> Rounded:
        """Switch BatchNorm and dropout, which are arguments here; ranges are learnt in training only."""
        for part in self.modules():  # an exported module refuses train()
            part.training = mode
            enabled = getattr(part, "observer_enabled", None)
            if enabled is not None:
                enabled[0] = int(mode)
        changed = False
        for node in self.body.graph.nodes:
            place = SWITCHES.get(node.target)
            if place is not None and node.args[place] != mode:
                node.args = (*node.args[:place], mode, *node.args[place + 1 :])
                changed = True
        if changed:
            self.body.recompile()
        return self


class Converted(nn.Module):
    """A network with quantized weights and the (de)quantization of its activations, for exporters only."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.body: Any = graph
        self.train(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)

    def train(self, mode: bool = True) -> Converted:
        for part in self.modules():
            part.training = mode
        return self


def _pt2e() -> Any:
    quiet = logging.getLogger("torch.utils._pytree")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # torchao registers its enums in a way that torch will drop
    try:
        from torchao.quantization import pt2e
    except ImportError as error:
        raise KdzooError(f'int8: needs torchao ({error}); pip install "kdzoo[quant]" installs it') from error
    finally:
        quiet.setLevel(level)
    return pt2e


def _forget_counters(graph: fx.GraphModule) -> None:
    """Take out the counting of batches, which would go on in eval mode and decides nothing at a fixed momentum."""
    for node in list(graph.graph.nodes):
        if node.target is aten.add_.Tensor and not node.users and _of_counter(node.args[0]):
            graph.graph.erase_node(node)
    graph.recompile()


def _of_counter(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and str(node.target).endswith("num_batches_tracked")


def _quantizer(pt2e: Any) -> Any:
    """A quantizer that rounds what onnxruntime fuses, and nothing else."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    def rounding(observer: Any, **range_: Any) -> Any:
        constructor = pt2e.FusedMovingAvgObsFakeQuantize.with_args(observer=observer, **range_)
        return QuantizationSpec(observer_or_fake_quant_ctr=constructor, is_dynamic=False, **range_)

    activation = rounding(
        pt2e.MovingAverageMinMaxObserver,
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
    )
    weight = rounding(
        pt2e.MovingAveragePerChannelMinMaxObserver,
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )

    class OnnxruntimeQuantizer(Quantizer):
        def annotate(self, model: Any) -> Any:
            for node in model.graph.nodes:
                inputs = {}
                if node.target in WEIGHTED:
                    inputs = {node.args[0]: activation, node.args[1]: weight}
                elif node.target in SUMS:
                    inputs = {given: activation for given in node.args if _of_maps(given)}
                elif node.target in POOLS:
                    inputs = {node.args[0]: activation}
                if inputs:
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map=inputs, output_qspec=None, _annotated=True
                    )
            return model

        def validate(self, model: Any) -> None:
            pass

    return OnnxruntimeQuantizer()


def _of_maps(node: Any) -> bool:
    """Whether an argument is a float tensor of more than one number a sample, rather than a scalar or a counter."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
