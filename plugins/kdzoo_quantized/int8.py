"""Networks in 8 bits, as onnxruntime runs them: trained with the rounding, by torchao's PT2E, and converted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, fx, nn
from torch.func import functional_call

from kdzoo.api import KdzooError
from kdzoo.api.export import OfferOptions, Quantizer, quiet_logger
from kdzoo.api.models import ModelError
from kdzoo_quantized.kept_graphs import prepared_graph
from kdzoo_quantized.patterns import kept_patterns

aten = torch.ops.aten

#: Operators whose inputs are rounded: those that onnxruntime fuses with the (de)quantization around them.
WEIGHTED = (aten.conv2d.default, aten.linear.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor)
POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d.default, aten.mean.dim)

#: Share of a step's range in the moving average. Torch's 0.01 lags behind a network that is still learning.
ACTIVATIONS_FOLLOW = 0.1

#: The least size of a BatchNorm's gain. Folding divides by it, and timm's ResNets begin with gains of zero.
LEAST_GAIN = 1e-5

#: Operators that behave otherwise in training, and which of their arguments says so.
SWITCHES = {aten.batch_norm.default: 5, aten.dropout.default: 2, aten.dropout_.default: 2}


class Int8(Quantizer):
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
        _lift_gains(training)

        def exported() -> fx.GraphModule:
            program = torch.export.export(
                training, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=True
            )
            # Its guards refuse a batch of one, which every operator in it can do.
            graph: Any = program.module(check_guards=False)
            _forget_counters(graph)
            _refuse_chance(graph)
            with kept_patterns():
                return prepare_qat_pt2e(graph, _quantizer(pt2e))

        return Rounded(prepared_graph(training, example, exported), model, self.projection())

    def projection(self) -> Projection | None:
        """What the weights of convolutions and linear layers are put through first; None: nothing."""
        return None

    def plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key.removeprefix("body."): value
            for key, value in weights.items()
            if not key.startswith("body.activation_post_process_")
        }

    def convert(self, prepared: nn.Module) -> nn.Module:
        _pt2e()
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        copied: Any = copy.deepcopy(prepared).to("cpu").eval()
        copied.settle()
        with kept_patterns():
            return Converted(convert_pt2e(copied.body))


class Int8Buckets(Int8):
    """The same, of weights that were first put on a few evenly spaced values a bucket, see ``Projection``.

    The plain model has these weights.
    """

    name = "int8_buckets"
    description = "int8 whose weights take a few values a bucket (extra: quant)"

    class Options(OfferOptions):
        bits: int = Field(4, ge=2, le=8, description="Bits of a weight: it takes one of 2 to the bits values.")
        bucket_size: int = Field(256, ge=2, description="Consecutive weights of a tensor that share their values.")

    options: Options

    def projection(self) -> Projection:
        return Projection(self.options.bits, self.options.bucket_size)

    def plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        project, found = self.projection(), super().plain(weights)
        return {key: project(value) if project.concerns(value) else value for key, value in found.items()}


@dataclass(frozen=True)
class Projection:
    """Uniform scaling in buckets: the nearest of 2^bits values between a bucket's smallest and largest.

    A bucket is ``bucket_size`` consecutive numbers of the flattened tensor, the last one perhaps fewer, or a whole
    tensor that is smaller.
    """

    bits: int
    bucket_size: int

    def __call__(self, weights: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        flat = weights.detach().reshape(-1)
        missing = -len(flat) % self.bucket_size if len(flat) > self.bucket_size else 0
        rows = torch.cat([flat, flat[-1:].expand(missing)]).view(-1, min(len(flat), self.bucket_size))
        least, most = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
        step = (most - least) / (2**self.bits - 1)
        step = torch.where(step > 0, step, 1.0)  # a bucket of one value keeps it
        return (((rows - least) / step).round() * step + least).view(-1)[: len(flat)].view_as(weights)

    @staticmethod
    def concerns(value: Tensor) -> bool:
        """Whether it is the weight of a convolution or a linear layer, by its shape, rather than of a BatchNorm."""
        return value.is_floating_point() and value.dim() > 1


class StraightThrough(torch.autograd.Function):
    """Projected weights, whose gradient goes to the weights in full precision as it is."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, project: Projection) -> Tensor:
        return project(weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Rounded(nn.Module):
    """A network with its rounding, in float32, that trains."""

    body: Any

    def __init__(self, graph: fx.GraphModule, model: nn.Module, project: Projection | None) -> None:
        super().__init__()
        self.body, self.project = graph, project
        plain = model.state_dict()
        for key in plain.keys() - graph.state_dict().keys():  # counters of batches, which the graph has no use for
            owner, _, name = key.rpartition(".")
            graph.get_submodule(owner).register_buffer(name, plain[key].clone())
        concerned = {} if project is None else {k: v for k, v in model.named_parameters() if project.concerns(v)}
        self.projected = tuple(concerned)
        self._switched: bool | None = None
        # A state that was saved after an evaluation says that no range is learned.
        self.register_load_state_dict_post_hook(_forget_switches)
        self.train()

    def forward(self, inputs: Tensor) -> Tensor:
        self._follow()
        if self.project is None:
            return self.body(inputs)
        weights = {name: StraightThrough.apply(self.body.get_parameter(name), self.project) for name in self.projected}
        return functional_call(self.body, weights, (inputs,))

    def settle(self) -> None:
        """Replace weights by what they are projected to, for good."""
        for name in self.projected:
            assert self.project is not None
            weight = self.body.get_parameter(name)
            weight.data = self.project(weight)

    def train(self, mode: bool = True) -> Rounded:
        for part in self.modules():  # an exported module refuses train()
            part.training = mode
        self._follow()
        return self

    def _follow(self) -> None:
        """Switch BatchNorm and dropout, which are arguments here, and the learning of ranges to what ``training`` says.

        Who puts modes back after an evaluation sets that flag of each part, without a call of ``train``.
        """
        mode = self.training
        if self._switched == mode:
            return
        for part in self.modules():
            enabled = getattr(part, "observer_enabled", None)
            if enabled is not None:
                enabled[0] = int(mode)
        for node in self.body.graph.nodes:
            place = SWITCHES.get(node.target)
            if place is not None:
                node.args = (*node.args[:place], mode, *node.args[place + 1 :])
        self.body.recompile()
        self._switched = mode


def _forget_switches(rounded: Rounded, _: object) -> None:
    rounded._switched = None


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
    try:
        with quiet_logger("torch.utils._pytree"):  # torchao registers its enums in a way that torch will drop
            from torchao.quantization import pt2e
    except ImportError as error:
        raise KdzooError(f'int8: needs torchao ({error}); pip install "kdzoo[quant]" installs it') from error
    return pt2e


def _lift_gains(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
            gain = part.weight.data
            gain[gain.abs() < LEAST_GAIN] = LEAST_GAIN


def _refuse_chance(graph: fx.GraphModule) -> None:
    """Refuse what draws random numbers in training and has no switch here: it would go on in eval mode."""
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()) or node.target in SWITCHES:
            continue
        if not _draws_nothing(node):
            raise ModelError(
                f"int8: the student draws random numbers in training ({node.target}), which cannot be switched off "
                "afterwards; args that leave it out, such as drop_path_rate: 0.0, would be right"
            )


def _draws_nothing(node: fx.Node) -> bool:
    """Whether this is attention without dropout, which only could draw."""
    if node.target is not aten.scaled_dot_product_attention.default:
        return False
    dropout: Any = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    return bool(dropout == 0.0)


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

    def rounding(observer: Any, follows: float, **range_: Any) -> Any:
        constructor = pt2e.FusedMovingAvgObsFakeQuantize.with_args(
            observer=observer, averaging_constant=follows, **range_
        )
        return QuantizationSpec(observer_or_fake_quant_ctr=constructor, is_dynamic=False, **range_)

    activation = rounding(
        pt2e.MovingAverageMinMaxObserver,
        ACTIVATIONS_FOLLOW,
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
    )
    weight = rounding(
        pt2e.MovingAveragePerChannelMinMaxObserver,
        1.0,  # the range of weights is known; a mean of past ones would clip what grows, and so keep it from growing
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
