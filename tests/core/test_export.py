"""Planted faults: an exporter that writes a wrong file must be caught by the file's own answers."""

from __future__ import annotations

import io
import json
import re
import resource
import signal
import time
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kdzoo.contract import classification as metrics
from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Pixels
from kdzoo.errors import ExportError
from kdzoo.evaluation import checker, verification
from kdzoo.evaluation.verification import export_and_verify
from kdzoo.storage.atomic import replace_files
from kdzoo_export.onnx_file import Onnx

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
SAMPLES = 90


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, len(CLASSES))

    def forward(self, inputs):
        return self.classifier(self.norm(self.conv(inputs)).relu().amax((2, 3)))


@pytest.fixture
def same_process(monkeypatch):
    """Answer here what a fresh process would, for tests of what is made of the answers."""
    monkeypatch.setattr(
        verification,
        "run_in_fresh_process",
        lambda request, inputs, _: checker.run(request, io.BytesIO(inputs.tobytes())),
    )


@pytest.fixture
def student():
    """A network with statistics of its own, test samples prepared for it, and targets it mostly gets right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tiny()
        nn.init.normal_(model.norm.running_mean)
        nn.init.uniform_(model.norm.running_var, 0.5, 2)
        inputs = torch.randn(SAMPLES, 3, 8, 8)
    model.train()  # as training leaves it
    network = SimpleNamespace(
        model=model,
        spec=ModelSpec("tiny_net"),
        inputs=Pixels(3, (8, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
        macs=42_000,
    )
    with torch.no_grad():
        logits = verification.plain_copy(model)(inputs).numpy()
    targets = logits.argmax(1)
    targets[::10] = (targets[::10] + 1) % len(CLASSES)
    return SimpleNamespace(network=network, inputs=inputs.numpy(), logits=logits, targets=targets)


def export(student, folder, exporter=None, **changed):
    wanted = {
        "inputs": student.inputs,
        "targets": student.targets,
        "student_logits": student.logits,
        "teacher_logits": np.roll(student.logits, 1, axis=1),
        "calibration": [torch.from_numpy(student.inputs[:32])],
        "write": partial(replace_files, folder / "export"),
        "stem": "student",
        "classes": CLASSES,
        "threads": 1,
    }
    return export_and_verify(exporter or Onnx(Onnx.Options()), student.network, **{**wanted, **changed})


def listing(folder):
    return sorted(path.name for path in (folder / "export").iterdir())


def test_a_good_file_is_moved_in_and_scored_by_its_own_answers(tmp_path, student):
    entry = export(student, tmp_path)
    assert listing(tmp_path) == ["student.onnx"]
    assert entry == {
        "label": "onnx",
        "model": "tiny_net",
        "top1_percent": 90.0,
        "top5_percent": metrics.top5_percent(student.logits, student.targets),
        "agreement_percent": 0.0,
        "ece": pytest.approx(metrics.ece(student.logits, student.targets), abs=1e-6),
        "nll": pytest.approx(metrics.nll(student.logits, student.targets), abs=1e-6),
        "params_m": 426e-6,
        "size_mib": (tmp_path / "export" / "student.onnx").stat().st_size / 2**20,
        "macs_g": 42e-6,
        "latency_ms": None,
        "expected_top1_percent": 90.0,
        "file": "student.onnx",
        "rejected": [],
    }


@pytest.mark.usefixtures("same_process")
def test_the_file_says_how_to_feed_it(tmp_path, student):
    export(student, tmp_path)
    said = {prop.key: prop.value for prop in onnx.load(tmp_path / "export" / "student.onnx").metadata_props}
    assert json.loads(said["classes"]) == list(CLASSES)
    assert json.loads(said["preprocessing"]) == {
        "layout": "NCHW",
        "channels": 3,
        "size": [8, 8],
        "range": [0.0, 1.0],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.1],
    }
    assert said["model"] == "tiny_net"


@pytest.mark.usefixtures("same_process")
def test_the_network_is_left_as_it_was(tmp_path, student):
    before = {name: value.clone() for name, value in student.network.model.state_dict().items()}
    export(student, tmp_path)
    assert student.network.model.training
    assert all(parameter.requires_grad for parameter in student.network.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.network.model.state_dict().items())


@pytest.mark.usefixtures("same_process")
def test_int8_has_a_name_of_its_own_beside_the_plain_file(tmp_path, student):
    export(student, tmp_path)
    entry = export(student, tmp_path, Onnx(Onnx.Options(quantize="int8", tolerance_points=5)))
    assert listing(tmp_path) == ["student.int8.onnx", "student.onnx"]
    assert (entry["label"], entry["file"]) == ("onnx int8", "student.int8.onnx")
    assert entry["top1_percent"] == pytest.approx(90, abs=5)


class InTwo(Onnx):
    """Keeps the weights in a file of their own."""

    __module__, __qualname__ = Onnx.__module__, Onnx.__qualname__  # by which the fresh process finds the runtime
    further_suffixes = (".weights",)

    def __init__(self, change=lambda model: model):
        super().__init__(Onnx.Options())
        self.change = change

    def export(self, model, example, path, metadata, calibration):
        super().export(self.change(model).eval(), example, path, metadata, calibration)
        location = path.with_suffix(".weights").name
        onnx.save(onnx.load(path), path, save_as_external_data=True, location=location, size_threshold=100)


@pytest.mark.usefixtures("same_process")
def test_files_of_one_format_are_kept_rejected_and_measured_together(tmp_path, student):
    def content():
        return [(tmp_path / "export" / name).read_bytes() for name in ("student.onnx", "student.weights")]

    entry = export(student, tmp_path, InTwo())
    assert entry["file"] == "student.onnx"
    assert listing(tmp_path) == ["student.onnx", "student.weights"]
    good = content()
    assert entry["size_mib"] == sum(map(len, good)) / 2**20
    rejected = export(student, tmp_path, InTwo(other_weights))
    assert rejected["file"] == "student.onnx.rejected"
    both = ["student.onnx", "student.onnx.rejected", "student.weights", "student.weights.rejected"]
    assert listing(tmp_path) == both
    assert content() == good
    export(student, tmp_path, InTwo())
    assert listing(tmp_path) == ["student.onnx", "student.weights"]


def test_a_kill_leaves_no_file_next_to_the_weights_of_another():
    """Whatever is written is written in this order, each step atomically."""
    folder = {"a.xml": "old", "a.bin": "old"}
    for step in verification_steps({"a.xml": "new", "a.bin": "new"}):
        folder |= step
        versions = {folder["a.xml"], folder["a.bin"]}
        assert len(versions) == 1 or folder["a.xml"] is None, folder
    assert folder == {"a.xml": "new", "a.bin": "new", "a.xml.rejected": None, "a.bin.rejected": None}


def verification_steps(contents):
    steps = []
    verification.put(contents, lambda files: steps.extend({name: data} for name, data in files.items()), rejected=False)
    return steps


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(("largest", "odd", "most"), [(None, 7, SAMPLES), (1, 1, 1), (8, 7, 8)])
def test_a_file_is_fed_no_more_samples_than_it_takes(tmp_path, student, monkeypatch, largest, odd, most):
    fed = []

    def load(self, path, threads):
        return lambda inputs: (fed.append(len(inputs)), torch.no_grad()(model)(torch.tensor(inputs)).numpy())[1]

    model = verification.plain_copy(student.network.model)
    monkeypatch.setattr(Onnx, "load", load)
    exporter = Onnx(Onnx.Options())
    exporter.largest_batch = largest
    assert export(student, tmp_path, exporter)["rejected"] == []
    assert (fed[:3], max(fed), sum(fed)) == ([1, odd, most], most if most > odd else odd, SAMPLES + 1 + odd)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_a_split_of_very_few_samples_is_checked_too(tmp_path, student, samples):
    few = {"inputs": student.inputs[:samples], "targets": student.targets[:samples]}
    export(student, tmp_path, **few, student_logits=student.logits[:samples], teacher_logits=None)
    assert listing(tmp_path) == ["student.onnx"]


def test_a_memory_mapped_split_will_do(tmp_path, student):
    np.save(tmp_path / "inputs.npy", student.inputs)
    export(student, tmp_path, inputs=np.load(tmp_path / "inputs.npy", mmap_mode="r"))
    assert listing(tmp_path) == ["student.onnx"]


def test_the_fresh_process_is_light(tmp_path, student, monkeypatch):
    """It imports the exporter's module and the runtime, and no torch, which takes seconds of processor."""
    (tmp_path / "watchful.py").write_text(
        "import sys\n"
        "from kdzoo_export.onnx_file import Onnx\n"
        "class Watchful(Onnx):\n"
        "    def load(self, path, threads):\n"
        "        run = super().load(path, threads)\n"
        "        assert 'torch' not in sys.modules\n"
        "        return run\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    watchful = import_module("watchful").Watchful
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    entry = export(student, tmp_path, watchful(watchful.Options()))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert entry["rejected"] == []
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


# --- planted faults -------------------------------------------------------------------------------


class Tampered(Onnx):
    """Exports another model than it was given."""

    __module__, __qualname__ = Onnx.__module__, Onnx.__qualname__  # by which the fresh process finds the runtime

    def __init__(self, change, **options):
        super().__init__(Onnx.Options(**options))
        self.change = change

    def export(self, model, example, path, metadata, calibration):
        super().export(self.change(model).eval(), example, path, metadata, calibration)


def dropped_last_layer(model):
    model.classifier = nn.Identity()
    return model


def perturbed_weights(model):
    with torch.no_grad():
        model.classifier.bias[0] += 0.02
    return model


def other_weights(model):
    nn.init.normal_(model.conv.weight)
    return model


def swapped_classes(model):
    with torch.no_grad():
        for tensor in (model.classifier.weight, model.classifier.bias):
            tensor[[0, 1]] = tensor[[1, 0]]
    return model


def batch_statistics(model):
    """BatchNorm left in training mode normalises by the batch instead of what it learnt."""
    model.norm.running_mean, model.norm.running_var, model.norm.track_running_stats = None, None, False
    return model


class SecondNormalisation(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model((inputs - 0.5) / 0.25)


class Infinite(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs) / 0.0


FAULTS = {
    dropped_last_layer: "all 90 test samples: logits of shape (90, 12), the student's are (90, 6)",
    perturbed_weights: "the first 64 samples: logits 0.0",
    other_weights: "all 90 test samples: {:.2f} % right, the student 90.00 %, at most 1.11 points may be lost",
    swapped_classes: "all 90 test samples: {:.2f} % right, the student 90.00 %, at most 1.11 points may be lost",
    batch_statistics: "one sample alone: logits ",
    SecondNormalisation: "the first 64 samples: logits ",
    Infinite: "all 90 test samples: 540 logits are not finite",
}


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_file_that_is_not_the_student_is_rejected(tmp_path, student, fault):
    entry = export(student, tmp_path, Tampered(fault))
    assert any(line.startswith(FAULTS[fault].split("{")[0]) for line in entry["rejected"]), entry["rejected"]
    assert entry["file"] == "student.onnx.rejected"
    assert listing(tmp_path) == ["student.onnx.rejected"]
    assert entry["size_mib"] == (tmp_path / "export" / "student.onnx.rejected").stat().st_size / 2**20
    answered = fault not in (dropped_last_layer, Infinite)
    assert (entry["top1_percent"] is not None) == answered
    assert entry["expected_top1_percent"] == 90.0


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("fault", [swapped_classes, other_weights], ids=lambda fault: fault.__name__)
def test_accuracy_alone_catches_what_int8_may_not_compare(tmp_path, student, fault):
    (problem,) = export(student, tmp_path, Tampered(fault, quantize="int8"))["rejected"]
    assert problem.endswith("% right, the student 90.00 %, at most 1.11 points may be lost")
    assert listing(tmp_path) == ["student.int8.onnx.rejected"]


def test_a_fixed_batch_size_is_rejected(tmp_path, student):
    class Fixed(Onnx):
        __module__, __qualname__ = Onnx.__module__, Onnx.__qualname__

        def export(self, model, example, path, metadata, calibration):
            super().export(model, example, path, metadata, calibration)
            graph = onnx.load(path)
            for value in (*graph.graph.input, *graph.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = 1
            onnx.save(graph, path)

    (problem,) = export(student, tmp_path, Fixed(Onnx.Options()))["rejected"]
    assert problem.startswith("its own runtime failed in a fresh process: ")
    assert "Got: 7 Expected: 1" in problem
    assert listing(tmp_path) == ["student.onnx.rejected"]


@pytest.mark.usefixtures("same_process")
def test_inputs_prepared_otherwise_than_for_the_student_are_rejected(tmp_path, student):
    problems = export(student, tmp_path, inputs=(student.inputs * 0.2 + 0.5).astype(np.float32))["rejected"]
    assert "test samples: logits 0." in str(problems)
    assert "at most 0.02 is right; were the inputs prepared as in its evaluation?" in str(problems)


def test_a_file_that_no_runtime_loads_is_rejected(tmp_path, student):
    class Torn(Onnx):
        __module__, __qualname__ = Onnx.__module__, Onnx.__qualname__

        def export(self, model, example, path, metadata, calibration):
            super().export(model, example, path, metadata, calibration)
            path.write_bytes(path.read_bytes()[:1000])

    entry = export(student, tmp_path, Torn(Onnx.Options()))
    assert re.search(r"^its own runtime failed in a fresh process: .*InvalidProtobuf", *entry["rejected"])
    assert (entry["top1_percent"], entry["params_m"], entry["size_mib"]) == (None, 426e-6, 1000 / 2**20)


@pytest.mark.usefixtures("same_process")
def test_a_file_that_was_good_stays_when_the_next_one_is_not(tmp_path, student):
    export(student, tmp_path)
    good = (tmp_path / "export" / "student.onnx").read_bytes()
    assert export(student, tmp_path, Tampered(other_weights))["file"] == "student.onnx.rejected"
    assert (tmp_path / "export" / "student.onnx").read_bytes() == good
    assert listing(tmp_path) == ["student.onnx", "student.onnx.rejected"]
    export(student, tmp_path)
    assert listing(tmp_path) == ["student.onnx"]


def test_an_exporter_that_fails_leaves_nothing(tmp_path, student):
    class Branching(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            return self.model(inputs) if inputs.sum() > 0 else self.model(-inputs)

    with pytest.raises(ExportError, match=r"^onnx: Branching cannot be exported: "):
        export(student, tmp_path, Tampered(Branching))
    assert not list(tmp_path.rglob("student*"))


def test_an_exporter_that_writes_no_file_is_named(tmp_path, student):
    class Lazy(Onnx):
        __module__, __qualname__ = Onnx.__module__, Onnx.__qualname__

        def export(self, model, example, path, metadata, calibration):
            pass

    with pytest.raises(ExportError) as caught:
        export(student, tmp_path, Lazy(Onnx.Options()))
    assert str(caught.value) == "onnx: its exporter wrote no file; it should have written student.onnx"


def test_a_further_file_that_is_missing_is_named(tmp_path, student):
    exporter = Onnx(Onnx.Options())
    exporter.further_suffixes = (".weights",)
    with pytest.raises(ExportError) as caught:
        export(student, tmp_path, exporter)
    assert str(caught.value) == "onnx: its exporter wrote no file; it should have written student.weights"


@pytest.mark.usefixtures("same_process")
def test_one_sample_may_always_tip_over(tmp_path, student):
    """On a small split a single borderline sample is more than the tolerance; it is no fault of the file."""
    targets = student.logits.argmax(1)
    logits = student.logits.copy()
    logits[0] = np.roll(logits[0], 1)  # the student itself was lucky here
    targets[0] = logits[0].argmax()
    strict = Onnx(Onnx.Options(tolerance_points=0))
    entry = export(student, tmp_path, strict, targets=targets, student_logits=logits)
    assert entry["top1_percent"] == pytest.approx(100 - 100 / SAMPLES)


def test_a_process_that_dies_is_reported_with_its_exit_code(tmp_path, student, monkeypatch):
    monkeypatch.setattr(verification.sys, "executable", "/bin/false")
    assert export(student, tmp_path)["rejected"] == ["its own runtime failed in a fresh process: exit code 1"]


def test_a_process_that_hangs_is_killed(tmp_path, student, monkeypatch):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(verification.sys, "executable", str(slow))
    monkeypatch.setattr(verification, "TIMEOUT_S", 0.5)
    begin = time.monotonic()
    (problem,) = export(student, tmp_path)["rejected"]
    assert problem.endswith(f"exit code -{signal.SIGKILL:d}")
    assert time.monotonic() - begin < 30


def test_odd_batches_are_odd():
    assert [verification.odd_size(samples) for samples in (1, 2, 3, 6, 7, 8, 1000)] == [1, 1, 3, 5, 7, 7, 7]
