from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from executorch.runtime import Runtime
from pydantic import ValidationError
from small_network import images, tiny
from torch import nn

from kdzoo.api.export import ExportError
from kdzoo.evaluation import verification
from kdzoo_executorch import executorch_file
from kdzoo_executorch.executorch_file import ExecuTorch

CLASSES = ["ant", 'b"e<e>&\n', "größe", "dog", "elk"]
PREPROCESSING = {"channels": 3, "size": [8, 8], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
METADATA = {
    "classes": json.dumps(CLASSES),
    "preprocessing": json.dumps(PREPROCESSING),
    "model": "tiny",
    "kdzoo_version": "0",
}


def exported(path, model=None, example=None, **options):
    exporter = ExecuTorch(ExecuTorch.Options(**options))
    batches = [images(32, seed) for seed in range(2, 6)]
    exporter.export(model or tiny(), images(2) if example is None else example, path, METADATA, batches)
    return exporter


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file for one image at a time, one for up to eight, and one in int8, which no test changes."""
    folder = tmp_path_factory.mktemp("executorch")
    files = {"student": {}, "student.batch": {"max_batch": 8}, "student.int8": {"quantize": "int8"}}
    for name, options in files.items():
        exported(folder / f"{name}.pte", **options)
    return SimpleNamespace(folder=folder, **{name.split(".")[-1]: folder / f"{name}.pte" for name in files})


def loaded(path):
    return ExecuTorch(ExecuTorch.Options()).load(path, threads=1)


def one_by_one(run, inputs):
    return np.concatenate([run(image[None].numpy()) for image in inputs])


def test_the_file_answers_like_the_model_one_image_at_a_time(made):
    inputs = images(5)
    logits = one_by_one(loaded(made.student), inputs)
    assert (logits.shape, logits.dtype) == ((5, 5), np.float32)
    np.testing.assert_allclose(logits, tiny()(inputs).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 7, 8])
def test_a_file_for_more_answers_like_the_model_at_any_batch_size_up_to_that(made, samples):
    inputs = images(samples)
    np.testing.assert_allclose(loaded(made.batch)(inputs.numpy()), tiny()(inputs).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(("file", "samples"), [("student", 2), ("batch", 9)])
def test_more_samples_than_memory_is_planned_for_are_an_error(made, file, samples):
    with pytest.raises(RuntimeError):
        loaded(getattr(made, file))(images(samples).numpy())


def test_as_many_samples_fit_as_were_asked_for(tmp_path):
    """torch takes other kernels from 16 samples on; a trace of fewer than that would be taken for a bound of 15."""
    exported(tmp_path / "student.pte", max_batch=20)
    run, inputs = loaded(tmp_path / "student.pte"), images(20)
    np.testing.assert_allclose(run(inputs.numpy()), tiny()(inputs).detach().numpy(), atol=1e-5)


def test_answers_stay_as_they_are_when_the_next_are_asked_for(made):
    run = loaded(made.batch)
    first = run(images(3).numpy())
    kept = first.copy()
    run(images(3, seed=9).numpy())
    np.testing.assert_array_equal(first, kept)


def test_int8_is_near_the_model_and_its_logits_do_not_share_256_values(made):
    inputs = images(256)
    logits, expected = one_by_one(loaded(made.int8), inputs), tiny()(inputs).detach().numpy()
    assert np.abs(logits - expected).mean() < 0.03 * np.abs(expected).max()
    assert len(np.unique(logits)) > 1000


def test_int8_leaves_the_sums_of_a_transformer_in_float32(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear, self.classifier = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, inputs):
            tokens = inputs.flatten(1, 2)
            tokens = tokens + self.linear(self.norm(tokens))
            return self.classifier(self.norm(tokens + 300 * (tokens > 3)).mean(1))  # a few are far from the others

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Block().eval()
    exported(tmp_path / "student.pte", model, quantize="int8")
    inputs = images(16)
    logits, expected = one_by_one(loaded(tmp_path / "student.pte"), inputs), model(inputs).detach().numpy()
    assert np.abs(logits - expected).max() < 0.03 * np.abs(expected).max()


def test_int8_is_a_quarter_of_the_bytes_where_weights_count(tmp_path):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.classifier = nn.Conv2d(3, 256, 3), nn.Linear(256, 500)

        def forward(self, inputs):
            return self.classifier(self.conv(inputs).relu().mean((2, 3)))

    exported(tmp_path / "student.pte", Wide().eval(), quantize="int8")
    parameters = sum(parameter.numel() for parameter in Wide().parameters())
    assert (tmp_path / "student.pte").stat().st_size < 0.4 * 4 * parameters


def test_the_file_says_how_to_feed_it(made):
    for path in (made.student, made.int8):
        program = Runtime.get().load_program(path)
        assert program.method_names == {"forward", *(f"get_{key}" for key in METADATA)}
        said = {key: program.load_method(f"get_{key}").execute([])[0] for key in METADATA}
        assert said == METADATA
        assert b"site-packages" not in path.read_bytes()
        assert b".py" not in path.read_bytes()


def test_the_snippet_runs_as_it_is_written(made, monkeypatch):
    monkeypatch.chdir(made.folder)
    for name in ("student.pte", "student.int8.pte"):
        ran: dict = {}
        exec(ExecuTorch(ExecuTorch.Options()).usage(name, "image").code, ran)
        expected = loaded(made.folder / name)(ran["inputs"].numpy())
        np.testing.assert_allclose(ran["logits"].numpy(), expected, atol=1e-6)
        assert ran["answer"] == CLASSES[int(expected[0].argmax())]
    read = ["pixels = np.zeros((1, 3, 8, 8), np.float32)"]
    exec(ExecuTorch(ExecuTorch.Options()).usage("student.pte", "image", read).code, ran)
    assert not ran["pixels"].any()
    assert "values = " in ExecuTorch(ExecuTorch.Options()).usage("student.pte", "measurements").code


def test_a_torn_file_does_not_load(made, tmp_path):
    content = made.student.read_bytes()
    (tmp_path / "student.pte").write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError):
        loaded(tmp_path / "student.pte")


def test_a_fresh_process_feeds_it_as_it_is_and_finds_it_right(made, tmp_path):
    inputs = images(9)
    expected = tiny()(inputs).detach().numpy()
    exporter = ExecuTorch(ExecuTorch.Options())
    wanted = (tiny(), inputs.numpy(), expected.argmax(1), expected, 1, tmp_path, {"dtype": "<f4", "pad": None})
    problems, logits = verification.check(exporter, made.student, *wanted)
    assert problems == []
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_loading_prints_nothing(made, capfd):
    loaded(made.student)(images(1).numpy())
    assert capfd.readouterr() == ("", "")


def test_text_is_no_data_for_it():
    assert ExecuTorch.takes == ("image", "measurements")


def test_label_tolerances_and_batch_follow_the_options():
    plain, int8 = ExecuTorch(ExecuTorch.Options()), ExecuTorch(ExecuTorch.Options(quantize="int8", max_batch=4))
    assert (plain.label, plain.tolerance_points, plain.tolerance_logits, plain.quantizes) == ("", 0.1, 1e-3, False)
    assert (int8.label, int8.tolerance_points, int8.tolerance_logits, int8.quantizes) == ("int8", 0.5, None, True)
    assert (plain.largest_batch, int8.largest_batch) == (1, 4)


@pytest.mark.parametrize("wrong", [{"quantize": "int4"}, {"max_batch": 0}, {"opset": 18}, {"tolerance_points": -1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        ExecuTorch.Options(**wrong)


def test_a_missing_library_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(executorch_file, "find_spec", lambda name: None if name == "executorch" else importlib.util)
    with pytest.raises(ExportError) as caught:
        ExecuTorch(ExecuTorch.Options())
    assert str(caught.value) == 'executorch: the library executorch is not installed; pip install "kdzoo[executorch]"'


def test_what_cannot_be_exported_is_an_export_error_that_says_why(tmp_path, capfd):
    class Branching(nn.Module):
        def forward(self, inputs):
            return inputs.flatten(1)[:, :5] if inputs.sum() > 0 else inputs.flatten(1)[:, :4]

    with pytest.raises(ExportError, match=r"^executorch: Branching cannot be exported: \w+: "):
        exported(tmp_path / "student.pte", Branching().eval())
    with pytest.raises(ExportError, match=r"^executorch: the model is in training mode, its BatchNorm"):
        exported(tmp_path / "student.pte", tiny().train())
    exporter = ExecuTorch(ExecuTorch.Options(quantize="int8"))
    with pytest.raises(ExportError, match="learns activation ranges from calibration batches; got none"):
        exporter.export(tiny(), images(2), tmp_path / "student.pte", METADATA, [])
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
