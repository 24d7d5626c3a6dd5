"""report.html and the model card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
from run_of_made_up_numbers import CLASSES, ITEMS, PIXEL, REJECTED, RESULTS, STUDENT, VARIANTS, rows, write_run

from kdzoo.data.inputs import Pixels
from kdzoo.errors import OutputError, ReportError
from kdzoo.report.compare import comparison_table
from kdzoo.report.drawing import VARIABLES
from kdzoo.report.model_card import card
from kdzoo.report.page import page
from kdzoo.report.reading import read_json, read_run
from kdzoo.report.results import parse_results
from kdzoo.report.run_summary import heading
from kdzoo.report.writing import write_report


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
    assert len(drawings) == 6  # three panels of loss terms
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
    assert all(re.search(rf"--{name}: #", part) for part in (light, dark) for name in VARIABLES.values())


def test_the_page_says_what_the_run_found(made):
    text = read(made).text
    for wanted in (
        "In this run the distilled student is better",
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
    return write_run(tmp_path_factory.mktemp("runs") / "0001-seed0", report_items=ITEMS, variants=VARIANTS)


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


def test_names_in_items_are_escaped(tmp_path):
    evil = "\"><script>alert(1)</script><b a='&$x_1$\\1"

    def spoilt(value):
        if isinstance(value, str):
            return value if value in ("table", "heat_map", "scatter", "images", PIXEL) else evil
        if isinstance(value, list):
            return [spoilt(inner) for inner in value]
        return {key: spoilt(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    folder = write_run(tmp_path / "run", report_items=spoilt(ITEMS), variants=[{**VARIANTS[0], "label": evil}])
    made = page(read_run(folder))
    assert "script" not in {tag for tag, _ in read(made).seen}
    assert "<script" not in card(read_run(folder))


def test_on_a_phone_every_number_has_its_head(showing):
    made = page(read_run(showing))
    assert "@media (max-width: 62rem)" in made
    heads = [attributes.get("data-head") for tag, attributes in read(made).seen if tag == "td"]
    assert len(heads) > 60
    assert all(heads)
    assert {"Accuracy (%)", "p95 (ms)", "Latency (of the student's)", "parameters", "precision"} <= set(heads)


def test_drawings_are_as_wide_as_there_is_room(showing):
    for tag, attributes in read(page(read_run(showing))).seen:
        if tag == "svg":
            assert attributes["viewbox"]
            assert not attributes.keys() & {"width", "height"}
            assert re.fullmatch(r"max-width: [\d.]+in", attributes["style"])


def test_the_switches_of_torch_are_folded_below_the_rest_of_the_provenance(showing):
    told = page(read_run(showing)).split("<h2>Provenance</h2>")[1]
    before, folded = told.split("<details><summary>2 settings</summary>")
    assert "environment.torch</th>" in before
    assert "settings" not in before
    assert "torch.backends.cuda.math_sdp</th>" in folded.split("</details>")[0]


@pytest.mark.parametrize("select", ["last", "best"])
def test_the_best_epoch_is_shown_where_its_weights_are_kept(tmp_path, select):
    folder = write_run(tmp_path / "run")
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("  epochs: 30\n", f"  epochs: 30\n  select: {select}\n"))
    heads = [attributes.get("data-head") for tag, attributes in read(page(read_run(folder))).seen if tag == "td"]
    assert ("best epoch" in heads) is (select == "best")


@pytest.mark.parametrize(("top_k", "shown"), [(10, "the 10 likeliest of 100 classes"), (None, "all 100 classes")])
def test_the_page_says_what_was_kept_of_a_teachers_answers(tmp_path, top_k, shown):
    student = {"name": "student", "answers": [{"classes": 100, "top_k": top_k, "dtype": "float16"}]}
    made = page(read_run(write_run(tmp_path / "run", stages=[{"name": "control", "answers": []}, student])))
    assert f"{shown}, float16" in made
    assert ("above it the other classes weigh more than the teacher gave them" in " ".join(made.split())) is bool(top_k)


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
    nothing = dict.fromkeys(("teacher", "control", "paired", "seconds", "usage"))
    nothing |= {"per_class": {}, "pairing": {}, "warnings": [], "exports": []}
    folder = write_run(tmp_path / "run", ("student.json",), student=bare, stages=[], data={}, **nothing)
    train = [json.dumps(row) for row in rows(2) if row["split"] == "train"]
    (folder / "metrics.jsonl").write_text("\n".join(train) + "\n")
    write_report(folder)
    reader = read((folder / "report.html").read_text())
    assert "No control, no verdict" in reader.text
    assert "The distilled student reaches 89.02 %." in reader.text
    said = [attributes["aria-label"].split(" from ")[0] for tag, attributes in reader.seen if tag == "svg"]
    assert said == ["teacher: task", "control: task", "student: task"]
    assert "## Use" not in (folder / "README.md").read_text()


def test_peers_and_several_teachers_have_rows_of_their_own(tmp_path):
    teachers = [{**RESULTS["teacher"], "label": f"teacher {i}", "index": i} for i in range(2)]
    peers = [{**RESULTS["control"], "label": "peer 0", "network": "peer"}]
    folder = write_run(tmp_path / "run", teachers=teachers, peers=peers)
    labels = [entry.label for entry in read_run(folder).results.entries()]
    assert labels == ["teacher 0", "teacher 1", "control", "student", "onnx", "onnx int8", "peer 0"]
    assert "cifar_resnet110 + cifar_resnet110" in read(page(read_run(folder))).text


def test_networks_of_one_name_are_told_apart_by_their_size():
    teacher = {**RESULTS["teacher"], "model": "text_classifier"}
    student = {**RESULTS["student"], "model": "text_classifier"}
    both = parse_results({**RESULTS, "teacher": teacher, "student": student})
    assert heading(both) == "text_classifier, 78.0 k parameters from text_classifier, 1.73 M parameters"
    alike = parse_results({**RESULTS, "teacher": {**teacher, "params_m": student["params_m"]}, "student": student})
    assert heading(alike) == "text_classifier from text_classifier"
    assert heading(parse_results(RESULTS)) == "cifar_resnet8 from cifar_resnet110"


# --- the model card -------------------------------------------------------------------------------


def usage(model, args, imports=None):
    """How the student is used, as a run stores it."""
    pixels = Pixels(channels=3, size=(32, 32), mean=tuple(STUDENT["mean"]), std=tuple(STUDENT["std"]))
    return pixels.usage(model, args, imports, CLASSES)


def test_the_cards_code_runs(tmp_path, monkeypatch):
    import timm
    import torch
    from onnx import TensorProto, helper, numpy_helper, save
    from safetensors.torch import save_file

    from kdzoo_export.onnx_file import Onnx

    args = {"num_classes": 10, "in_chans": 3, "img_size": [32, 32], "patch_size": 8}
    code = Onnx(Onnx.Options()).usage("export/student.onnx", "image")
    exports = [{**RESULTS["exports"][0], "usage": asdict(code)}]
    folder = write_run(tmp_path / "run", usage=usage("test_vit", args), exports=exports)
    model = timm.create_model("test_vit", **{**args, "img_size": (32, 32)}).eval()
    save_file(model.state_dict(), folder / "student.safetensors")

    weights = np.random.default_rng(0).standard_normal((3 * 32 * 32, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["inputs"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    inputs = helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["N", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "linear", [inputs], [logits], [numpy_helper.from_array(weights, "weights")])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    preprocessing = {"channels": 3, "size": [32, 32], "mean": STUDENT["mean"], "std": STUDENT["std"]}
    helper.set_model_props(file, {"preprocessing": json.dumps(preprocessing), "classes": json.dumps(CLASSES)})
    (folder / "export").mkdir()
    save(file, folder / "export" / "student.onnx")

    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", card(read_run(folder)), flags=re.DOTALL)
    assert len(blocks) == 2
    plain, onnx = {}, {}
    exec(blocks[0], plain)
    exec(blocks[1], onnx)
    with torch.no_grad():
        expected = model((plain["pixels"] - plain["mean"]) / plain["std"])
    torch.testing.assert_close(plain["logits"], expected)
    normalised = (onnx["pixels"] - plain["mean"].numpy()) / plain["std"].numpy()
    np.testing.assert_allclose(onnx["logits"], normalised.reshape(1, -1) @ weights, rtol=1e-3, atol=1e-3)
    assert onnx["answer"] in CLASSES


def test_the_card_says_what_registers_a_network_that_timm_lacks(tmp_path):
    folder = write_run(tmp_path / "run", usage=usage("cifar_resnet8", {}, "some_plugin"))
    assert "import some_plugin  # makes the network known to timm\nimport timm\n" in card(read_run(folder))


def test_code_cannot_leave_its_fence(tmp_path):
    evil = {**RESULTS["usage"], "code": "a = 1\n```\n<script>\n````", "inputs": "`one` and <b> and `"}
    written = card(read_run(write_run(tmp_path / "run", usage=evil)))
    assert "`````python\na = 1\n```\n<script>\n````\n`````\n" in written
    assert "Inputs: \\`one\\` and &lt;b&gt; and \\`" in written


def test_a_rejected_file_is_said_to_be_rejected_and_why(tmp_path):
    run = read_run(write_run(tmp_path / "run", exports=[REJECTED]))
    why = "top1_percent 71.25 is 17.77 points below the student's 89.02; 1.0 is allowed"
    assert f"Rejected: {why}" in read(page(run)).text
    written = card(run)
    assert f"onnx int4 was rejected and is not delivered: {why.replace('_', chr(92) + '_')}.\n" in written
    assert "| onnx int4 | cifar\\_resnet8 · student.int4.onnx.rejected | 71.25 |" in written
    assert "onnxruntime" not in written


@pytest.mark.parametrize("bad", ["\x1b[2J\x1b]0;x\x07", "a\u202eb\u200fc", "two\nlines", "\x00"])
def test_no_character_is_hidden(tmp_path, bad):
    entry = {**RESULTS["student"], "label": bad, "model": bad}
    folder = write_run(
        tmp_path / "run",
        student=entry,
        exports=[],
        warnings=[bad],
        algorithm=bad,
        data={**RESULTS["data"], "name": bad},
        per_class={"classes": [bad, "b"], "top1_percent": {"student": [1.0, 2.0], "control": [2.0, None]}},
        report_items=[{**ITEMS[0], "columns": [bad, "a", bad], "note": bad}, {**ITEMS[1], "rows": [bad, bad]}],
    )
    (folder / "student.json").write_text(json.dumps({**STUDENT, "classes": [bad] * 2}))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({**row, "stage": bad, bad: 1.0}) + "\n" for row in rows(1))
    )
    (folder / "provenance.json").write_text(json.dumps({bad: bad}))
    write_report(folder)
    for name in ("report.html", "README.md"):
        lines = (folder / name).read_text(encoding="utf-8").split("\n")
        assert [line for line in lines if not line.replace("\u00a0", "").isprintable()] == []
    assert comparison_table(read_json(folder / "results.json")).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["results.json", "provenance.json", "student.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": "\\ud800"}', '{"a": ' + "9" * 5000 + "}", '{"a": NaN', "{}{}", ""]
)
def test_json_that_cannot_be_read_is_named(tmp_path, name, text):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(text)
    if (name, text) == ("metrics.jsonl", ""):
        return  # a run without a row is one
    with pytest.raises(ReportError) as caught:
        read_run(folder)
    assert str(caught.value).startswith(f"{folder / name}: ")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"exports": [3]}, "exports.0: input should be a valid dictionary or instance of Entry, got 3"),
        ({"student": {"label": "student", "top1_percent": 1.0}}, "student.model: field required"),
        ({"warnings": "none"}, "warnings: input should be a valid list, got 'none'"),
        ({"teacher": {**RESULTS["teacher"], "ece": "low"}}, "teacher.ece: input should be a valid number, got 'low'"),
        ({"report_items": [{"kind": "song", "title": ""}]}, "report_items.0: input tag 'song' found using 'kind'"),
    ],
)
def test_results_that_no_run_writes_are_named(tmp_path, changes, problem):
    folder = write_run(tmp_path / "run", **changes)
    with pytest.raises(ReportError) as caught:
        read_run(folder)
    assert str(caught.value).startswith(f"{folder / 'results.json'}: {problem}")


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
        ("results.json", "{}", "student: field required; it is not as a finished run writes it"),
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


def test_a_report_needs_no_torch():
    heavy = "{'torch', 'timm', 'matplotlib', 'pluggy'}"
    code = f"import sys, kdzoo.report.writing, kdzoo.report.compare; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
