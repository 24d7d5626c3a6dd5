"""A study's own folder: study.json, study.csv and report.html, and its table on a terminal."""

from __future__ import annotations

import csv
import json
import re

import pytest
from study_of_made_up_numbers import arm, many_arms, study

from kdzoo.errors import CorruptError, ReportError
from kdzoo.report.study_page import study_page
from kdzoo.report.study_table import study_parts, study_table
from kdzoo.storage import sealed_folder
from kdzoo.study.ranking import ranked
from kdzoo.study.writing import read_study, write_study


@pytest.fixture(scope="module")
def twelve():
    return ranked(many_arms(12))


@pytest.fixture(scope="module")
def page(twelve):
    return study_page(twelve)


@pytest.fixture
def undrawn(monkeypatch):
    """The page without its charts, which take a second."""
    monkeypatch.setattr("kdzoo.report.study_page.study_charts", lambda study: [])


@pytest.mark.usefixtures("undrawn")
def test_a_study_is_read_again_as_it_was_written(tmp_path, twelve):
    write_study(tmp_path / "study", twelve)
    assert read_study(tmp_path / "study") == json.loads(json.dumps(twelve))
    fewer = ranked(many_arms(3))
    write_study(tmp_path / "study", fewer)
    assert len(read_study(tmp_path / "study")["arms"]) == 3
    with pytest.raises(ReportError, match="holds no study; `kdzoo study FILE` writes one"):
        read_study(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_a_changed_file_is_not_read_and_is_written_anew(tmp_path, twelve):
    write_study(tmp_path, twelve)
    path = tmp_path / "study.json"
    path.write_bytes(path.read_bytes().replace(b'"rank": 1', b'"rank": 9', 1))
    with pytest.raises(CorruptError, match="its sha256 is not the recorded one"):
        read_study(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CorruptError):
        read_study(tmp_path)
    write_study(tmp_path, twelve)
    assert read_study(tmp_path)["name"] == "made-up"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_what_a_kill_leaves_verifies(tmp_path, monkeypatch, twelve, written):
    write_study(tmp_path, twelve)
    replace = sealed_folder.replace_files

    def killed(folder, files):
        replace(folder, dict(list(files.items())[:written]))
        raise KeyboardInterrupt

    monkeypatch.setattr(sealed_folder, "replace_files", killed)
    with pytest.raises(KeyboardInterrupt):
        write_study(tmp_path, ranked(many_arms(3)))
    assert len(read_study(tmp_path)["arms"]) == (3 if written else 12)
    for name in ("study.json", "study.csv", "report.html"):
        assert sealed_folder.read_together(tmp_path, name, "a study")


@pytest.mark.usefixtures("undrawn")
def test_csv_has_a_row_a_run(tmp_path):
    content = ranked(study(arm("kd", [0.5, None], settings={"train.epochs": 10}), arm("at", [1.0, 1.1])))
    write_study(tmp_path, content)
    with open(tmp_path / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["status"]) for row in rows] == [
        ("kd", "0", "finished"),
        ("kd", "1", "failed"),
        ("at", "0", "finished"),
        ("at", "1", "finished"),
    ]
    assert float(rows[0]["top1_percent"]) == 90.5
    assert float(rows[0]["onnx int8.latency_p50_ms"]) == 0.14
    assert float(rows[0]["training_pmacs.total"]) == 0.12
    assert rows[0]["settings.train.epochs"] == "10"
    assert rows[1]["top1_percent"] == rows[1]["onnx.size_mib"] == ""
    assert rows[1]["error"] == "DivergedError: the loss is not finite"


# --- terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [120, 80, 60, 50])
def test_the_table_fits_and_breaks_no_word(twelve, width):
    text = study_table(twelve, width)
    assert max(map(len, text.splitlines())) <= width
    said = text.partition("\n\n")[2]
    assert not re.search(r"^%|\bp$|[=<]$", said, re.MULTILINE), "a number is torn from what it belongs to"
    words = {word for row in twelve["ranking"] for word in re.split(r"(?<=[_-])", row["label"])}
    for line in text.partition("Not shown")[0].splitlines()[2:]:
        name = line[4:].split(" ")[0]
        assert {word for word in re.split(r"(?<=[_-])", name) if word} <= words, line


def test_the_table_says_what_is_decided():
    lines = study_table(ranked(study(arm("kd", [0.5, 0.6, 0.4]), arm("dkd", [1.5, 1.6, 1.5])))).splitlines()
    assert re.search(r"^1\s+dkd\s+3\s+91\.53 ± 0\.06\s+\+1\.53 ± 0\.14 \*", lines[2])
    assert "baseline" in lines[3]
    assert (
        "* decided after Holm's correction; the others are not decided. Size and latency: the exported file onnx."
    ) in lines


def test_parts_of_the_table_have_the_tone_of_the_verdict(twelve):
    parts = dict(study_parts(twelve, 80))
    assert parts["Take algorithm_4."] == "good"
    assert "\n".join(parts) == study_table(twelve, 80)


def test_a_study_of_one_seed_has_a_table_without_intervals():
    text = study_table(ranked(study(arm("kd", [0.5]), arm("dkd", [1.5]))), 80)
    assert "±" not in text.split("\n", 2)[2]
    assert "One seed decides nothing." in text


# --- page -------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_says_the_verdict_first(page, twelve):
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]+"', page.replace("http://www.w3.org", ""))
    assert page.index(twelve["verdict"]["headline"]) < page.index('id="ranking"') < page.index("<svg")
    assert page.count("<svg") == 5
    assert "DivergedError: the loss is not finite" in page
    assert "kdzoo study made-up.yaml" in page


def test_names_and_errors_are_escaped():
    evil = arm("<b>kd</b>", [0.5, 0.6, 0.4])
    evil["runs"][2] |= {"status": "failed", "error": "<script>alert(1)</script>\nsecond line"}
    page = study_page(ranked(study(evil, arm("dkd", [1.0, 1.2, 1.1]), baseline=None, name="<i>x</i>")))
    for markup in ("<b>kd", "<script>alert", "<i>x"):
        assert markup not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\nsecond line" in page


def test_the_ranking_sorts_by_numbers(page):
    body = page[page.index('id="ranking"') :].split("</table>")[0]
    heads = re.findall(r'<th scope="col">([^<]*)', body)
    numbers = ["Step", "Training", "Parameters", "Size", "Latency"]
    assert heads == ["Arm", "Rank", "Accuracy", "Over the control", "Over kd", *numbers]
    first = body.split("<tr")[2]
    values = re.findall(r'data-value="([^"]+)"', first)
    assert len(values) == len(heads)
    assert float(values[1]) == 1
    assert float(values[2]) > 90


def test_what_was_not_measured_has_no_column_and_equal_compute_no_plot():
    arms = [arm(label, [0.5, 0.6, 0.4]) for label in ("kd", "dkd")]
    for run in (run for each in arms for run in each["runs"]):
        run["files"] = []
    page = study_page(ranked(study(*arms)))
    ranking = page[page.index('id="ranking"') :].split("</table>")[0]
    assert "Training" in ranking
    assert not re.search("Size|Latency", ranking)
    assert "Gain against step time" in page
    assert "Gain against training compute" not in page


def test_what_a_study_without_result_shows():
    page = study_page(ranked(study(arm("kd", [None, None]))))
    assert "No run finished" in page
    assert "<svg" not in page
    assert "2 runs without a result" in page
