"""kdzoo from Python: what importing it imports, recipes as objects, and errors with the command line's text."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from study_of_made_up_numbers import arm, study

import kdzoo
from kdzoo import cli
from kdzoo.errors import KdzooError, NeedsError, RecipeError, ReportError, UnknownName
from kdzoo.python.session import data_frame, screen
from kdzoo.study import studies
from kdzoo.study.ranking import ranked
from kdzoo.study.writing import write_study
from kdzoo.terminal import Display, stop_signals

HEAVY = ("torch", "torchvision", "timm", "pandas", "numpy", "pydantic", "typer", "rich")


def imported_by(code: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter has imported after some code."""
    asked = f"{code}; import sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_kdzoo_imports_nothing_heavy():
    assert imported_by("import kdzoo; dir(kdzoo)") == set()
    assert imported_by("import kdzoo; kdzoo.losses.kd_loss") >= {"torch"}  # the search finds what is imported


def test_everything_public_is_there_and_documented():
    assert set(dir(kdzoo)) == set(kdzoo.__all__)
    for name in kdzoo.__all__:
        assert getattr(kdzoo, name) is not None
    for name in set(kdzoo.__all__) - {"__version__", "losses"}:
        assert getattr(kdzoo, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'kdzoo' has no attribute 'runn'"):
        kdzoo.runn  # noqa: B018


def test_packages_of_one_name_do_not_hide_functions():
    code = (
        "import kdzoo, kdzoo.recipe.values, kdzoo.run.launching, kdzoo.study; from kdzoo.run import launching; "
        "assert callable(kdzoo.run) and callable(kdzoo.recipe) and callable(kdzoo.study) and launching.POLL_S"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- recipes ------------------------------------------------------------------------------------


def test_a_recipe_from_a_file_a_mapping_keywords_and_itself_is_the_same(tmp_path):
    bundled = kdzoo.recipe("digits/kd")
    path = bundled.save(tmp_path / "mine.yaml")
    keys = bundled.model_dump(mode="json")
    assert bundled == kdzoo.recipe(path) == kdzoo.recipe(str(path)) == kdzoo.recipe(keys) == kdzoo.recipe(**keys)
    assert bundled == kdzoo.recipe(bundled) == kdzoo.Recipe(**keys)
    assert isinstance(bundled, kdzoo.Recipe)
    assert path.read_text() == str(bundled)
    assert bundled.train.epochs == 30


def test_overrides_are_typed_and_change_a_copy():
    bundled = kdzoo.recipe("digits/kd")
    overrides = {
        "train.epochs": 2,
        "description": "no",
        "data.root": Path("some where"),
        "export": [{"format": "onnx", "quantize": "int8"}],
        "train.optimizer.lr": 1e-3,
        "control": False,
        "expected": None,
    }
    changed = kdzoo.recipe(bundled, overrides)
    assert (changed.train.epochs, changed.description, changed.data.root) == (2, "no", "some where")
    assert (changed.export[0].quantize, changed.train.optimizer.lr) == ("int8", 1e-3)
    assert (changed.control, changed.expected) == (False, None)
    assert bundled.train.epochs == 30


def refusal(*arguments, **keys) -> str:
    with pytest.raises(KdzooError) as refused:
        kdzoo.recipe(*arguments, **keys)
    return str(refused.value)


def test_all_problems_of_a_mapping_at_once_without_lines():
    assert refusal({"version": 1, "name": "Bad", "train": {"epochs": 0}, "algorithm": {"name": "kdd"}}) == "\n".join(
        [
            "recipe: 5 problems",
            "  models: required, but missing",
            "  data: required, but missing",
            "  name: must be 1 to 64 of a-z, 0-9, '_', '.' and '-', the first a letter or digit, got 'Bad'",
            "  train.epochs: must be at least 1, got 0",
            f"  algorithm.name: unknown algorithm 'kdd'; did you mean 'kd'? known: {KNOWN} ...",
        ]
    )


KNOWN = "adversarial_features, adversarial_logits, afd_online, at, born_again, byot, ca_mkd, codistill"


def test_what_yaml_cannot_hold_is_refused_with_its_place():
    must = "must be text, a number, true, false, nothing, a list or a mapping"
    assert refusal("digits/kd", {"data.options": {"x": [1, {2}]}}) == (
        f"recipe: 1 problem\n  data.options.x.1: {must}, got a Python set"
    )
    assert refusal("digits/kd", {"train.epochs": "2"}).endswith(
        "-o train.epochs: must be a whole number, got '2', which is text; write it without quotes"
    )
    assert refusal("digits/kd", {"train.optimizer.lr": float("nan")}) == (
        "recipe: 1 problem\n  train.optimizer.lr: must be a finite number, got nan"
    )


def test_a_recipe_is_made_of_one_thing():
    expected = "a recipe is made of one thing: a file, a name, a mapping, a recipe, or keys such as name=..."
    assert refusal() == refusal("digits/kd", name="x") == expected


def test_a_recipe_made_directly_has_the_same_errors():
    with pytest.raises(RecipeError, match=r"^recipe: 4 problems\n  name: required, but missing"):
        kdzoo.Recipe(version=1)


# --- running ------------------------------------------------------------------------------------

WRONG = [
    (["digits/kdd"], {}, UnknownName),
    (["digits/kd"], {"train.epoch": 2}, RecipeError),
    (["digits/kd"], {"train.epochs": 0, "algorithm.name": "kdd"}, RecipeError),
    (["no/such.yaml"], {}, RecipeError),
    (["digits/kd"], {"models.student.name": "resnet1999"}, UnknownName),
    (["digits/dkd"], {"models.teacher": None}, RecipeError),
]


@pytest.mark.parametrize(("recipe", "overrides", "kind"), WRONG)
def test_errors_have_the_text_of_the_command_line(recipe, overrides, kind, tmp_path, monkeypatch, capsys):
    with pytest.raises(kind) as raised:
        kdzoo.run(*recipe, overrides=overrides, out=tmp_path, progress=False)
    texts = {None: "null"}
    options = [part for key, value in overrides.items() for part in ("-o", f"{key}={texts.get(value, value)}")]
    monkeypatch.setattr(sys, "argv", ["kdzoo", "run", *recipe, *options, "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"error: {raised.value}\n"


def test_one_of_several_processes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NeedsError, match="this is one of 2 processes that torchrun started"):
        kdzoo.run("digits/kd", out=tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ReportError, match="not a run folder: it holds no run"):
        kdzoo.load(tmp_path)


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(KdzooError) as refused:
        data_frame([])
    assert str(refused.value) == 'a DataFrame needs pandas: pip install "kdzoo[pandas]"'


def test_in_a_notebook_progress_is_lines_of_the_cell(monkeypatch, capsys):
    class Shell:
        kernel = None

    module = type(sys)("IPython")
    module.get_ipython = Shell
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a kernel does
    with screen(Display, progress=True) as shown:
        shown.note("teacher: training")
    assert capsys.readouterr() == ("teacher: training\n", "")
    with screen(Display, progress=False) as shown:
        shown.note("teacher: training")
    assert capsys.readouterr() == ("", "")


def test_a_second_interrupt_raises_and_leaves_no_handler():
    before = signal.getsignal(signal.SIGINT)
    with stop_signals(exits=False) as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# --- studies ------------------------------------------------------------------------------------


@pytest.fixture
def ranked_study(tmp_path):
    write_study(tmp_path / "study", ranked(study(arm("kd", [0.0, 1.0]), arm("dkd", [2.0, 4.0]))))
    return kdzoo.Study(tmp_path / "study")


def test_a_studys_table_has_a_row_an_arm_and_no_sections(ranked_study):
    table = ranked_study.table().set_index("label")
    assert list(table.index) == ["dkd", "kd"]
    assert (table.loc["dkd", "rank"], table.loc["dkd", "mean"]) == (1, 93.0)
    assert table.loc["dkd", "over_baseline"] == pytest.approx(2.5)
    assert table.loc["dkd", "over_baseline_low"] < 2.5 < table.loc["dkd", "over_baseline_high"]
    assert table.loc["kd", "over_baseline"] != table.loc["kd", "over_baseline"]  # nothing to compare the baseline with
    assert not table.map(lambda value: isinstance(value, dict)).any().any()


def test_a_study_shows_its_ranking_and_its_verdict(ranked_study):
    shown = ranked_study._repr_html_()
    assert ranked_study.results["verdict"]["headline"] in shown
    assert shown.index("dkd <small>") < shown.index("kd <small>")
    assert "<script" not in shown
    assert ranked_study.report() == ranked_study.folder / "report.html"
    assert ranked_study.report().exists()


WRONG_STUDIES = [
    {"recipe": "digits/kd", "algorithms": ["kdd"]},
    {"recipe": "digits/kd", "vary": {"train.epochs": [0]}},
    {"recipe": "digits/kdd"},
    {"recipe": "digits/kd", "seed": 3},
]


@pytest.mark.parametrize("keys", WRONG_STUDIES)
def test_errors_of_a_study_have_the_text_of_the_command_line(keys, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = {"version": 1, "name": "wrong", **keys}
    (tmp_path / "wrong.yaml").write_text(json.dumps(content, indent=1))
    with pytest.raises(KdzooError) as raised:
        kdzoo.study("wrong.yaml", out=tmp_path, progress=False)
    monkeypatch.setattr(sys, "argv", ["kdzoo", "study", "wrong.yaml", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"error: {raised.value}\n"
    with pytest.raises(type(raised.value)) as by_keys:
        kdzoo.study(**content, out=tmp_path, progress=False)
    without_lines = re.sub(r"(?m)^  line \d+ +", "  ", str(raised.value))
    assert str(by_keys.value) == without_lines.replace("wrong.yaml:", "study:")


def test_a_study_is_planned_as_by_the_command_line(tmp_path, monkeypatch):
    keys = {"recipe": "digits/kd", "students": ["digits_cnn_tiny", "digits_cnn_small"], "budget": {"size_mib": 1}}
    content = {"version": 1, "name": "within", "seeds": [3], **keys}
    (tmp_path / "within.yaml").write_text(json.dumps(content, indent=1))
    plans = []

    def planned(plan, *others, **settings):
        plans.append(plan)
        raise KdzooError("enough")

    monkeypatch.setattr(studies, "run_study", planned)
    monkeypatch.setattr(
        sys, "argv", ["kdzoo", "study", str(tmp_path / "within.yaml"), "--out", str(tmp_path), "-o", "train.epochs=2"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    with pytest.raises(KdzooError, match="enough"):
        kdzoo.study(**content, overrides={"train.epochs": 2}, out=tmp_path, progress=False)
    by_command, by_keys = (replace(plan, command=None) for plan in plans)
    assert by_command == by_keys
    assert by_keys.budget.size_mib == 1
    assert {arm.loaded.recipe.train.epochs for arm in by_keys.arms} == {2}


def test_a_study_is_made_of_one_thing():
    with pytest.raises(RecipeError) as refused:
        kdzoo.study()
    assert str(refused.value) == "a study is made of one thing: a file, a name, a mapping, or keys such as name=..."
