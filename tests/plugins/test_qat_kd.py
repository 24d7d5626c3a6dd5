"""A student in 8 bits: the loss by hand, the stages, and a file that really computes in integers."""

from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch

from kdzoo.api import AlgorithmChoice, KdzooError, ModelSpec, StagePlan, StageResult
from kdzoo.zoo import load_zoo
from kdzoo_export.onnx_file import finish, trace
from kdzoo_quantized import int8
from kdzoo_quantized.int8 import Int8
from kdzoo_quantized.qat_kd import QATKD, soft_label_loss


def test_a_value_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_label_loss(student, teacher).item() == pytest.approx(expected)
    assert soft_label_loss(teacher, teacher).item() == pytest.approx(0.0, abs=1e-7)


def test_the_student_goes_on_from_floats_with_rounding_and_its_twin_without_teacher() -> None:
    teacher = StageResult("teacher", "key", ModelSpec("big"), {}, {})
    plan = StagePlan(
        student=ModelSpec("small"), teachers=(teacher,), assistants=(), peers=(), own=AlgorithmChoice("qat_kd"),
        delegate=None, options=QATKD.Options(share=0.3, lr=0.01), train={"epochs": 10},
    )  # fmt: skip
    generator = QATKD.stages(plan)
    stages, answer = [], None
    for _ in range(3):
        stage: Any = generator.send(answer)  # type: ignore[arg-type]
        stages.append(stage)
        answer = StageResult(stage.name, f"key of {stage.name}", stage.model, {}, {})
    with pytest.raises(StopIteration) as end:
        generator.send(answer)  # type: ignore[arg-type]
    assert end.value.value is answer
    assert [(s.name, s.model.arithmetic, s.start and s.start.name, len(s.teachers)) for s in stages] == [
        ("float", None, None, 0),
        ("qat", "int8", "float", 0),
        ("qat_kd", "int8", "float", 1),
    ]
    assert stages[0].train == {"epochs": 7}
    assert stages[1].train == stages[2].train == {"epochs": 3, "optimizer": {"lr": 0.01}}


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    """A plain ResNet-20 with the weights of the rounding one after a few steps, that one, and inputs."""
    load_zoo()  # registers the networks
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet20", num_classes=10, in_chans=1)
    inputs, targets = torch.randn(32, 1, 28, 28), torch.randint(0, 10, (32,))
    rounded = Int8().prepare(model, inputs[:2])
    optimizer = torch.optim.SGD(rounded.parameters(), 0.05)
    for _ in range(3):
        torch.nn.functional.cross_entropy(rounded(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.load_state_dict(Int8().plain(rounded.state_dict()), strict=True)
    return model.eval(), rounded.eval(), inputs


def test_eval_mode_changes_nothing_and_the_state_dict_is_all(trained: Any) -> None:
    model, rounded, inputs = trained
    before = {key: value.clone() for key, value in rounded.state_dict().items()}
    with torch.no_grad():
        answer = rounded(inputs)
        assert torch.equal(rounded(inputs), answer)
        assert all(torch.equal(value, before[key]) for key, value in rounded.state_dict().items())
        again = Int8().prepare(model, inputs[:2])
        again.load_state_dict(before, strict=True)
        assert torch.equal(again.eval()(inputs), answer)
        copied = copy.deepcopy(rounded).train()
        copied(inputs[:7])
        assert torch.equal(rounded(inputs), answer), "a copy in training changed the original"
        assert rounded(inputs[:1]).shape == (1, 10)


def test_the_file_computes_in_integers_and_is_much_smaller(trained: Any, tmp_path: Path) -> None:
    model, rounded, inputs = trained
    floats, integers, optimized = tmp_path / "floats.onnx", tmp_path / "integers.onnx", tmp_path / "optimized.onnx"
    finish(trace(copy.deepcopy(model), inputs[:2], None), floats, {})
    finish(trace(Int8().convert(rounded).eval(), inputs[:2], None), integers, {})
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


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(KdzooError) as caught:
        int8._pt2e()
    assert str(caught.value) == (
        "int8: needs torchao (import of torchao.quantization halted; None in sys.modules); "
        'pip install "kdzoo[quant]" installs it'
    )
