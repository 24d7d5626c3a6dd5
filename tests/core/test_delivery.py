"""What a run says of files that compute in coarser numbers than the student."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import Field

from kdzoo.api import ModelSpec, StageResult
from kdzoo.api.export import ExportError, OfferOptions, Quantizer
from kdzoo.errors import ContractError, UnknownName
from kdzoo.run.builder import Builder
from kdzoo.run.exporting import check_rejected, without_quantizer
from kdzoo.run.format_losses import format_losses


def network(name: str, top1: float) -> dict[str, Any]:
    return {"label": name, "network": name, "format": None, "quantize": None, "top1_percent": top1}


def onnx(top1: float | None, quantize: str | None = None, of: str = "student") -> dict[str, Any]:
    label = " ".join(part for part in ("onnx", quantize, "" if of == "student" else f"of {of}") if part)
    return {"label": label, "network": of, "format": "onnx", "quantize": quantize, "top1_percent": top1}


STUDENT, CONTROL = network("student", 90.0), network("control", 88.0)
PLAIN = [onnx(88.0, of="control"), onnx(87.5, "int8", of="control")]


def test_a_student_that_loses_more_than_its_control_is_told() -> None:
    assert format_losses(STUDENT, CONTROL, [onnx(90.0), onnx(88.9, "int8"), *PLAIN], 1000) == [
        "export onnx int8: the student loses 1.10 points of accuracy, the control 0.50, a difference of 6 of 1,000 "
        "samples; what distillation gave does not all survive in this format"
    ]
    assert format_losses(STUDENT, CONTROL, [onnx(90.0), onnx(89.5, "int8"), *PLAIN], 1000) == []


def test_a_gain_of_the_control_forgives_nothing_and_asks_for_nothing() -> None:
    gained = [onnx(88.0, of="control"), onnx(88.4, "int8", of="control")]
    assert format_losses(STUDENT, CONTROL, [onnx(90.0, "int8"), *gained], 1000) == []
    assert len(format_losses(STUDENT, CONTROL, [onnx(89.9, "int8"), *gained], 1000)) == 1


def test_a_file_that_was_trained_coarse_is_compared_with_the_controls_afterwards() -> None:
    assert format_losses(STUDENT, CONTROL, [onnx(89.0, "int8-trained"), *PLAIN], 1000) == [
        "export onnx int8-trained: the student loses 1.00 points of accuracy, the control 0.50, a difference of 5 of "
        "1,000 samples; what distillation gave does not all survive in this format"
    ]
    assert format_losses(STUDENT, CONTROL, [onnx(89.6, "int8-trained"), *PLAIN], 1000) == []
    assert format_losses(STUDENT, CONTROL, [onnx(89.0, "int8-trained"), *PLAIN[:1]], 1000) == []
    other = {**onnx(80.0, "int8", of="control"), "format": "other"}
    assert format_losses(STUDENT, CONTROL, [onnx(89.0, "int8-trained"), other], 1000) == []


def test_nothing_is_said_without_a_control_and_without_an_answer() -> None:
    assert format_losses(STUDENT, None, [onnx(10.0, "int8")], 1000) == []
    assert format_losses(STUDENT, CONTROL, [onnx(None, "int8"), *PLAIN], 1000) == []
    assert format_losses(STUDENT, CONTROL, [onnx(10.0, "int8"), onnx(None, "int8", of="control")], 1000) == []


# --- students in another quantizer ---------------------------------------------------------------


class Bits(Quantizer):
    name = "bits"

    class Options(OfferOptions):
        bits: int = Field(8, ge=2, description="Bits.")

    def prepare(self, model: Any, example: Any) -> Any: ...

    def plain(self, weights: Any) -> Any: ...

    def convert(self, prepared: Any) -> Any: ...


def prepared(**asked: Any) -> Any:
    """What a builder makes of a network: here, the quantizer that it is handed."""
    builder: Any = SimpleNamespace(plan=SimpleNamespace(quantizers={"bits": Bits}))
    network: Any = SimpleNamespace(quantized=lambda quantizer: quantizer)
    return Builder.quantized(builder, network, ModelSpec("net", **asked))


def test_a_network_is_prepared_with_the_options_of_its_model() -> None:
    assert prepared(quantizer="bits", quantizer_options={"bits": 4}).options.bits == 4
    assert prepared(quantizer="bits").options.bits == 8
    assert not isinstance(prepared(), Quantizer)


def test_a_quantizer_that_nobody_offers_is_refused() -> None:
    with pytest.raises(UnknownName) as caught:
        prepared(quantizer="bit")
    assert str(caught.value) == "model 'net': unknown quantizer 'bit'; did you mean 'bits'? known: bits"


def test_wrong_options_of_a_quantizer_are_a_broken_contract() -> None:
    with pytest.raises(ContractError) as caught:
        prepared(quantizer="bits", quantizer_options={"bits": 1, "size": 3})
    assert str(caught.value) == (
        "model 'net': options of quantizer 'bits': size: unknown key; known: bits; bits: must be at least 2, got 1"
    )


def refusal(student: StageResult | None) -> str | None:
    exporter: Any = SimpleNamespace(name="onnx", label="int8-trained")
    return without_quantizer(exporter, student)


def test_a_file_as_trained_cannot_be_written_of_plain_weights() -> None:
    assert refusal(None) == (
        "onnx int8-trained: is written by the run that trains the student; a run folder holds its plain weights only, "
        "so name the format under the recipe's export"
    )
    assert refusal(StageResult("student", "key", ModelSpec("net"), {}, {})) == (
        "onnx int8-trained: the student was trained in floats; an algorithm that trains it in integers would be right, "
        "or a format that quantizes after training"
    )
    assert refusal(StageResult("student", "key", ModelSpec("net", quantizer="bits"), {}, {})) is None


# --- rejected files ------------------------------------------------------------------------------


def test_rejected_files_are_named_with_what_is_wrong() -> None:
    good = {**onnx(90.0), "file": "student.onnx", "rejected": []}
    bad = {**onnx(80.0, "int8"), "file": "student.int8.onnx.rejected", "rejected": ["one thing", "another"]}
    none = {**onnx(None, "int8-trained", of="teacher"), "file": None, "rejected": ["no file"]}
    check_rejected([])
    check_rejected([good])
    with pytest.raises(ExportError) as caught:
        check_rejected([good, bad, none])
    assert caught.value.exit_code == 9
    assert str(caught.value) == (
        "2 of 3 exported files rejected; everything else is finished\n"
        "  onnx int8: is not the student, kept as export/student.int8.onnx.rejected\n"
        "    one thing\n"
        "    another\n"
        "  onnx int8-trained of teacher: was not written\n"
        "    no file"
    )
