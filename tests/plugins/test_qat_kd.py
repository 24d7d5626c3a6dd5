"""A student in 8 bits: the loss by hand, the stages, and a file that really computes in integers."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from typer.testing import CliRunner

from kdzoo.api import AlgorithmChoice, KdzooError, ModelSpec, NeedsError, Stage, StageResult
from kdzoo.api.export import ExportError, onnx_graph
from kdzoo.api.models import ModelError
from kdzoo.cli import app
from kdzoo.errors import DistributedError
from kdzoo.evaluation.measuring import measure_latency
from kdzoo.models.network import evaluating
from kdzoo.testing.tiny import bare_plan, tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_export.onnx_file import Onnx, finish
from kdzoo_quantized import int8
from kdzoo_quantized.int8 import Int8
from kdzoo_quantized.qat_kd import QATKD
from kdzoo_quantized.rounding import Rounding

INT8 = Int8(Int8.Options())


ROOT = Path(__file__).resolve().parents[2]


def test_the_loss_is_the_divergence_at_temperature_one() -> None:
    """A value by hand: the student is undecided, the teacher three to one for the first class."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    algorithm = QATKD(QATKD.Options(), SimpleNamespace())  # type: ignore[arg-type]
    ctx: Any = SimpleNamespace(student=SimpleNamespace(logits=student), teacher=SimpleNamespace(logits=teacher))
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert algorithm.losses(ctx)["kd"].item() == pytest.approx(expected)


def phases(cls: type[Rounding], epochs: int, **options: Any) -> list[Stage]:
    """The stages that an algorithm plans, driven by hand."""
    teacher = StageResult("teacher", "key", ModelSpec("big"), {}, {})
    own = AlgorithmChoice(cls.name)
    plan = bare_plan(ModelSpec("small"), own, cls.Options(**options), teachers=(teacher,), train={"epochs": epochs})
    generator = cls.stages(plan)
    planned: list[Stage] = []
    answer = None
    with contextlib.suppress(StopIteration):
        while True:
            stage = generator.send(answer)  # type: ignore[arg-type]
            assert isinstance(stage, Stage)
            planned.append(stage)
            answer = StageResult(stage.name, f"key of {stage.name}", stage.model, {}, {})
    return planned


def test_the_student_goes_on_from_floats_with_rounding_and_its_twin_without_teacher() -> None:
    stages = phases(QATKD, 10, share=0.3, lr=0.01)
    assert [(s.name, s.model.quantizer, s.start and s.start.name, len(s.teachers)) for s in stages] == [
        ("float", None, None, 0),
        ("alone", "int8", "float", 0),
        ("qat_kd", "int8", "float", 1),
    ]
    assert stages[0].train == {"epochs": 7}
    assert stages[1].train == stages[2].train == {"epochs": 3, "optimizer": {"lr": 0.01}}


@pytest.mark.parametrize(("epochs", "share"), [(1, 0.25), (2, 0.01), (3, 0.99), (15, 0.25), (4, 1.0)])
def test_both_phases_together_take_the_controls_epochs(epochs: int, share: float) -> None:
    stages = phases(QATKD, epochs, share=share, compare_alone=False)
    assert sum(stage.train["epochs"] for stage in stages) == epochs
    assert len(stages) == (1 if share == 1.0 or epochs == 1 else 2)


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    """A plain ResNet-20 with the weights of the rounding one after a few steps, that one, and inputs."""
    load_zoo()  # registers the networks
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet20", num_classes=10, in_chans=1)
    inputs, targets = torch.randn(32, 1, 28, 28), torch.randint(0, 10, (32,))
    rounded = INT8.prepare(model, inputs[:2])
    optimizer = torch.optim.SGD(rounded.parameters(), 0.05)
    for _ in range(3):
        torch.nn.functional.cross_entropy(rounded(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.load_state_dict(INT8.plain(rounded.state_dict()), strict=True)
    return model.eval(), rounded.eval(), inputs


def test_eval_mode_changes_nothing_and_the_state_dict_is_all(trained: Any) -> None:
    model, rounded, inputs = trained
    before = {key: value.clone() for key, value in rounded.state_dict().items()}
    with torch.no_grad():
        answer = rounded(inputs)
        assert torch.equal(rounded(inputs), answer)
        assert all(torch.equal(value, before[key]) for key, value in rounded.state_dict().items())
        again = INT8.prepare(model, inputs[:2])
        again.load_state_dict(before, strict=True)
        assert torch.equal(again.eval()(inputs), answer)
        copied = copy.deepcopy(rounded).train()
        copied(inputs[:7])
        assert torch.equal(rounded(inputs), answer), "a copy in training changed the original"
        assert rounded(inputs[:1]).shape == (1, 10)


def test_training_goes_on_after_an_evaluation_that_put_the_flags_back_itself() -> None:
    load_zoo()
    torch.manual_seed(0)
    model = timm.create_model("digits_cnn_small", num_classes=10, in_chans=1)
    inputs = torch.rand(16, 1, 8, 8)
    rounded = INT8.prepare(model, inputs[:2])
    rounded(inputs)
    with evaluating(rounded), torch.no_grad():
        evaluated = {key: value.clone() for key, value in rounded.state_dict().items()}
        rounded(5 * inputs)
        still = [key for key, value in rounded.state_dict().items() if torch.equal(value, evaluated[key])]
    assert still == list(evaluated)
    rounded(5 * inputs)
    moved = {key for key, value in rounded.state_dict().items() if not torch.equal(value, evaluated[key])}
    assert any(key.endswith("running_mean") for key in moved)
    assert any(key.endswith("max_val") for key in moved)


def test_a_stored_state_leaves_it_to_the_mode_whether_ranges_are_learned() -> None:
    load_zoo()
    torch.manual_seed(0)
    model = timm.create_model("digits_cnn_small", num_classes=10, in_chans=1)
    inputs = torch.rand(16, 1, 8, 8)
    whole, resumed, evaluated = (INT8.prepare(model, inputs[:2]) for _ in range(3))
    whole(inputs)
    in_training = {key: value.clone() for key, value in whole.state_dict().items()}
    with evaluating(whole), torch.no_grad():  # as at the end of an epoch, after which a checkpoint is written
        whole(inputs)
    resumed.load_state_dict(whole.state_dict(), strict=True)
    for rounded in (whole, resumed):
        rounded(5 * inputs)
    expected = whole.state_dict()
    assert any(not torch.equal(value, in_training[key]) for key, value in expected.items() if key.endswith("max_val"))
    assert [key for key, value in resumed.state_dict().items() if not torch.equal(value, expected[key])] == []
    evaluated.eval().load_state_dict(in_training, strict=True)
    with torch.no_grad():
        evaluated(5 * inputs)
    ranges = [key for key in in_training if key.endswith(("min_val", "max_val", "scale", "zero_point"))]
    assert ranges
    assert [key for key in ranges if not torch.equal(evaluated.state_dict()[key], in_training[key])] == []


def test_weights_that_grow_are_not_clipped_to_what_they_were() -> None:
    load_zoo()
    torch.manual_seed(0)
    model = timm.create_model("digits_cnn_small", num_classes=10, in_chans=1)
    inputs = torch.rand(16, 1, 8, 8)
    rounded = INT8.prepare(model, inputs[:2])
    with torch.no_grad():
        rounded(inputs)
        before = rounded(inputs)
        rounded.get_parameter("body.linear.weight").mul_(8)
        rounded.get_parameter("body.linear.bias").mul_(8)
        grown = rounded(inputs)
    assert (grown - 8 * before).abs().max() < 0.05 * grown.abs().max()


@pytest.fixture(scope="module")
def files(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network in floats and in integers, as files."""
    model, rounded, inputs = trained
    folder = tmp_path_factory.mktemp("files")
    floats, integers = folder / "floats.onnx", folder / "integers.onnx"
    finish(onnx_graph(copy.deepcopy(model), inputs[:2]), floats, {})
    finish(onnx_graph(INT8.convert(rounded).eval(), inputs[:2]), integers, {})
    return {"floats": floats, "integers": integers}


def test_the_file_computes_in_integers_and_is_much_smaller(
    trained: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    _, rounded, inputs = trained
    floats, integers, optimized = files["floats"], files["integers"], tmp_path / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(optimized), 3
    session = onnxruntime.InferenceSession(integers, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    assert kinds["QLinearConv"] == 21  # 19 and two shortcuts
    assert kinds["QLinearAdd"] == 9
    assert kinds["Conv"] == kinds["FusedConv"] == 0
    assert floats.stat().st_size >= 3.5 * integers.stat().st_size
    with torch.no_grad():
        expected = rounded(inputs)
    given = torch.from_numpy(session.run(["logits"], {"inputs": inputs.numpy()})[0])
    assert (given - expected).abs().max() < 0.3 * expected.abs().max()


@pytest.mark.costly(20)
def test_the_file_is_faster_than_floats_at_batch_one_where_the_processor_is_made_for_it(
    trained: Any, files: dict[str, Path]
) -> None:
    runs = {name: Onnx(Onnx.Options()).load(path, 1) for name, path in files.items()}
    one = trained[2][:1].numpy()
    times = measure_latency({name: partial(run, one) for name, run in runs.items()}, repeats=100)
    capable = torch.cpu.get_capabilities()
    made_for_it = any(capable.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    # Without instructions for products of 8 bits, kernels that do not saturate are about as fast as floats.
    assert times["integers"]["p50"] < (1.0 if made_for_it else 1.5) * times["floats"]["p50"]


def test_gains_of_zero_are_lifted_so_that_folding_divides_by_no_zero() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=4, in_chans=3)
    rounded = INT8.prepare(model, torch.randn(2, 3, 32, 32))
    gains = [value for key, value in rounded.state_dict().items() if key.endswith("bn2.weight")]
    assert gains
    assert all((gain == 1e-5).all() for gain in gains)
    loss = torch.nn.functional.cross_entropy(rounded(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rounded.parameters())
    assert all((value == 0).all() for key, value in model.state_dict().items() if key.endswith("bn2.weight"))


def test_a_student_that_would_draw_lots_in_eval_mode_is_refused() -> None:
    model = timm.create_model("resnet10t", num_classes=4, in_chans=3, drop_path_rate=0.5)
    with pytest.raises(ModelError) as caught:
        INT8.prepare(model, torch.randn(2, 3, 32, 32))
    assert str(caught.value) == (
        "int8: the student draws random numbers in training (aten.bernoulli_.float), which cannot be switched off "
        "afterwards; args that leave it out, such as drop_path_rate: 0.0, would be right"
    )
    INT8.prepare(timm.create_model("resnet10t", num_classes=4, in_chans=3, drop_rate=0.5), torch.randn(2, 3, 32, 32))


@pytest.mark.costly(20)
def test_attention_is_refused_only_with_its_dropout() -> None:
    size = {"num_classes": 4, "in_chans": 3, "img_size": 16, "patch_size": 4}
    rounded = INT8.prepare(timm.create_model("test_vit", **size), torch.randn(2, 3, 16, 16))
    images = torch.randn(4, 3, 16, 16)
    rounded(images).sum().backward()
    assert all(p.grad is not None for p in rounded.parameters())
    rounded.eval()
    assert torch.equal(rounded(images), rounded(images))
    with pytest.raises(ModelError, match=r"aten\.scaled_dot_product_attention\.default"):
        INT8.prepare(timm.create_model("test_vit", **size, attn_drop_rate=0.5), torch.randn(2, 3, 16, 16))


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(KdzooError) as caught:
        int8._pt2e()
    assert str(caught.value) == (
        "int8: needs torchao (import of torchao.quantization halted; None in sys.modules); "
        'pip install "kdzoo[quant]" installs it'
    )


# --- a whole run -------------------------------------------------------------------------------------


def run(out: Path, *overrides: str) -> Any:
    given = [part for override in ["train.epochs=6", *overrides] for part in ("-o", override)]
    recipe = str(ROOT / "recipes" / "digits" / "qat_kd.yaml")
    return CliRunner().invoke(app, ["run", recipe, *given, "--out", str(out)])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that ended well; the others find its stages in the store."""
    folder = tmp_path_factory.mktemp("qat_kd")
    ended = run(folder)
    assert ended.exit_code == 0, ended.output
    return folder


def test_a_run_shows_each_way_from_floats_to_integers(out: Path) -> None:
    results = json.loads((out / "digits-qat-kd" / "0001-seed0" / "results.json").read_text())
    (table,) = results["report_items"]
    assert table["columns"] == ["student", "top-1 %", "size KiB", "ms at batch 1"]
    assert [row[0] for row in table["rows"]] == [
        "float32, alone",
        "int8 afterwards, alone",
        "trained with rounding, alone",
        "trained with rounding, and taught",
        "the same in integers",
    ]
    files = {entry["label"]: entry for entry in results["exports"]}
    for name, label in (("float32, alone", "onnx of control"), ("the same in integers", "onnx int8-trained")):
        row = next(row for row in table["rows"] if row[0] == name)
        size, latency = files[label]["size_mib"] * 1024, files[label]["latency_ms"]["p50"]
        assert row[1:] == [round(files[label]["top1_percent"], 2), round(size, 1), round(latency, 3)]
    assert [row[2:] for row in table["rows"][2:4]] == [[None, None], [None, None]]
    trained = files["onnx int8-trained"]
    assert abs(trained["top1_percent"] - trained["expected_top1_percent"]) <= 0.5
    assert table["rows"][3][1] == round(trained["expected_top1_percent"], 2)


def test_a_file_that_is_not_the_student_as_trained_is_rejected(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = Int8.convert

    def spoiled(self: Int8, prepared: torch.nn.Module) -> torch.nn.Module:
        """What is written answers with the next class."""
        network = copy.deepcopy(prepared)
        linear = dict(network.named_parameters())["body.linear.weight"]
        bias = dict(network.named_parameters())["body.linear.bias"]
        linear.data, bias.data = linear.data.roll(1, 0), bias.data.roll(1, 0)
        return convert(self, network)

    monkeypatch.setattr(Int8, "convert", spoiled)
    ended = run(out, "export=[{format: onnx, quantize: int8-trained}]")
    assert isinstance(ended.exception, ExportError), ended.output
    assert re.fullmatch(
        r"1 of 1 exported files rejected; everything else is finished\n"
        r"  onnx int8-trained: is not the student, kept as export/student\.int8-trained\.onnx\.rejected\n"
        r"    all 797 test samples: \d+\.\d\d % right, the student \d\d\.\d\d %, at most 0\.50 points may be lost",
        str(ended.exception),
    )
    folder = out / "digits-qat-kd" / "0001-seed0"  # other exports go on with the run
    (entry,) = json.loads((folder / "results.json").read_text())["exports"]
    assert entry["expected_top1_percent"] - entry["top1_percent"] > 0.5
    assert entry["rejected"]
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert {"report.html", "README.md", "student.safetensors"} <= {path.name for path in folder.iterdir()}


def test_an_average_of_weights_and_ranges_is_refused_before_training(tmp_path: Path) -> None:
    ended = run(tmp_path, "train.ema_decay=0.9")
    assert isinstance(ended.exception, NeedsError)
    assert str(ended.exception) == (
        f"{ROOT / 'recipes' / 'digits' / 'qat_kd.yaml'}: 1 problem\n"
        "  -o train.ema_decay: averages floats, and 'qat_kd' trains the student in 'int8', whose ranges are no "
        "averages; null would be right"
    )
    assert "training" not in ended.output


def test_several_processes_are_refused_before_training(tmp_path: Path) -> None:
    runner = tiny_runner(QATKD, load_zoo(), tmp_path, {"train": {"epochs": 2}})
    runner.ranks.world = 2
    with pytest.raises(DistributedError) as caught:
        runner.rehearse()
    assert str(caught.value) == (
        "algorithm 'qat_kd': trains the student in 'int8', whose ranges and BatchNorm each of the 2 processes would "
        "learn from its own samples; run one process"
    )


def test_without_torchao_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    ended = run(tmp_path)
    assert isinstance(ended.exception, KdzooError)
    assert str(ended.exception).endswith('pip install "kdzoo[quant]" installs it')
    assert "training" not in ended.output
