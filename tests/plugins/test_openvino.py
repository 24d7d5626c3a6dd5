from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import openvino
import pytest
import timm
import torch
from pydantic import ValidationError
from small_network import images, tiny
from torch import nn

from kdzoo.api.export import ExportError
from kdzoo_openvino import openvino_file
from kdzoo_openvino.openvino_file import OpenVino, core

CLASSES = ["ant", 'b"e<e>&\n', "größe", "dog", "elk"]
PREPROCESSING = {"channels": 3, "size": [8, 8], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
METADATA = {
    "classes": json.dumps(CLASSES),
    "preprocessing": json.dumps(PREPROCESSING),
    "model": "tiny",
    "kdzoo_version": "0",
}


def exported(path, model=None, example=None, **options):
    exporter = OpenVino(OpenVino.Options(**options))
    batches = [images(32, seed) for seed in range(2, 6)]
    exporter.export(model or tiny(), images(2) if example is None else example, path, METADATA, batches)
    return exporter


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file in float32 and one in int8, which no test changes."""
    folder = tmp_path_factory.mktemp("openvino")
    for name, options in {"student": {}, "student.int8": {"quantize": "int8"}}.items():
        exported(folder / f"{name}.xml", **options)
    return SimpleNamespace(folder=folder, plain=folder / "student.xml", int8=folder / "student.int8.xml")


def loaded(path):
    return OpenVino(OpenVino.Options()).load(path, threads=1)


@pytest.mark.parametrize("samples", [1, 2, 7, 64])
def test_the_file_answers_like_the_model_at_any_batch_size(made, samples):
    inputs = images(samples)
    logits = loaded(made.plain)(inputs.numpy())
    assert (logits.shape, logits.dtype) == ((samples, 5), np.float32)
    np.testing.assert_allclose(logits, tiny()(inputs).detach().numpy(), atol=1e-5)


def test_answers_stay_as_they_are_when_the_next_are_asked_for(made):
    run = loaded(made.plain)
    first = run(images(3).numpy())
    kept = first.copy()
    run(images(3, seed=9).numpy())
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(("model", "args"), [("test_efficientnet", {}), ("test_vit", {"img_size": 32})])
def test_networks_of_timm_answer_alike(tmp_path, model, args):
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=5, **args).eval()
    inputs = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exported(tmp_path / "student.xml", network, inputs[:2])
    logits = loaded(tmp_path / "student.xml")(inputs.numpy())
    np.testing.assert_allclose(logits, network(inputs).detach().numpy(), atol=1e-4)


class Mean(nn.Module):
    """Pieces and their positions, averaged."""

    def __init__(self):
        super().__init__()
        self.table, self.classifier = nn.Embedding(20, 8), nn.Linear(8, 5)
        self.positions = nn.Parameter(torch.randn(512, 8))

    def forward(self, ids):
        known = (ids != 0).unsqueeze(2)
        return self.classifier(((self.table(ids) + self.positions[: ids.shape[1]]) * known).sum(1) / known.sum(1))


@pytest.mark.parametrize(("quantize", "tolerance"), [(None, 1e-5), ("int8", 0.03)])
def test_ids_of_tokens_may_have_any_length(tmp_path, quantize, tolerance):
    torch.manual_seed(0)
    model = Mean().eval()
    exporter = OpenVino(OpenVino.Options(quantize=quantize))
    batches = [torch.randint(1, 20, (16, length)) for length in (1, 9, 40)]
    exporter.export(model, torch.randint(1, 20, (2, 9)), tmp_path / "student.xml", METADATA, batches)
    run = loaded(tmp_path / "student.xml")
    for samples, length in ((1, 3), (4, 30)):
        ids = torch.randint(1, 20, (samples, length))
        expected = model(ids).detach().numpy()
        assert np.abs(run(ids.numpy()) - expected).mean() < tolerance * np.abs(expected).max()


def test_graph_and_weights_are_two_files_that_say_how_to_feed_them(made):
    names = ("student.bin", "student.int8.bin", "student.int8.xml", "student.xml")
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(names)
    assert OpenVino(OpenVino.Options(quantize="int8")).file_names("student") == ("student.int8.xml", "student.int8.bin")
    for path in (made.plain, made.int8):
        model = core().read_model(path)
        assert {key: model.get_rt_info(["kdzoo", key]).value for key in METADATA} == METADATA
        assert [port.any_name for port in (*model.inputs, *model.outputs)] == ["inputs", "logits"]
        assert str(model.inputs[0].partial_shape) == "[?,3,8,8]"
        assert "site-packages" not in path.read_text()
        assert ".py" not in path.read_text()


def test_weights_are_float32_and_the_file_is_run_in_float32(made, monkeypatch):
    """OpenVINO would store half of the bits, and compute in bfloat16 where the CPU can."""
    kinds = {op.get_element_type().to_string() for op in core().read_model(made.plain).get_ops()
             if op.get_type_name() == "Constant"}  # fmt: skip
    assert "f16" not in kinds
    asked = []
    compile_model = openvino.Core.compile_model

    def watched(self, model, device, settings):
        asked.append(settings)
        return compile_model(self, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    loaded(made.plain)
    assert asked[0]["INFERENCE_PRECISION_HINT"] == "f32"
    assert asked[0]["INFERENCE_NUM_THREADS"] == "1"


def test_int8_is_near_the_model_and_multiplies_integers(made):
    inputs = images(256)
    logits, expected = loaded(made.int8)(inputs.numpy()), tiny()(inputs).detach().numpy()
    assert np.abs(logits - expected).mean() < 0.03 * np.abs(expected).max()
    assert len(np.unique(logits)) > 1000  # 256 values would tie
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(made.int8, "CPU", settings)
    kinds = {op.get_rt_info()["layerType"].value: op.get_rt_info()["runtimePrecision"].value
             for op in compiled.get_runtime_model().get_ops()}  # fmt: skip
    assert kinds["Convolution"] in ("u8", "i8")


def test_the_snippet_runs_as_it_is_written(made, monkeypatch):
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(openvino, "Core", core)  # a process may have one alone, see there
    for name in ("student.xml", "student.int8.xml"):
        usage = OpenVino(OpenVino.Options()).usage(name, "image")
        ran: dict = {}
        exec(usage.code, ran)
        mean, std = (np.float32(PREPROCESSING[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        expected = loaded(made.folder / name)((ran["pixels"] - mean) / std)
        np.testing.assert_allclose(ran["logits"], expected, atol=1e-6)
        assert ran["answer"] == CLASSES[int(expected[0].argmax())]
    read = ["pixels = np.zeros((1, 3, 8, 8), np.float32)"]
    exec(OpenVino(OpenVino.Options()).usage("student.xml", "image", read).code, ran)
    assert not ran["pixels"].any()
    assert "values = " in OpenVino(OpenVino.Options()).usage("student.xml", "measurements").code
    text = OpenVino(OpenVino.Options()).usage("student.xml", "text").code
    compile(text, "snippet", "exec")
    assert "tokenizer/tokenizer.json" in text


def test_loading_needs_no_torch(made):
    code = (
        "import sys; from pathlib import Path; from kdzoo_openvino.openvino_file import OpenVino;"
        f"OpenVino(OpenVino.Options()).load(Path({str(made.plain)!r}), 1); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("False\n", "")


def test_a_signal_after_two_files_were_used_does_no_harm(made):
    code = (
        "import gc, signal, subprocess; from pathlib import Path; from kdzoo_openvino.openvino_file import OpenVino;"
        "signal.signal(signal.SIGCHLD, lambda *_: None);"  # as torch's DataLoader does
        f"used = [OpenVino(OpenVino.Options()).load(Path({str(made.plain)!r}), 1) for _ in range(2)];"
        "used.pop(0); gc.collect(); used.pop(0); gc.collect();"
        "subprocess.run(['true'], check=True)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_torn_file_does_not_load(made, tmp_path, suffix):
    for path in (made.plain, made.plain.with_suffix(".bin")):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.suffix == suffix else content)
    with pytest.raises(RuntimeError):
        loaded(tmp_path / "student.xml")


def test_label_and_tolerances_follow_the_options():
    plain, int8 = OpenVino(OpenVino.Options()), OpenVino(OpenVino.Options(quantize="int8"))
    assert (plain.label, plain.tolerance_points, plain.tolerance_logits, plain.quantizes) == ("", 0.1, 1e-3, False)
    assert (int8.label, int8.tolerance_points, int8.tolerance_logits, int8.quantizes) == ("int8", 0.5, None, True)
    assert OpenVino(OpenVino.Options(quantize="int8", tolerance_points=2.0)).tolerance_points == 2.0


@pytest.mark.parametrize("wrong", [{"quantize": "int8-trained"}, {"opset": 18}, {"tolerance_points": -1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        OpenVino.Options(**wrong)


def test_a_missing_library_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(openvino_file, "find_spec", lambda name: None if name == "openvino" else importlib.util)
    with pytest.raises(ExportError) as caught:
        OpenVino(OpenVino.Options())
    assert str(caught.value) == 'openvino: the library openvino is not installed; pip install "kdzoo[openvino]"'


def test_what_cannot_be_exported_is_an_export_error_that_says_why(tmp_path, capfd):
    class Branching(nn.Module):
        def forward(self, inputs):
            return inputs.flatten(1)[:, :5] if inputs.sum() > 0 else inputs.flatten(1)[:, :4]

    with pytest.raises(ExportError, match=r"^openvino: Branching cannot be exported: \w+: "):
        exported(tmp_path / "student.xml", Branching().eval())
    with pytest.raises(ExportError, match=r"^openvino: the model is in training mode, its BatchNorm"):
        exported(tmp_path / "student.xml", tiny().train())
    exporter = OpenVino(OpenVino.Options(quantize="int8"))
    with pytest.raises(ExportError, match="learns activation ranges from calibration batches; got none"):
        exporter.export(tiny(), images(2), tmp_path / "student.xml", METADATA, [])
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
