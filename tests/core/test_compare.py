"""Numbers rounded and side by side, on a terminal."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from run_of_made_up_numbers import OF_CONTROL, RECIPE, REJECTED, RESULTS, finished_run, write_run

from kdzoo.errors import CorruptError, ReportError
from kdzoo.report.compare import comparison_table
from kdzoo.report.compare_page import compare_page
from kdzoo.report.compared_runs import compare_runs, compare_table
from kdzoo.report.measurements import comparison
from kdzoo.report.results import parse_results
from kdzoo.report.rounding import counted, duration, significant, sized
from kdzoo.report.tables import text_table
from kdzoo.storage.run_folder import RunFolder


def test_the_best_of_a_column_is_marked_where_it_differs_as_shown_teachers_aside():
    marked = {row.name: [cell.best for cell in row.cells] for row in comparison(parse_results(RESULTS)).rows}
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
        (3e13, "30.0 T"),
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


def test_the_comparison_as_text():
    few = {"control": None, "paired": None, "exports": [], "student": {**RESULTS["student"], "ece": None}}
    assert (
        comparison_table({**RESULTS, **few})
        == """\
                                    Agreement
                          Accuracy     % with     ECE                                Latency p50    p95
         model                   %    teacher  0 to 1  Parameters      Size    MACs           ms     ms
teacher  cifar_resnet110     93.57     100.00   0.041      1.73 M  6.89 MiB   255 M         9.87   11.9
student  cifar_resnet8       89.02      90.87       \N{EN DASH}      78.0 k   324 KiB  12.6 M        0.591  0.715

No control, no verdict.
The distilled student reaches 89.02 % on 10,000 test samples. \
The run has no control, so it cannot say whether distillation helped."""
    )


def test_on_a_narrow_terminal_the_comparison_has_fewer_columns():
    for width in (40, 50, 60, 80, 100, 120):
        lines = comparison_table(RESULTS, width=width).splitlines()
        table = lines[: lines.index("")]
        assert max(map(len, lines)) <= width
        assert {"teacher", "control", "student", "onnx"} <= {line.split()[0] for line in table}
    narrow = comparison_table(RESULTS, width=80)
    assert "Not shown, for want of width: ECE, Parameters, MACs, p95.\n" in narrow
    assert "Not shown" not in comparison_table(RESULTS, width=200)


def test_a_rejected_file_is_a_row_that_is_never_the_best_and_says_why():
    rows = {row.name: row for row in comparison(parse_results({**RESULTS, "exports": [REJECTED]})).rows}
    assert rows["onnx int4"].cells[0].text == "71.25"
    assert not any(cell.best for cell in rows["onnx int4"].cells)
    assert rows["onnx int4"].problems == tuple(REJECTED["rejected"])
    assert f"Rejected: onnx int4: {REJECTED['rejected'][0]}\n" in comparison_table({**RESULTS, "exports": [REJECTED]})


def test_a_rejected_file_that_could_not_be_measured_is_a_row_too():
    unmeasured = {**REJECTED, "top1_percent": None, "agreement_percent": None, "ece": None, "size_mib": None}
    rows = comparison(parse_results({**RESULTS, "exports": [unmeasured]})).rows
    assert [cell.text for cell in rows[-1].cells][:3] == ["\N{EN DASH}"] * 3


def test_each_network_is_followed_by_its_files():
    exports = [*RESULTS["exports"], OF_CONTROL]
    names = [row.name for row in comparison(parse_results({**RESULTS, "exports": exports})).rows]
    assert names == ["teacher", "control", "onnx int8 of control", "student", "onnx", "onnx int8"]


def test_runs_are_compared_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = finished_run(Path("runs/a"))
    second = finished_run(Path("runs/b"), control=None, teacher=None, algorithm="other|one")
    assert compare_runs([first, second]).runs[0] == {
        "run": "runs/a",
        "state": "finished",
        "problem": "",
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
    lines = compare_table(compare_runs([first, second])).splitlines()
    assert [" ".join(line.split()).replace("\N{EN DASH}", "-") for line in lines] == [
        "in runs",
        "recipe: made-up-numbers",
        "student: cifar_resnet8",
        "teacher control student agreement p50",
        "run algorithm seed % % % gain % ECE params ms",
        "a example_algorithm 0 93.57 87.61 89.02 +1.41 90.87 0.019 78.0 k 0.591",
        "b other|one 0 - - 89.02 - 90.87 0.019 78.0 k 0.591",
    ]
    for width in (80, 120):
        assert max(map(len, compare_table(compare_runs([first, second]), width).splitlines())) <= width


def begun(root, recipe_text=RECIPE, finish=False):
    folder = RunFolder.start(
        root, name="made-up-numbers", seed=0, recipe_text=recipe_text, recipe_hash="5e0f", recipe_fields={}, new=True
    )
    with folder:
        if finish:
            write_run(folder.root)
            folder.finish()
    return folder.root


def test_an_unfinished_run_is_a_row(tmp_path):
    finished, unfinished = begun(tmp_path, finish=True), begun(tmp_path)
    row = compare_runs([finished, unfinished]).runs[1]
    assert (row["state"], row["algorithm"], row["seed"]) == ("unfinished", "example_algorithm", 0)
    assert row["top1_percent"] is None
    lines = compare_table(compare_runs([finished, unfinished])).splitlines()
    assert lines[0] == f"in {tmp_path / 'made-up-numbers'}"
    assert lines[-1].split() == ["0002-seed0", "(unfinished)", "0", *["\N{EN DASH}"] * 8]


def test_every_damaged_run_is_named(tmp_path):
    good, damaged, cut = (begun(tmp_path, finish=True) for _ in range(3))
    changed = damaged / "results.json"
    changed.write_text(changed.read_text().replace("89.02", "99.02"))
    (cut / "run.json").write_text("{")
    with pytest.raises(CorruptError) as caught:
        compare_runs([good, damaged, cut])
    assert str(changed) in str(caught.value)
    assert str(cut) in str(caught.value)
    assert str(good) not in str(caught.value)


def seeded(out: Path, seed: int, gain: float, epochs: int = 3, finish: bool = True) -> Path:
    """A run of a seed, whose student is so many points above its control."""
    folder = RunFolder.start(
        out,
        name="made-up-numbers",
        seed=seed,
        recipe_text=RECIPE,
        recipe_hash="5e0f",
        recipe_fields={"seed": seed, "train": {"epochs": epochs}},
        new=True,
    )
    with folder:
        if finish:
            write_run(folder.root, student={**RESULTS["student"], "top1_percent": 87.61 + gain})
            provenance = json.loads((folder.root / "provenance.json").read_text())
            (folder.root / "provenance.json").write_text(json.dumps({**provenance, "seed": seed}))
            folder.finish()
    return folder.root


@pytest.fixture
def several(tmp_path):
    """Two recipes of one name: one with three seeds, of which the first ran twice, and one with a single seed."""
    for seed, gain in ((0, 9.0), (0, 1.0), (1, 2.0), (2, 4.5)):
        seeded(tmp_path, seed, gain)
    seeded(tmp_path, 0, 3.0, epochs=9)
    seeded(tmp_path, 3, 0.0, finish=False)
    damaged = seeded(tmp_path, 4, 1.0)
    (damaged / "results.json").write_text("{}")
    return tmp_path


def test_recipes_are_compared_with_mean_and_spread_over_seeds(several):
    found = compare_runs([several])
    assert [row["state"] for row in found.runs] == ["finished"] * 5 + ["unfinished", "damaged"]
    first, second = found.recipes
    assert (first["recipe"], first["seeds"], first["changed"]) == ("made-up-numbers", [0, 1, 2], [])
    assert [Path(run).name for run in first["runs"]] == ["0002-seed0", "0003-seed1", "0004-seed2"], "the newest counts"
    assert first["gain_points"] == {"mean": pytest.approx(2.5), "std": pytest.approx(math.sqrt(3.25))}
    assert first["control_top1_percent"] == {"mean": pytest.approx(87.61), "std": pytest.approx(0.0)}
    assert (second["seeds"], second["changed"]) == ([0], ["train.epochs 3 -> 9"])
    assert second["gain_points"] == {"mean": pytest.approx(3.0), "std": None}
    json.dumps(vars(found))
    lines = compare_table(found).splitlines()
    below = lines[lines.index("mean ± standard deviation over seeds") :]
    assert [line.split()[:2] for line in below[-2:]] == [["made-up-numbers", "3"], ["made-up-numbers", "(train.epochs"]]
    assert "+2.50 ± 1.80" in below[-2]
    assert "+3.00  " in below[-1]
    damaged = several / "made-up-numbers" / "0007-seed4"
    assert any(
        line.startswith(f"damaged: {damaged}: 1 of 5 files do not verify {damaged}/results.json") for line in lines
    )
    for width in (80, 120):
        table = [line for line in compare_table(found, width).splitlines() if not line.startswith(("damaged", "in "))]
        assert max(map(len, table)) <= width


def test_folders_of_runs_and_runs_are_compared_together(several):
    recipe = several / "made-up-numbers"
    other = seeded(several / "more", 7, 1.0)
    rows = compare_runs([recipe, other]).runs
    assert [Path(row["run"]).name for row in rows][-2:] == ["0007-seed4", "0001-seed7"]
    assert len(rows) == len(compare_runs([several / "more", several]).runs) == 8
    with pytest.raises(ReportError) as caught:
        compare_runs([several, several / "nowhere"])
    assert str(caught.value) == f"{several / 'nowhere'}: no such run folder"
    with pytest.raises(CorruptError):
        compare_runs([recipe / "0007-seed4"])


def test_the_page_of_compared_runs_loads_nothing_and_escapes_names(several):
    hostile = seeded(several / "<b>", 8, 1.0, epochs=30)
    page = compare_page(compare_runs([several, hostile]))
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    assert "<h2>Over seeds</h2>" in page
    assert page.count('<table class="ranking">') == 2
    assert ">+2.50<small>± 1.80</small>" in page
    assert "<h2>1 damaged run</h2>" in page
    alone = compare_page(compare_runs([hostile, hostile]))
    assert "<h2>Over seeds</h2>" not in alone
    assert "damaged" not in alone


def test_a_recipe_of_an_unfinished_run_may_hold_anything(tmp_path):
    odd = begun(tmp_path, "name: x\nalgorithm: [1]\nmodels: 3\n")
    assert compare_runs([odd]).runs[0]["algorithm"] is None


# --- text tables ----------------------------------------------------------------------------------


def test_no_word_of_a_table_is_broken():
    rows = [["a_long_name-of-a-run/0001-seed0", "1.25"], ["short", "100"]]
    assert text_table(["run", "value"], rows, width=20) == (
        "run           value\na_long_name-   1.25\nof-a-run/\n0001-seed0\nshort           100"
    )
    assert text_table(["what"], [["at 0.25 of it"]], width=6) == "what\nat\n0.25\nof it"
    assert "unbreakable" in text_table(["run"], [["unbreakable"]], width=4)


def test_a_cell_of_several_lines_begins_at_the_top_and_a_head_ends_at_the_bottom():
    assert text_table(["name", "size\nKiB"], [["one\ntwo", "3"]]) == "      size\nname   KiB\none      3\ntwo"


def test_columns_are_left_out_in_the_order_given():
    table = text_table(["a", "b", "c"], [["1", "2", "3"]], width=4, spare=(1, 2))
    assert table == "a  c\n1  3\nNot shown, for want of width: b."
