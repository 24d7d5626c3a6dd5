"""The charts of a run, by what their drawings hold."""

from __future__ import annotations

import re

from run_of_made_up_numbers import OF_CONTROL, REJECTED, RESULTS, rows

from kdzoo.report import charts
from kdzoo.report.results import Scatter, parse_results


def drawn(chart: charts.Chart) -> str:
    return "".join(chart.drawings)


def test_of_many_classes_those_that_differ_most_are_drawn():
    student, control = [50.0] * 100, [50.0] * 100
    control[7], control[93] = 10.0, 90.0
    chart = charts.per_class_accuracy([f"class{k}" for k in range(100)], {"student": student, "control": control})
    assert chart is not None
    assert chart.caption == "Sorted by the student's gain over the control. The 20 of 100 classes that differ most."
    assert drawn(chart).count("class7<") == drawn(chart).count("class93<") == 1
    assert len(set(re.findall(r">class\d+<", drawn(chart)))) == 20


def test_classes_without_samples_and_names_in_any_script_are_drawn(recwarn):
    chart = charts.per_class_accuracy(["猫", "$x$"], {"student": [None, 30.0]})
    assert chart is not None
    assert ">猫<" in drawn(chart)
    assert ">$x$<" in drawn(chart)
    assert not recwarn.list


def test_names_of_points_one_above_the_other_keep_apart():
    points = [{"group": group, "x": 1.0, "y": y, "label": group} for group, y in (("cut", 60.0), ("alone", 60.5))]
    points.append({"group": "cut", "x": 3.0, "y": 90.0, "label": "widest"})
    item = {"kind": "scatter", "title": "t", "x_label": "x", "y_label": "y", "points": points}
    (drawn,) = charts.scatter(Scatter.model_validate(item), 0).drawings
    heights = {name: float(re.search(rf'middle[^>]* y="([\d.]+)"[^>]*>{name}<', drawn)[1]) for name in ("cut", "alone")}
    assert heights["cut"] - heights["alone"] > 20, "the lower point's name is below it"


def test_nothing_to_draw_is_no_chart():
    untimed = parse_results({**RESULTS, "student": {**RESULTS["student"], "latency_ms": None}}).student
    assert charts.accuracy_against_latency([untimed]) is None
    assert charts.learning_curves([]) is None
    assert charts.loss_terms([]) is None
    without = {"stage": "cut", "split": "train", "epoch": 0, "step": 4, "lr": 0.1}  # a stage that made no update
    assert charts.loss_terms([without]) is None
    chart = charts.loss_terms([without, {**without, "stage": "student", "task": 0.5}])
    assert chart is not None
    assert "cut" not in drawn(chart)
    assert charts.per_class_accuracy([], {}) is None


def test_terms_that_train_several_networks_have_a_panel_each():
    row = {"stage": "student", "split": "train", "step": 4, "lr": 0.1, "grad_norm": 1.0, "grad_norm_critic": 7.0}
    several = [{**row, "epoch": i, "task": 0.5, "score": 2.0, "accuracy": 0.9} for i in range(3)]
    chart = charts.loss_terms(several, {"student": {"task": "student", "score": "critic", "accuracy": "notes"}})
    assert chart is not None
    for title in ("student", "student: critic", "student: notes"):
        assert f">{title}<" in drawn(chart)
    assert "grad_norm" not in drawn(chart)
    alone = charts.loss_terms(several)
    assert alone is not None
    assert ">student: critic<" not in drawn(alone)


def test_of_many_stages_the_last_are_drawn():
    many = [{**row, "stage": f"generation_{i}"} for i in range(12) for row in rows(1)[:1]]
    chart = charts.loss_terms(many)
    assert chart is not None
    assert "The last 9 of 12 panels." in chart.caption
    assert "generation_11" in drawn(chart)
    assert ">generation_2<" not in drawn(chart)


def curves(*stages):
    found = [
        {"stage": stage, "split": "validation", "epoch": epoch, "top1_percent": 50.0 + 10 * epoch + i}
        for i, stage in enumerate(stages)
        for epoch in range(3)
    ]
    chart = charts.learning_curves(found)
    assert chart is not None
    return chart, re.findall(r"<text[^>]*>([^<]*)</text>", drawn(chart))


def test_each_of_a_few_curves_has_its_name():
    stages = ["teacher", "control", *(f"task_{i}" for i in range(10))]
    chart, texts = curves(*stages)
    assert set(stages) <= set(texts)
    assert chart.caption == "Accuracy on the validation split after each epoch."
    assert "task_9 ends at 81.00 % after 3 epochs" in drawn(chart)


def test_of_many_curves_those_that_only_a_number_tells_apart_share_a_name():
    chart, texts = curves("teacher", *(f"trial_{i}" for i in range(30)), "hand_picked", "student")
    named = [text for text in texts if text[0].isalpha() and text not in ("epoch", "validation accuracy, %")]
    assert named == ["teacher", "trial (30)", "hand_picked", "student"]
    assert chart.caption.endswith(" Stages that only a number tells apart look alike.")
    assert "; trial (30) end between 71.00 and 100.00 %; " in drawn(chart)


def test_of_many_curves_with_names_of_their_own_the_first_are_named():
    chart, texts = curves(*(f"{letter} net" for letter in "abcdefghijklmnopq"))
    assert [text for text in texts if text.endswith("net")] == [f"{letter} net" for letter in "abcdefghijkl"]
    assert chart.caption.endswith(" The first 12 of 17 are named.")


def test_the_axis_of_classes_begins_near_the_lowest():
    chart = charts.per_class_accuracy(["a", "b"], {"student": [79.0, 100.0], "control": [81.0, 99.0]})
    assert chart is not None
    numbers = [float(text) for text in re.findall(r">([\d.]+)</text>", drawn(chart))]
    assert 70 < min(numbers) <= 80


def test_files_of_the_control_and_rejected_files_are_not_drawn():
    entries = list(parse_results({**RESULTS, "exports": [OF_CONTROL, REJECTED]}).entries())
    chart = charts.accuracy_against_latency(entries)
    assert chart is not None
    assert re.findall(r">([a-z][^<]*)</text>", drawn(chart))[-3:] == ["teacher", "control", "student"]
