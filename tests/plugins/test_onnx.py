from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from small_network import images, tiny
from torch import nn

from kdzoo.api.export import ExportError
from kdzoo_export.onnx_file import Onnx, finish

METADATA = {"classes": json.dumps(["a", "b"]), "preprocessing": "{}", "model": "tiny", "kdzoo_version": "0"}


def exported(path, model=None, example=None, **options):
    exporter = Onnx(Onnx.Options(**options))
    batches = [images(32, seed) for seed in range(2, 6)]
    exporter.export(model or tiny(), images(2) if example is None else example, path, METADATA, batches)
    return exporter.load(path, threads=1)


@pytest.mark.parametrize("samples", [1, 2, 7, 64])
def test_the_file_answers_like_the_model_at_any_batch_size(tmp_path, samples):
    run = exported(tmp_path / "model.onnx")
    inputs = images(samples)
    logits = run(inputs.numpy())
    assert (logits.shape, logits.dtype) == ((samples, 5), np.float32)
    np.testing.assert_allclose(logits, tiny()(inputs).detach().numpy(), atol=1e-5)


def test_an_example_of_one_sample_does_not_fix_the_batch_size(tmp_path):
    run = exported(tmp_path / "model.onnx", example=images(1))
    assert run(images(3).numpy()).shape == (3, 5)


def test_it_is_one_file_that_says_how_to_feed_it(tmp_path):
    exported(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    graph = onnx.load(tmp_path / "model.onnx")
    assert {prop.key: prop.value for prop in graph.metadata_props} == METADATA
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == ["inputs", "logits"]
    assert graph.producer_name == "kdzoo"


def test_it_does_not_tell_where_it_was_made(tmp_path):
    exported(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    assert not any(node.metadata_props for node in graph.graph.node)
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_int8_is_near_the_model_and_holds_uint8_inputs_and_int8_weights_a_channel(tmp_path):
    run = exported(tmp_path / "model.onnx", quantize="int8")
    logits, expected = run(images(256).numpy()), tiny()(images(256)).detach().numpy()
    assert np.abs(logits - expected).mean() < 0.03 * np.abs(expected).max()
    graph = onnx.load(tmp_path / "model.onnx").graph
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        inputs, weights = (makers[name] for name in node.input[:2])
        assert inputs.op_type == weights.op_type == "DequantizeLinear"
        assert arrays[inputs.input[2]].dtype == np.uint8
        assert arrays[weights.input[0]].dtype == np.int8
        assert arrays[weights.input[1]].shape == (8,)


def weights_of(path):
    """The int8 tensors of more than one dimension."""
    arrays = map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
    return [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]


@pytest.mark.parametrize(("reduce_range", "largest"), [(True, 64), (False, 127)])
def test_weights_use_7_bits_so_that_two_products_fit_into_16(tmp_path, reduce_range, largest):
    exported(tmp_path / "model.onnx", quantize="int8", reduce_range=reduce_range)
    found = max(int(np.abs(array.astype(int)).max()) for array in weights_of(tmp_path / "model.onnx"))
    assert largest - 1 <= found <= largest
    said = {prop.key: prop.value for prop in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert ("session_options" in said) == (not reduce_range)


class Overflowing(nn.Module):
    """A linear layer whose products of 8 bits, added in 16 bits, would not fit."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 4)
        nn.init.constant_(self.linear.weight, 1.0)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs):
        return self.linear(inputs.flatten(1))


@pytest.mark.parametrize("reduce_range", [True, False])
def test_int8_does_not_overflow_on_any_cpu(tmp_path, reduce_range):
    inputs = torch.rand(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    model = Overflowing().eval()
    exporter = Onnx(Onnx.Options(quantize="int8", reduce_range=reduce_range))
    exporter.export(model, inputs[:2], tmp_path / "model.onnx", METADATA, [inputs])
    logits, expected = exporter.load(tmp_path / "model.onnx", 1)(inputs.numpy()), model(inputs).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0.01)
    plain, code = {}, exporter.usage(str(tmp_path / "model.onnx"), "image").code
    assert ("x64quantprecision" in code) == (not reduce_range)
    said = {**METADATA, "preprocessing": json.dumps({"channels": 4, "size": [8, 8], "mean": [0.0], "std": [1.0]})}
    graph = onnx.load(tmp_path / "model.onnx")
    onnx.helper.set_model_props(graph, said)
    onnx.save(graph, tmp_path / "model.onnx")
    exec(code, plain)
    ours = model(torch.from_numpy(plain["pixels"])).detach().numpy()
    np.testing.assert_allclose(plain["logits"], ours, rtol=0.01)


def test_int8_does_not_quantize_the_logits(tmp_path):
    run = exported(tmp_path / "model.onnx", quantize="int8")
    assert len(np.unique(run(images(256).numpy()))) > 1000  # uint8 would leave 256 values


def test_int8_takes_ids_of_any_length(tmp_path):
    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.classifier = nn.Embedding(20, 8), nn.Linear(8, 5)
            self.positions = nn.Parameter(torch.ones(512, 8))

        def forward(self, ids):
            return self.classifier((self.table(ids) + self.positions[: ids.shape[1]]).mean(1))

    torch.manual_seed(0)
    model, exporter = Pieces().eval(), Onnx(Onnx.Options(quantize="int8"))
    batches = [torch.randint(20, (16, length)) for length in (1, 9, 40)]
    exporter.export(model, batches[1], tmp_path / "model.onnx", METADATA, batches)
    ids = torch.randint(20, (3, 30))
    expected = model(ids).detach().numpy()
    logits = exporter.load(tmp_path / "model.onnx", threads=1)(ids.numpy())
    assert np.abs(logits - expected).mean() < 0.03 * np.abs(expected).max()


def test_int8_leaves_the_sums_of_a_transformer_in_float32(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear, self.classifier = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, inputs):
            tokens = inputs.flatten(1, 2)
            return self.classifier((tokens + self.linear(self.norm(tokens))).mean(1))

    exported(tmp_path / "model.onnx", model=Block().eval(), quantize="int8")
    graph = onnx.load(tmp_path / "model.onnx").graph
    makers = {node.output[0]: node.op_type for node in graph.node}
    sums = [[makers.get(name) for name in node.input] for node in graph.node if node.op_type == "Add"]
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert ["Reshape", "Add"] in sums, "tokens plus linear layer, neither of them quantized"
    assert len(products) == 2
    assert all(makers[node.input[0]] == "DequantizeLinear" for node in products)


def test_label_and_tolerances_follow_the_options():
    plain, int8 = Onnx(Onnx.Options()), Onnx(Onnx.Options(quantize="int8"))
    assert (plain.label, plain.tolerance_points, plain.tolerance_logits) == ("", 0.1, 1e-3)
    assert (int8.label, int8.tolerance_points, int8.tolerance_logits) == ("int8", 0.5, None)
    assert Onnx(Onnx.Options(quantize="int8", tolerance_points=2.0)).tolerance_points == 2.0


@pytest.mark.parametrize("wrong", [{"quantize": "int4"}, {"opset": 9}, {"tolerance_points": -1}, {"quantise": "int8"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        Onnx.Options(**wrong)


def test_opset_is_what_was_asked_for(tmp_path):
    exported(tmp_path / "model.onnx", opset=18)
    assert [entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import] == [18]


def test_export_prints_nothing(tmp_path, capfd):
    exported(tmp_path / "model.onnx", quantize="int8")
    assert capfd.readouterr() == ("", "")


def test_a_model_in_training_mode_is_refused(tmp_path):
    with pytest.raises(ExportError) as caught:
        exported(tmp_path / "model.onnx", model=tiny().train())
    assert str(caught.value) == "onnx: the model is in training mode, its BatchNorm and dropout too; call eval() first"
    assert not list(tmp_path.iterdir())


def test_int8_without_calibration_is_refused(tmp_path):
    with pytest.raises(ExportError) as caught:
        Onnx(Onnx.Options(quantize="int8")).export(tiny(), images(2), tmp_path / "model.onnx", METADATA, [])
    assert str(caught.value) == "onnx: quantize: int8 learns activation ranges from calibration batches; got none"


def test_a_model_that_cannot_be_traced_is_an_export_error_that_names_it(tmp_path):
    class Branching(nn.Module):
        def forward(self, inputs):
            return inputs.flatten(1)[:, :5] if inputs.sum() > 0 else inputs.flatten(1)[:, :4]

    with pytest.raises(ExportError, match=r"^onnx: Branching cannot be exported: \w+: "):
        exported(tmp_path / "model.onnx", model=Branching().eval())
    assert not list(tmp_path.iterdir())


def test_a_constant_that_two_layers_share_does_not_keep_a_file_from_loading(tmp_path):
    """Layers of one width have equal zero points, which the exporter of torch writes once."""
    path = tmp_path / "model.onnx"
    exported(path, quantize="int8", reduce_range=False)
    graph = onnx.load(path)
    zeros = [node.input[2] for node in graph.graph.node if node.op_type == "DequantizeLinear"]
    constants = {constant.name: constant for constant in graph.graph.initializer}
    int8 = [name for name in zeros if constants[name].data_type == onnx.TensorProto.INT8]
    assert len(int8) >= 2
    same = [name for name in int8 if list(constants[name].dims) == list(constants[int8[0]].dims)]
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[2] in same:
            node.input[2] = same[0]
    shared = sum(list(node.input).count(same[0]) for node in graph.graph.node)
    finish(graph, path, {})
    written = onnx.load(path)
    uses = [name for node in written.graph.node if node.op_type == "DequantizeLinear" for name in node.input]
    assert shared == len(same) >= 2
    assert uses.count(same[0]) == 1
    assert Onnx(Onnx.Options()).load(path, threads=1)(images(3).numpy()).shape == (3, 5)
