from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_of_made_up_numbers import CLASSES, EXHIBITS, PIXEL, RESULTS, STUDENT, VARIANTS, finished_run, rows, write_run

from kdzoo.data.inputs import Pixels
from kdzoo.errors import OutputError, ReportError
from kdzoo.report import charts
from kdzoo.report.compare import compare_runs, compare_table, comparison_table
from kdzoo.report.model_card import card
from kdzoo.report.page import duration, page
from kdzoo.report.reading import read_run
from kdzoo.report.tables import cells, counted, significant, sized
from kdzoo.report.verdict import verdict
from kdzoo.report.writing import write_report

PIXELS = Pixels(3, (32, 32), tuple(STUDENT["mean"]), tuple(STUDENT["std"]))


class Reader(HTMLParser):
    """Checks that tags nest, and collects elements, ids and text."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def paired(gained, lost):
    return {"both": 9000 - gained, "student_only": gained, "control_only": lost, "neither": 1000 - lost}


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return page(read_run(write_run(tmp_path_factory.mktemp("runs") / "0001-seed0")))


def test_the_page_loads_nothing(made):
    reader = read(made)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in reader.seen}
    for _, attributes in reader.seen:
        assert not {"src", "srcset", "href", "action", "onload"} & attributes.keys()
        assert (attributes.get("xlink:href") or "#").startswith("#")
    assert "@import" not in made
    assert not re.search(r"url\((?!#)", made)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", made))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_page_is_accessible(made):
    reader = read(made)
    assert ("html", {"lang": "en"}) in reader.seen
    drawings = [attributes for tag, attributes in reader.seen if tag == "svg"]
    assert len(drawings) == 4
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 20 for drawing in drawings)
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in reader.seen if tag == "th")
    assert [tag for tag, _ in reader.seen].count("h1") == 1


def test_ids_are_those_of_one_element_and_references_find_them(made):
    ids = [attributes["id"] for _, attributes in read(made).seen if "id" in attributes]
    assert len(ids) == len(set(ids)) > 50
    wanted = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', made))
    assert wanted
    assert {first or second for first, second in wanted} <= set(ids)


def test_drawings_take_the_pages_colours_and_font(made):
    drawn = re.findall(r"<svg.*?</svg>", made, flags=re.DOTALL)
    for svg in drawn:
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
        assert "font-family" not in svg
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= {"ink", "muted", "line", "card", *(f"c{i}" for i in range(8))}
    styles = made[: made.index("</style>")]
    light, dark = styles.split("@media (prefers-color-scheme: dark)")[:2]
    assert all(re.search(rf"--{name}: #", part) for part in (light, dark) for name in charts.VARIABLES.values())


def test_the_page_tells_what_the_run_found(made):
    text = read(made).text
    for wanted in (
        "Distillation was worth it",
        "+0.85 to +1.97 points",
        "cifar_resnet8 · student.int8.onnx",
        "stride 2: layer2 (32, 16, 16) <- layer2 (32, 16, 16)",
        "stage 'student': term 'kd' is 63 times the term 'task' after its weight",
        "1 h 46 min in all.",
        "0123456789ab",
        "plugins.exampleexample 2.0",
        "optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5e-4}",
    ):
        assert wanted in text


@pytest.fixture(scope="module")
def showing(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "0001-seed0", report_items=EXHIBITS, variants=VARIANTS)


def test_the_verdict_says_that_the_control_had_few_labels():
    few = {**RESULTS, "data": {**RESULTS["data"], "labelled": 100}}
    assert (
        "points more than the same network trained alone under the same budget on 100 labels;" in verdict(few).sentence
    )


def test_the_page_shows_what_the_algorithm_shows(showing):
    reader = read(page(read_run(showing)))
    for wanted in ("Assistants", "One row a size.", "91.26", "272,474", "In %. Rows are later.", "Up and to the left"):
        assert wanted in reader.text
    for wanted in ("Other ways to answer", "exit 1", "80.12", "0.34 x", "2.03 x"):
        assert wanted in reader.text
    pictures = [attributes for tag, attributes in reader.seen if tag == "img"]
    assert [picture["src"] for picture in pictures] == [f"data:image/png;base64,{PIXEL}"] * 2
    assert [picture["alt"] for picture in pictures] == ["cat", ""]
    said = [attributes["aria-label"] for tag, attributes in reader.seen if tag == "svg"]
    assert "after 1: task 1 98.5; after 2: task 1 61.2, task 2 97" in said
    assert "front a 88 at 0.1; front b 91 at 0.4; tried c 87 at 0.3" in said
    ids = [attributes["id"] for _, attributes in reader.seen if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_card_has_the_tables_of_the_algorithm(showing):
    written = card(read_run(showing))
    assert "### Assistants\n\n| model | accuracy, % | parameters |\n| --- | --: | --: |" in written
    assert "| cifar\\_resnet20 | 91.26 | 272,474 |\n| none | \N{EN DASH} | 0 |\n\nOne row a size." in written
    assert "| exit 1 | 80.12 | 82.00 |" in written
    assert "0.34 x" in written
    assert "Cost and accuracy" not in written  # pictures are in the report


def test_names_in_exhibits_are_escaped(tmp_path):
    evil = "\"><script>alert(1)</script><b a='&$x_1$\\1"

    def spoilt(value):
        if isinstance(value, str):
            return value if value in ("table", "heat_map", "scatter", "images", PIXEL) else evil
        if isinstance(value, list):
            return [spoilt(inner) for inner in value]
        return {key: spoilt(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    folder = write_run(tmp_path / "run", report_items=spoilt(EXHIBITS), variants=[{**VARIANTS[0], "label": evil}])
    made = page(read_run(folder))
    assert "script" not in {tag for tag, _ in read(made).seen}
    assert "<script" not in card(read_run(folder))


def test_every_name_is_escaped(tmp_path):
    evil = "\"><script>alert(1)</script><b a='&$x_1$\\1"
    entry = {**RESULTS["student"], "label": evil, "model": evil}
    folder = write_run(
        tmp_path / "run",
        student=entry,
        teacher={**entry, "label": evil},
        exports=[{**entry, "file": evil}],
        warnings=[evil],
        pairing={evil: [evil]},
        stages=[{"name": evil, "key": evil, "precision": evil}],
        algorithm=evil,
        per_class={"classes": [evil, "b"], "top1_percent": {"student": [1.0, 2.0], "control": [2.0, None]}},
        data={"name": evil, "test_samples": 5},
    )
    (folder / "recipe.yaml").write_text(f"name: '{evil.replace(chr(39), chr(39) * 2)}'\ndescription: |\n  {evil}\n")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({**row, "stage": evil, evil: 1.0}) + "\n" for row in rows(2))
    )
    (folder / "provenance.json").write_text(json.dumps({evil: {evil: [evil]}, "seed": evil}))
    write_report(folder)
    made = (folder / "report.html").read_text()
    reader = read(made)
    assert "script" not in {tag for tag, _ in reader.seen}
    assert "b" not in {tag for tag, attributes in reader.seen if "a" in attributes}
    assert made.count("alert(1)") > 15
    assert "<script" not in made
    assert "<script" not in (folder / "README.md").read_text()


def test_equal_folders_give_equal_bytes(tmp_path):
    folder = write_run(tmp_path / "run")
    write_report(folder)
    first = [(folder / name).read_bytes() for name in ("report.html", "README.md")]
    write_report(folder)
    assert [(folder / name).read_bytes() for name in ("report.html", "README.md")] == first
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["README.md", "metrics.jsonl", "provenance.json", "recipe.yaml", "report.html", "results.json", "student.json"]
    )


def test_a_bare_run_still_has_a_page(tmp_path):
    """Two epochs, no teacher, no control, no validation, nothing exported, nothing timed."""
    bare = {**RESULTS["student"], "latency_ms": None, "agreement_percent": None}
    nothing = dict.fromkeys(("teacher", "control", "paired", "per_class", "pairing", "warnings", "seconds", "exports"))
    folder = write_run(tmp_path / "run", ("student.json",), student=bare, stages=[], data={}, **nothing)
    train = [json.dumps(row) for row in rows(2) if row["split"] == "train"]
    (folder / "metrics.jsonl").write_text("\n".join(train) + "\n")
    write_report(folder)
    reader = read((folder / "report.html").read_text())
    assert "No control, no verdict" in reader.text
    assert "The distilled student reaches 89.02 %." in reader.text
    assert [attributes["aria-label"][:13] for tag, attributes in reader.seen if tag == "svg"] == ["teacher: task"]
    assert "## Use" not in (folder / "README.md").read_text()


def test_peers_and_several_teachers_have_rows_of_their_own(tmp_path):
    teachers = [{**RESULTS["teacher"], "label": f"teacher {i}"} for i in range(2)]
    peers = [{**RESULTS["control"], "label": "peer 0"}]
    folder = write_run(tmp_path / "run", teachers=teachers, peers=peers)
    labels = [entry["label"] for _, entry, _ in cells(read_run(folder).results)]
    assert labels == ["teacher 0", "teacher 1", "control", "student", "peer 0", "onnx", "onnx int8"]
    assert "cifar_resnet110 + cifar_resnet110" in read(page(read_run(folder))).text


# --- what is best, and how it is rounded ------------------------------------------------------------


def test_the_best_of_a_column_is_marked_where_it_differs_as_shown_teachers_aside():
    marked = {entry["label"]: [cell.best for cell in row] for _, entry, row in cells(RESULTS)}
    assert marked == {
        "teacher": [False] * 8,
        "control": [False] * 8,
        "student": [True, True, True, False, False, False, False, False],
        "onnx": [True, True, True, False, False, False, False, False],
        "onnx int8": [False, False, False, False, True, False, True, True],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0.00"),
        (0.078042, "0.0780"),
        (0.1, "0.100"),
        (9.996, "10.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1234.5, "1,234"),
    ],
)
def test_three_significant_digits(value, shown):
    assert significant(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (5, "5"),
        (868, "868"),
        (999.4, "999"),
        (999.6, "1.00 k"),
        (78042, "78.0 k"),
        (1730714, "1.73 M"),
        (3e13, "30,000 G"),
    ],
)
def test_counts_in_the_unit_that_suits_them(value, shown):
    assert counted(value) == shown


@pytest.mark.parametrize(
    ("mib", "shown"), [(0.0001, "105 B"), (0.00452, "4.63 KiB"), (6.89, "6.89 MiB"), (2000, "1.95 GiB")]
)
def test_sizes_in_the_unit_that_suits_them(mib, shown):
    assert sized(mib) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.24, "4.2 s"), (60, "1 min 0 s"), (3599.6, "1 h 0 min"), (7265, "2 h 1 min")]
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


# --- the verdict ----------------------------------------------------------------------------------


def test_a_student_that_the_algorithm_chose_is_not_called_the_same_network():
    judged = verdict({**RESULTS, "same_network": False})
    assert (
        "1.41 points more than the recipe's student, another network, trained alone under the same" in judged.sentence
    )
    assert judged.facts[0] == ("+1.41", "points against the recipe's student, another network, trained alone")


def test_an_upper_bound_is_not_there_to_be_beaten():
    lower = {**RESULTS["student"], "top1_percent": RESULTS["control"]["top1_percent"] - 40}
    judged = verdict({**RESULTS, "student": lower, "upper_bound": "on all tasks at once"})
    assert (judged.tone, judged.headline) == ("unknown", "Held against an upper bound")
    assert judged.sentence == (
        "The distilled student reaches 47.61 % on 10,000 test samples; the control, the same network trained on all "
        "tasks at once, is an upper bound and reaches 87.61 %."
    )
    assert judged.facts[0] == ("-40.00", "points against the same network trained on all tasks at once")


def test_a_gain_whose_interval_is_above_zero_was_worth_it():
    judged = verdict(RESULTS)
    assert (judged.tone, judged.headline) == ("good", "Distillation was worth it")
    assert judged.sentence == (
        "The distilled student reaches 89.02 % on 10,000 test samples, 1.41 points more than the same network trained "
        "alone under the same budget; 95 % interval of the difference +0.85 to +1.97 points."
    )
    assert judged.facts == (
        ("+1.41", "points against the same network trained alone"),
        ("95.1 %", "of the teacher's accuracy"),
        ("22.2\N{MULTIPLICATION SIGN}", "fewer parameters"),
        ("62.4\N{MULTIPLICATION SIGN}", "smaller file (onnx int8)"),
        ("16.7\N{MULTIPLICATION SIGN}", "faster at batch 1"),
    )


@pytest.mark.parametrize(
    ("gained", "lost", "tone", "headline"),
    [
        (50, 40, "even", "No difference that this test set can show"),
        (40, 50, "even", "No difference that this test set can show"),
        (0, 0, "even", "No difference that this test set can show"),
        (300, 500, "bad", "Distillation made it worse"),
    ],
)
def test_an_interval_round_zero_shows_nothing_and_one_below_zero_a_loss(gained, lost, tone, headline):
    judged = verdict({**RESULTS, "paired": paired(gained, lost)})
    assert (judged.tone, judged.headline) == (tone, headline)


def test_a_loss_is_told_as_one():
    worse = {**RESULTS["student"], "top1_percent": 86.0}
    judged = verdict({**RESULTS, "student": worse, "paired": paired(300, 461)})
    assert judged.facts[0][0] == "-1.61"
    assert "1.61 points less than the same network trained alone" in judged.sentence


@pytest.mark.parametrize(("reached", "guessing"), [(10.55, True), (10.65, False)])
def test_a_student_no_better_than_guessing_has_learnt_nothing(reached, guessing):
    # of 10,000 samples a tenth are of the most common class: two standard errors are 0.6 points
    student = {**RESULTS["student"], "top1_percent": reached}
    judged = verdict({**RESULTS, "student": student, "data": {**RESULTS["data"], "most_common_class_percent": 10.0}})
    assert (judged.headline == "The student does not do better than guessing") is guessing
    if guessing:
        assert judged.tone == "bad"
        assert judged.sentence == (
            "The distilled student reaches 10.55 % on 10,000 test samples; naming the most common class each time "
            "would reach 10.00 %."
        )


def test_without_a_control_there_is_no_verdict():
    judged = verdict({**RESULTS, "control": None, "paired": None})
    assert (judged.tone, judged.headline) == ("unknown", "No control, no verdict")
    assert judged.sentence == (
        "The distilled student reaches 89.02 % on 10,000 test samples. "
        "The run has no control, so it cannot say whether distillation was worth it."
    )


def test_without_paired_counts_there_is_a_difference_but_no_interval():
    judged = verdict({**RESULTS, "paired": None})
    assert (judged.tone, judged.headline) == ("unknown", "A difference without an interval")
    assert "interval of" not in judged.sentence


def test_a_student_larger_and_slower_than_its_teacher_is_told_so():
    slow = {**RESULTS["student"], "params_m": 3.461428, "latency_ms": {"p50": 19.74, "p95": 20.0}}
    facts = verdict({**RESULTS, "student": slow, "exports": []}).facts
    assert ("2.0\N{MULTIPLICATION SIGN}", "more parameters") in facts
    assert ("2.0\N{MULTIPLICATION SIGN}", "slower at batch 1") in facts


# --- charts ---------------------------------------------------------------------------------------


def test_of_many_classes_those_that_differ_most_are_drawn():
    student, control = [50.0] * 100, [50.0] * 100
    control[7], control[93] = 10.0, 90.0
    chart = charts.per_class_accuracy([f"class{k}" for k in range(100)], {"student": student, "control": control})
    assert chart is not None
    assert chart.caption == "Sorted by the student's gain over the control. The 20 of 100 classes that differ most."
    assert chart.svg.count("class7<") == chart.svg.count("class93<") == 1
    assert len(set(re.findall(r">class\d+<", chart.svg))) == 20


def test_classes_without_samples_and_names_in_any_script_are_drawn(recwarn):
    chart = charts.per_class_accuracy(["猫", "$x$"], {"student": [None, 30.0]})
    assert chart is not None
    assert ">猫<" in chart.svg
    assert ">$x$<" in chart.svg
    assert not recwarn.list


def test_names_of_points_one_above_the_other_keep_apart():
    points = [{"group": group, "x": 1.0, "y": y, "label": group} for group, y in (("cut", 60.0), ("alone", 60.5))]
    points.append({"group": "cut", "x": 3.0, "y": 90.0, "label": "widest"})
    item = {"title": "t", "note": "", "x_label": "x", "y_label": "y", "front": "", "points": points}
    drawn = charts.scatter(item, 0).svg
    heights = {name: float(re.search(rf'8px[^>]* y="([\d.]+)"[^>]*>{name}<', drawn)[1]) for name in ("cut", "alone")}
    assert heights["cut"] - heights["alone"] > 20, "the lower point's name is below it"


def test_nothing_to_draw_is_no_chart():
    assert charts.accuracy_against_latency([("student", {**RESULTS["student"], "latency_ms": None})]) is None
    assert charts.learning_curves([]) is None
    assert charts.loss_terms([]) is None
    without = {"stage": "cut", "split": "train", "epoch": 0, "step": 4, "lr": 0.1}  # a stage that made no update
    assert charts.loss_terms([without]) is None
    drawn = charts.loss_terms([without, {**without, "stage": "student", "task": 0.5}])
    assert drawn is not None
    assert "cut" not in drawn.svg
    assert charts.per_class_accuracy([], {}) is None


def test_terms_that_train_several_networks_have_a_panel_each():
    row = {"stage": "student", "split": "train", "step": 4, "lr": 0.1, "grad_norm": 1.0, "grad_norm_critic": 7.0}
    several = [{**row, "epoch": i, "task": 0.5, "score": 2.0, "accuracy": 0.9} for i in range(3)]
    chart = charts.loss_terms(several, {"student": {"task": "student", "score": "critic", "accuracy": "notes"}})
    assert chart is not None
    for title in ("student", "student: critic", "student: notes"):
        assert f">{title}<" in chart.svg
    assert "grad_norm" not in chart.svg
    alone = charts.loss_terms(several)
    assert alone is not None
    assert ">student: critic<" not in alone.svg


def test_of_many_stages_the_last_are_drawn():
    many = [{**row, "stage": f"generation_{i}"} for i in range(12) for row in rows(1)[:1]]
    chart = charts.loss_terms(many)
    assert chart is not None
    assert "The last 9 of 12 panels." in chart.caption
    assert "generation_11" in chart.svg
    assert ">generation_2<" not in chart.svg


# --- the model card -------------------------------------------------------------------------------


def curves(*stages):
    found = [
        {"stage": stage, "split": "validation", "epoch": epoch, "top1_percent": 50.0 + 10 * epoch + i}
        for i, stage in enumerate(stages)
        for epoch in range(3)
    ]
    chart = charts.learning_curves(found)
    assert chart is not None
    return chart, re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg)


def test_each_of_a_few_curves_has_its_name():
    stages = ["teacher", "control", *(f"task_{i}" for i in range(10))]
    chart, texts = curves(*stages)
    assert set(stages) <= set(texts)
    assert chart.caption == "Accuracy on the validation split after each epoch."
    assert "task_9 ends at 81.00 % after 3 epochs" in chart.svg


def test_of_many_curves_those_that_only_a_number_tells_apart_share_a_name():
    chart, texts = curves("teacher", *(f"trial_{i}" for i in range(30)), "hand_picked", "student")
    named = [text for text in texts if text[0].isalpha() and text not in ("epoch", "validation accuracy, %")]
    assert named == ["teacher", "trial (30)", "hand_picked", "student"]
    assert chart.caption.endswith(" Stages that only a number tells apart look alike.")
    assert "; trial (30) end between 71.00 and 100.00 %; " in chart.svg


def test_of_many_curves_with_names_of_their_own_the_first_are_named():
    chart, texts = curves(*(f"{letter} net" for letter in "abcdefghijklmnopq"))
    assert [text for text in texts if text.endswith("net")] == [f"{letter} net" for letter in "abcdefghijkl"]
    assert chart.caption.endswith(" The first 12 of 17 are named.")


def test_the_cards_code_runs(tmp_path, monkeypatch):
    import timm
    import torch
    from safetensors.torch import save_file

    from kdzoo_export.onnx_file import Onnx

    args = {"num_classes": 10, "in_chans": 3, "img_size": [32, 32], "patch_size": 8}
    file = {**RESULTS["exports"][0], "usage": asdict(Onnx(Onnx.Options()).usage("export/student.onnx", "image"))}
    folder = write_run(tmp_path / "run", usage=PIXELS.usage("test_vit", args, None, CLASSES), exports=[file])
    model = timm.create_model("test_vit", **{**args, "img_size": (32, 32)}).eval()
    save_file(model.state_dict(), folder / "student.safetensors")
    (folder / "export").mkdir()
    preprocessing = {"channels": 3, "size": [32, 32], "mean": STUDENT["mean"], "std": STUDENT["std"]}
    metadata = {"preprocessing": json.dumps(preprocessing), "classes": json.dumps(CLASSES)}
    Onnx(Onnx.Options()).export(model, torch.zeros(2, 3, 32, 32), folder / "export" / "student.onnx", metadata, [])
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", card(read_run(folder)), flags=re.DOTALL)
    assert len(blocks) == 2
    plain, onnx = {}, {}
    exec(blocks[0], plain)
    exec(blocks[1], onnx)
    assert plain["logits"].shape == (1, 10)
    assert onnx["answer"] in CLASSES
    pixels = torch.from_numpy(onnx["pixels"])
    with torch.no_grad():
        expected = model((pixels - plain["mean"]) / plain["std"]).numpy()
    np.testing.assert_allclose(onnx["logits"], expected, atol=1e-5)


def test_the_card_says_what_registers_a_network_that_timm_lacks(tmp_path):
    codes = [PIXELS.usage("cifar_resnet8", {}, module, CLASSES)["code"] for module in (None, "some_plugin")]
    assert "makes the network known" not in codes[0]
    folder = write_run(tmp_path / "run", usage={**RESULTS["usage"], "code": codes[1]})
    assert "import some_plugin  # makes the network known to timm\nimport timm\n" in card(read_run(folder))


def test_the_card_has_every_part(tmp_path):
    text = card(read_run(write_run(tmp_path / "run")))
    assert re.findall(r"^#+ .*", text, flags=re.MULTILINE) == [
        "# made-up-numbers: cifar\\_resnet8",
        "## Results on the test split",
        "## Use",
        "## Data and training",
        "## Limits",
    ]
    row = "| **student** | cifar\\_resnet8 | **89.02** | **90.87** | **0.019** | 78.0 k | 324 KiB | 12.6 M | 0.591 |"
    assert row in text
    assert "- Loss weights: task 0.1, kd 0.9" in text
    assert "- Samples: 45,000 train, 5,000 validation, 10,000 test" in text


# --- tables ---------------------------------------------------------------------------------------


def test_the_comparison_as_text():
    few = {"control": None, "paired": None, "exports": [], "student": {**RESULTS["student"], "ece": None}}
    assert comparison_table({**RESULTS, **few}) == (
        "         model            Accuracy (%)  Agreement (% with teacher)  ECE (0 to 1)  Parameters      Size    MACs"
        "  Latency p50 (ms)  p95 (ms)\n"
        "teacher  cifar_resnet110         93.57                      100.00         0.041      1.73 M  6.89 MiB   255 M"
        "              9.87      11.9\n"
        "student  cifar_resnet8           89.02                       90.87             \N{EN DASH}      78.0 k"
        "   324 KiB  12.6 M             0.591     0.715\n"
        "\n"
        "No control, no verdict. The distilled student reaches 89.02 % on 10,000 test samples. "
        "The run has no control, so it cannot say whether distillation was worth it."
    )


def test_runs_are_compared_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = finished_run(Path("runs/a"))
    second = finished_run(Path("runs/b"), control=None, teacher=None, algorithm="other|one")
    assert compare_runs([first, second])[0] == {
        "run": "runs/a",
        "recipe": "made-up-numbers",
        "algorithm": "example_algorithm",
        "student": "cifar_resnet8",
        "seed": 0,
        "teacher_top1_percent": 93.57,
        "control_top1_percent": 87.61,
        "top1_percent": 89.02,
        "gain_points": pytest.approx(1.41),
        "agreement_percent": 90.87,
        "ece": 0.0193,
        "params_m": 0.078042,
        "latency_p50_ms": 0.591,
    }
    lines = compare_table([first, second]).splitlines()
    assert [" ".join(line.split()).replace("\N{EN DASH}", "-") for line in lines] == [
        "run recipe algorithm student seed teacher % control % student % gain agreement % ECE params p50 ms",
        "runs/a made-up-numbers example_algorithm cifar_resnet8 0 93.57 87.61 89.02 +1.41 90.87 0.019 78.0 k 0.591",
        "runs/b made-up-numbers other|one cifar_resnet8 0 - - 89.02 - 90.87 0.019 78.0 k 0.591",
    ]
    assert len({len(line) for line in lines}) == 1


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["results.json", "recipe.yaml", "provenance.json", "metrics.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_run(tmp_path / "run", leave_out=(name,))
    with pytest.raises(ReportError) as caught:
        write_report(folder)
    assert str(caught.value) == f"{folder / name}: is missing; a report needs it, and a finished run has it"
    assert not (folder / "report.html").exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ReportError) as caught:
        write_report(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path / 'none'}: no such run folder"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("results.json", '{"student": 1', "line 1: is not JSON: Expecting ',' delimiter"),
        ("results.json", "[]", "line 1: is not a JSON object but []"),
        ("results.json", "{}", "has no 'student' entry with top1_percent; it is not of a finished run"),
        ("metrics.jsonl", '{"stage": "a"}\n{"stage"\n', "line 2: is not JSON: Expecting ':' delimiter"),
        ("metrics.jsonl", '{"stage": "a"}\n3\n', "line 2: is not a JSON object but 3"),
        ("recipe.yaml", "a: [", "is not YAML: while parsing a flow node"),
        (
            "results.json",
            b"\xff",
            "cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, name, text, told):
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ReportError) as caught:
        write_report(folder)
    assert str(caught.value).startswith(f"{folder / name}: {told}")


def test_a_report_that_cannot_be_written_is_an_output_error(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    with pytest.raises(OutputError):
        write_report(folder)


def test_reading_and_telling_needs_no_torch():
    code = "import sys, kdzoo.report; assert not {'torch', 'timm', 'matplotlib', 'pluggy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
