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
from kdzoo.run.delivery import Delivery, losses_of_coarse_files


def entry(label: str, top1: float, **more: float) -> dict[str, object]:
    return {"label": label, "top1_percent": top1, **more}


MODELS = {"student": entry("student", 90.0), "control": entry("control", 88.0)}
PLAIN = [entry("onnx of control", 88.0), entry("onnx int8 of control", 87.5)]


def test_a_student_that_loses_more_than_its_control_is_told() -> None:
    assert losses_of_coarse_files(MODELS, [entry("onnx", 90.0), entry("onnx int8", 88.9)], PLAIN, 1000) == [
        "export onnx int8: the student loses 1.10 points of accuracy, the control 0.50, a difference of 6 of 1,000 "
        "samples; what distillation gave does not all survive in this format"
    ]
    assert losses_of_coarse_files(MODELS, [entry("onnx", 90.0), entry("onnx int8", 89.5)], PLAIN, 1000) == []


def test_a_gain_of_the_control_forgives_nothing_and_asks_for_nothing() -> None:
    gained = [entry("onnx of control", 88.0), entry("onnx int8 of control", 88.4)]
    assert losses_of_coarse_files(MODELS, [entry("onnx int8", 90.0)], gained, 1000) == []
    assert len(losses_of_coarse_files(MODELS, [entry("onnx int8", 89.9)], gained, 1000)) == 1


def test_a_file_that_was_trained_coarse_is_held_against_the_controls_afterwards() -> None:
    trained = entry("onnx int8-trained", 89.0, rounded_top1_percent=89.0)
    assert losses_of_coarse_files(MODELS, [trained], PLAIN, 1000) == [
        "export onnx int8-trained: the student loses 1.00 points of accuracy, the control 0.50, a difference of 5 of "
        "1,000 samples; what distillation gave does not all survive in this format"
    ]
    assert losses_of_coarse_files(MODELS, [{**trained, "top1_percent": 89.6}], PLAIN, 1000) == []
    assert losses_of_coarse_files(MODELS, [trained], PLAIN[:1], 1000) == []


def test_without_a_control_nothing_is_told() -> None:
    assert losses_of_coarse_files({"student": MODELS["student"]}, [entry("onnx int8", 10.0)], [], 1000) == []


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


def test_an_arithmetic_that_nobody_offers_is_refused() -> None:
    with pytest.raises(UnknownName) as caught:
        prepared(quantizer="bit")
    assert str(caught.value) == "model 'net': unknown quantizer 'bit'; did you mean 'bits'? known: bits"


def test_wrong_options_of_an_arithmetic_are_a_broken_contract() -> None:
    with pytest.raises(ContractError) as caught:
        prepared(quantizer="bits", quantizer_options={"bits": 1, "size": 3})
    assert str(caught.value) == (
        "model 'net': options of quantizer 'bits': size: unknown key; known: bits; bits: must be at least 2, got 1"
    )


def refusal(student: StageResult | None) -> str:
    exporter: Any = SimpleNamespace(name="onnx", label="int8-trained")
    nothing: Any = None
    with pytest.raises(ExportError) as caught:
        Delivery._exported_quantized(nothing, exporter, student, nothing, nothing)
    return str(caught.value)


def test_a_file_as_trained_cannot_be_written_of_plain_weights() -> None:
    assert refusal(None) == (
        "onnx int8-trained: is written by the run that trains the student; a run folder holds its plain weights only, "
        "so name the format under the recipe's export"
    )
    assert refusal(StageResult("student", "key", ModelSpec("net"), {}, {})) == (
        "onnx int8-trained: the student was trained in floats; an algorithm that trains it in integers would be right, "
        "or a format that quantizes after training"
    )
