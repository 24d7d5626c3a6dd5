"""What a run says of files that compute in coarser numbers than the student."""

from __future__ import annotations

from kdzoo.delivery import losses_of_coarse_files


def entry(label: str, top1: float, **more: float) -> dict[str, object]:
    return {"label": label, "top1_percent": top1, **more}


MODELS = {"student": entry("student", 90.0), "control": entry("control", 88.0)}
PLAIN = [entry("onnx of control", 88.0), entry("onnx int8 of control", 87.5)]


def test_a_student_that_loses_more_than_its_control_is_told() -> None:
    assert losses_of_coarse_files(MODELS, [entry("onnx", 90.0), entry("onnx int8", 88.9)], PLAIN) == [
        "export onnx int8: the student loses 1.10 points of accuracy, the control 0.50; what distillation gave does "
        "not all survive in this format"
    ]
    assert losses_of_coarse_files(MODELS, [entry("onnx", 90.0), entry("onnx int8", 89.5)], PLAIN) == []


def test_a_gain_of_the_control_forgives_nothing_and_asks_for_nothing() -> None:
    gained = [entry("onnx of control", 88.0), entry("onnx int8 of control", 88.4)]
    assert losses_of_coarse_files(MODELS, [entry("onnx int8", 90.0)], gained) == []
    assert len(losses_of_coarse_files(MODELS, [entry("onnx int8", 89.9)], gained)) == 1


def test_a_file_that_was_trained_coarse_is_held_against_the_controls_afterwards() -> None:
    trained = entry("onnx int8-trained", 89.0, rounded_top1_percent=89.0)
    assert losses_of_coarse_files(MODELS, [trained], PLAIN) == [
        "export onnx int8-trained: the student loses 1.00 points of accuracy, the control 0.50; what distillation gave "
        "does not all survive in this format"
    ]
    assert losses_of_coarse_files(MODELS, [{**trained, "top1_percent": 89.6}], PLAIN) == []
    assert losses_of_coarse_files(MODELS, [trained], PLAIN[:1]) == []


def test_without_a_control_nothing_is_told() -> None:
    assert losses_of_coarse_files({"student": MODELS["student"]}, [entry("onnx int8", 10.0)], []) == []
