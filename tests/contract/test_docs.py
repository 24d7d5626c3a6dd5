"""The documentation cannot lie: it is generated from the code, compared with it, or run."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import kdzoo
from kdzoo import api
from kdzoo.api import data, export, models
from kdzoo.contract import hookspecs
from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.declared import Needs
from kdzoo.contract.step import StepContext
from kdzoo.recipe.bundled import bundled_recipes
from kdzoo.testing import checks, scaffold
from kdzoo.zoo import plugin_checks as admission
from kdzoo.zoo.finding import BUILT_IN
from kdzoo.zoo.loading import load_zoo

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = ("algorithms", "exporters", "notebooks", "recipes")
BY_HAND = sorted(path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] not in GENERATED)
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")), *BY_HAND]


def _imported(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


generate = _imported(DOCS / "generate.py", "docs_generate")


def text_of(page: str) -> str:
    return (DOCS / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text_of(page))


# --- generated pages ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", ["reference/cli.md", "reference/recipe.md", "reference/errors.md", "reference/losses.md"]
)
def test_reference_pages_are_as_the_code_is(page):
    wanted = generate.reference_pages()[page]
    assert text_of(page) == wanted, f"docs/{page} is out of date; run `make docs` and look at the difference"


def test_the_command_line_page_lists_every_command_and_option():
    import typer

    text = text_of("reference/cli.md")
    commands = list(generate._commands("kdzoo", typer.main.get_command(generate.cli.app)))
    assert len(commands) >= 14
    options = 0
    for name, command in commands:
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            spellings = [o for o in parameter.opts if o.startswith("-")]
            options += len(spellings)
            assert all(spelling in section for spelling in spellings), f"{name}: {parameter.opts}"
    assert options >= 20


@pytest.fixture(scope="module")
def gallery():
    return generate.gallery_pages()


def test_every_algorithm_has_a_card_and_every_recipe_a_page(gallery):
    algorithms, recipes = load_zoo().algorithms, generate.read_recipes()
    cards = {page for page in gallery if page.startswith("algorithms/")} - {"algorithms/index.md"}
    pages = {page for page in gallery if page.startswith("recipes/")} - {"recipes/index.md"}
    assert cards == {f"algorithms/{name}.md" for name in algorithms}
    assert len(cards) == len(algorithms) > 0
    assert pages == {f"recipes/{path.relative_to(ROOT / 'recipes').with_suffix('')}.md" for path in recipe_files()}
    assert len(pages) == len(recipes) >= 1
    for name in algorithms:
        assert f"[{name}]({name}.md)" in gallery["algorithms/index.md"]


def recipe_files() -> list[Path]:
    return bundled_recipes()


@pytest.mark.parametrize("name", sorted(n for n, o in load_zoo().algorithms.items() if o.distribution == BUILT_IN))
def test_every_built_in_card_has_its_hand_written_half(name):
    sections = generate.hand_written(load_zoo().algorithm(name))
    assert tuple(sections) == generate.HAND_WRITTEN
    assert all(sections.values()), f"an empty section: {[title for title, text in sections.items() if not text]}"


def test_a_card_shows_options_needs_and_results(gallery):
    card = gallery["algorithms/kd.md"]
    for wanted in ("## Can I use it?", "`temperature`", "from kdzoo.losses import kd_loss", "## Results"):
        assert wanted in card


def test_links_of_generated_pages_lead_somewhere(gallery):
    known = {(DOCS / page).resolve() for page in gallery} | {path.resolve() for path in DOCS.rglob("*")}
    found = 0
    for page, text in gallery.items():
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", text)):
            found += 1
            assert ((DOCS / page).parent / target).resolve() in known, f"{page} links to {target}"
    assert found >= 20


# --- measured results -----------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Write made-up results of a recipe where the pages look for them."""
    monkeypatch.setattr(generate, "RESULTS", tmp_path)

    def write(name: str, **numbers: list) -> Path:
        about = {"recipe": name, "command": "kdzoo verify", "commit": "abc123", "hardware": "two cores"}
        (tmp_path / f"{name}.json").write_text(json.dumps({**about, "teacher": [], **numbers}))
        return tmp_path / f"{name}.json"

    return write


def test_results_are_summed_up_as_they_are(results):
    results("x", seeds=[0, 1, 2], student=[90.0, 91.0, 92.0], control=[89.0, 91.5, 90.0])
    measured = generate.measured("x")
    assert measured.summary() == (
        "student 91.00 ± 1.00, control 90.17 ± 1.26; paired gain +0.83 ± 1.26 points, better on 2 of 3 seeds"
    )
    assert "| 1 |  | 91.50 | 91.00 | -0.50 |" in measured.table()
    assert "| **mean, std** |  | 90.17 ± 1.26 | 91.00 ± 1.00 | +0.83 ± 1.26 |" in measured.table()


def test_a_measured_recipe_shows_its_numbers_on_every_page(results):
    before = generate.gallery_pages()
    results("quickstart", seeds=[0, 1], student=[90.0, 91.0], control=[89.0, 89.0])
    pages = generate.gallery_pages()
    own = pages["recipes/quickstart.md"]
    assert "Measured by `kdzoo verify` at commit `abc123` on two cores" in own
    assert "(../results/quickstart.json)" in own
    assert "| 0 |  | 89.00 | 90.00 | +1.00 |" in own
    assert "90.50 ± 0.71 | 89.00 ± 0.00 | 2 |" in pages["recipes/index.md"]
    row = "| [quickstart](../recipes/quickstart.md) | 89.00 ± 0.00 | 90.50 ± 0.71 | +1.50 ± 0.71 | 2 |"
    assert row in pages["algorithms/kd.md"]
    changed = {page for page in pages if pages[page] != before[page]}
    assert changed == {"recipes/quickstart.md", "algorithms/kd.md", "recipes/index.md", "evidence.md"}


def test_the_list_of_algorithms_has_what_was_measured_on_one_data_set(results):
    results("fashion-mnist-kd", seeds=[0, 1], student=[90.0, 91.0], control=[89.0, 89.0], step_time_over_control=1.5)
    listed = generate.gallery_pages()["algorithms/index.md"]
    rows = {line.split("]")[0][3:]: line for line in listed.splitlines() if line.startswith("| [")}
    assert len(rows) == len(generate.built_in().algorithms)
    assert rows["kd"].endswith("| response | 1 | some | no | +1.50 ± 0.71 | 1.50 |")
    assert 'data-also="hinton' in rows["kd"]
    assert rows["dafl"].endswith("| data_free | 1 | no data | yes |  |  |")
    assert "| ---: | ---: |" in listed  # numbers are not broken


def test_a_result_that_verify_cannot_decide_says_so(results):
    for name in ("digits-kd", "digits-lwf"):
        results(name, seeds=[0, 1], student=[90.0, 91.0], control=[89.0, 89.0])
    pages = generate.gallery_pages()
    assert "`kdzoo verify` re-checks it." in pages["recipes/digits/kd.md"]
    assert "re-checks it" not in pages["recipes/digits/lwf.md"]
    assert (
        "its answer is at best *undecided*: with a standard deviation of 6.17 points" in pages["recipes/digits/lwf.md"]
    )


def test_the_evidence_is_every_measured_recipe_the_largest_gain_first(results):
    results("quickstart", seeds=[0, 1], student=[90.0, 91.0], control=[89.0, 92.0], step_time_over_control=1.5)
    results("digits-kd", seeds=[0, 1], student=[99.0, 99.5], control=[89.0, 92.0])
    text = generate.gallery_pages()["evidence.md"]
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert rows == [
        "| [kd](recipes/digits/kd.md) | [kd](algorithms/kd.md) |  | 90.50 ± 2.12 | 99.25 ± 0.35 | "
        "+8.75 ± 1.77 | 2 of 2 |  |",
        "| [quickstart](recipes/quickstart.md) | [kd](algorithms/kd.md) |  | 90.50 ± 2.12 | 90.50 ± 0.71 | "
        "+0.00 ± 1.41 | 1 of 2 | 1.50 |",
    ]
    assert "## Not measured yet" in text
    assert "`dkd`" in text


def test_evidence_is_a_figure_first_and_numbers_below(results):
    gains = {"digits-kd": 4.0, "digits-dkd": 3.0, "digits-at": -1.0, "digits-dafl": -9.0}
    for name, gain in gains.items():
        numbers = {"student": [80 + gain, 80.2 + gain, 80.1 + gain], "control": [80.0, 80.0, 80.0]}
        results(name, seeds=[0, 1, 2], **numbers, step_time_over_control=2.0)
    text = generate.gallery_pages()["evidence.md"]
    figures, numbers, blind = re.split("<summary>The numbers of 3 recipes</summary>|These see no", text)
    gain, cost = re.findall(r'<figure class="drawing"><svg[^>]*aria-label="([^"]*)"', figures)
    assert gain == (
        "gain over the control, points: kd +4.10 (+3.85 to +4.35); dkd +3.10 (+2.85 to +3.35); "
        "at -0.90 (-1.15 to -0.65)"
    )
    assert cost == "kd +4.10 at 2; dkd +3.10 at 2; at -0.90 at 2"
    assert "even as one of 3 comparisons" in figures
    assert "\n\n" not in figures[figures.index("<div") : figures.rindex("</div>")], "a blank line ends HTML"
    assert [line.split("]")[0][3:] for line in numbers.splitlines() if line.startswith("| [")] == ["kd", "dkd", "at"]
    assert "| [dafl](recipes/digits/dafl.md)" in blind


def test_what_an_algorithm_measures_besides_is_shown_too(results):
    numbers = {"seeds": [0, 1], "student": [90.0, 91.0], "control": [89.0, 89.0]}
    results("quickstart", **numbers, variants={"exit 1": [80.0, 82.0]})
    own = generate.gallery_pages()["recipes/quickstart.md"]
    assert "by the algorithm itself:\n\n|  | mean, std % |\n| --- | ---: |\n| exit 1 | 81.00 ± 1.41 |" in own
    path = results("quickstart", **numbers, variants={"exit 1": [80.0]})
    with pytest.raises(ValueError, match=re.escape(f"{path}: 'exit 1' has 1 values for 2 seeds")):
        generate.measured("quickstart")


def test_what_an_upper_bound_is_and_what_an_algorithm_shows_is_told(results):
    numbers = {"seeds": [0, 1], "student": [50.0, 60.0], "control": [90.0, 92.0]}
    shown = {
        "title": "Forgetting",
        "columns": ["after task", "kd"],
        "rows": [["1", None], ["2", [1.0, 3.0]], ["3", [2.5, 2.5]], ["4", "as before"]],
        "note": "x.",
    }
    results("quickstart", **numbers, upper_bound="on all tasks at once", tables=[shown])
    pages = generate.gallery_pages()
    own = pages["recipes/quickstart.md"]
    assert "same budget, trained on all tasks at once." in own
    assert "control 91.00 ± 1.41, an upper bound; the student is -36.00 ± 5.66 points from it." in own
    rows = "| 1 |  |\n| 2 | 2.00 ± 1.41 |\n| 3 | 2.5 |\n| 4 | as before |"
    assert f"**Forgetting.** x.\n\n| after task | kd |\n| --- | --- |\n{rows}" in own
    before, after = pages["evidence.md"].split("Held against an upper bound")
    assert "[quickstart]" in after
    assert "[quickstart]" not in before


def test_what_networks_and_files_cost_is_told(results):
    numbers = {"seeds": [0, 1], "student": [90.0, 91.0], "control": [89.0, 89.0]}
    costs = {
        "student": {"top1_percent": [90.0, 91.0], "params_m": [0.0213, 0.0213], "latency_ms": [1.5, 2.5]},
        "onnx": {"size_mib": [21.8779, 21.8779], "macs_g": [0.148695, 0.148695], "processor_ms": [1.25, 1.25]},
    }
    results("quickstart", **numbers, costs=costs)
    told = generate.gallery_pages()["recipes/quickstart.md"].split("of one sample each:\n\n")[1].split("\n\n")[0]
    assert told.splitlines() == [
        "|  | accuracy % | parameters, millions | MiB | multiply-adds, billions | ms a sample | ms of processor time |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| student | 90.5 ± 0.71 | 0.0213 |  |  | 2 ± 0.71 |  |",
        "| onnx |  |  | 21.88 | 0.1487 |  | 1.25 |",
    ]


def test_results_with_a_missing_seed_are_refused(results):
    path = results("x", seeds=[0, 1], student=[90.0], control=[])
    with pytest.raises(ValueError, match=re.escape(f"{path}: 'student' has 1 values for 2 seeds")):
        generate.measured("x")


def test_what_a_recipe_expects_is_what_was_measured():
    for path, recipe in generate.read_recipes().items():
        measured = generate.measured(recipe.name)
        if measured is None:
            assert recipe.expected is None, f"{path} expects a result, but docs/results/{recipe.name}.json is not there"
        elif recipe.expected is not None:
            found = generate.statistics.fmean(measured.student)
            assert recipe.expected.top1_percent == pytest.approx(found, abs=0.06), path
            assert recipe.expected.seeds == len(measured.seeds), path


def test_every_result_belongs_to_a_recipe():
    names = {recipe.name for recipe in generate.read_recipes().values()}
    for path in generate.RESULTS.glob("*.json"):
        assert path.stem in names, f"{path.name}: no recipe has this name"
        assert len(generate.Measured(path).seeds) >= 1


# --- hand-written pages against the code ----------------------------------------------------------


def test_every_hook_is_documented_with_its_arguments():
    hooks = {name: f for name, f in inspect.getmembers(hookspecs, inspect.isfunction) if hasattr(f, "kdzoo_spec")}
    wanted = [f"{name}({', '.join(inspect.signature(function).parameters)})" for name, function in hooks.items()]
    assert len(wanted) >= 5
    assert sorted(re.findall(r"(?m)^## `(register_\w+\(.*\))`$", text_of("hooks.md"))) == sorted(wanted)


def test_everything_a_plugin_may_use_is_on_the_api_page():
    text = text_of("reference/api.md")
    names = {name for module in (api, data, export, models) for name in module.__all__}
    assert len(names) >= 50
    for name in names:
        assert re.search(rf"\b{name}\b", text), f"docs/reference/api.md says nothing of {name}"


def test_every_field_of_a_step_and_every_need_is_explained():
    text = text_of("write-a-plugin.md")
    step = [field.name for field in dataclasses.fields(StepContext)]
    for name in step:
        assert f"`ctx.{name}`" in text, name
    needs = [field.name for field in dataclasses.fields(Needs)]
    for name in needs:
        assert re.search(rf"`{name}`", text.split("What is not there by itself")[1]), name
    assert len(step) >= 10
    assert len(needs) >= 9


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/decisions/0023-packages.md"])
def test_the_map_of_the_packages_has_every_floor(page):
    layers = _imported(ROOT / "tests" / "contract" / "test_layers.py", "layers_for_docs")
    wanted = [{room for room in floor if not room.startswith("__")} for floor in layers.FLOORS]
    shown: dict[int, set[str]] = {}
    for number, rooms in re.findall(r"(?m)^\| (\d+) \| (`[^|]+`) \|", (ROOT / page).read_text()):
        shown.setdefault(int(number), set()).update(re.findall(r"`(\w+)`", rooms))
    assert shown == {number: rooms for number, rooms in enumerate(wanted, 1) if rooms}


def test_the_number_of_checks_is_told_as_it_is():
    assert f"the same {len(checks.ALL)} checks" in text_of("write-a-plugin.md")


def test_every_data_set_and_tracker_is_documented():
    zoo, text = load_zoo(), text_of("data.md") + text_of("quickstart.md")
    for name, offer in zoo.datasets.items():
        assert offer.distribution != BUILT_IN or f"`{name}`" in text, f"docs/data.md says nothing of '{name}'"
    assert len(zoo.datasets) >= 1


OF_THIS_REPOSITORY = [path for path in PAGES if path.name != "write-a-plugin.md"]  # whose files are the scaffold's


@pytest.mark.parametrize("path", OF_THIS_REPOSITORY, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_a_page_names_exist(path):
    for file, function in re.findall(r"`((?:tests|kdzoo)/[\w/]+\.py)(?:::(\w+))?`", path.read_text()):
        assert (ROOT / file).is_file(), f"{path.name} names {file}"
        if function:
            defined = {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)}
            assert function in defined, f"{path.name} names {file}::{function}"


def test_the_promises_name_their_tests():
    rows = [line for line in text_of("reliability.md").splitlines() if line.startswith("| ")]
    promises = [row for row in rows if "promise |" not in row and set(row) - set("|- ")]
    assert len(promises) >= 25
    assert all(".py" in row.split("|")[2] for row in promises), "a promise without a test"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_on_a_page_exist(path):
    import typer

    known = {
        name: {option for p in command.params for option in p.opts} | {"--help"}
        for name, command in generate._commands("kdzoo", typer.main.get_command(generate.cli.app))
    }
    text = path.read_text()
    lines = re.findall(r"`(kdzoo [a-z][^`\n]*)`", text)
    for block in re.findall(r"(?ms)^```bash\n(.*?)^```$", text):
        lines += [line.split("#")[0].strip() for line in block.splitlines() if line.startswith("kdzoo ")]
    for line in lines:
        words = line.split()
        name = " ".join(words[:3]) if " ".join(words[:3]) in known else " ".join(words[:2])
        assert name in known, f"{path.name}: there is no '{name}'"
        for option in (word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)):
            assert option in known[name], f"{path.name}: '{name}' has no {option}"


def recipes_on(path):
    blocks = re.findall(r"(?ms)^```yaml\n(.*?)^```$", path.read_text())
    return [text for text in blocks if text.lstrip().startswith(("version:", "#"))]


def test_recipes_were_found_on_the_pages():
    assert {path.name for path in PAGES if recipes_on(path)} >= {"README.md", "quickstart.md"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_and_studies_on_a_page_are_valid(path, tmp_path):
    from kdzoo.recipe.reading import load_recipe
    from kdzoo.recipe.study_sections import load_study

    for text in recipes_on(path):
        (tmp_path / "page.yaml").write_text(text)
        load = load_study if {"recipe", "recipes"} & yaml.safe_load(text).keys() else load_recipe
        load(tmp_path / "page.yaml")


# --- the site -----------------------------------------------------------------------------------------


SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def test_the_site_loads_nothing_from_elsewhere():
    assert SITE["theme"]["font"] is False, "fonts would come from the network"
    own = [*SITE["extra_css"], *SITE["extra_javascript"]]
    assert len(own) >= 2
    for name in own:
        assert not re.search(r"https?:|//[a-z]|@import|import\(|fetch\(", (DOCS / name).read_text()), name


def test_every_page_by_hand_is_in_the_navigation_and_the_decisions_are_folded():
    def places(entries, depth=0):
        for entry in entries:
            for what in entry.values() if isinstance(entry, dict) else [entry]:
                yield from places(what, depth + 1) if isinstance(what, list) else [(what, depth)]

    found = dict(places(SITE["nav"]))
    assert {str(path.relative_to(DOCS)) for path in BY_HAND} - {"evidence.md"} <= set(found)
    decisions = [depth for place, depth in found.items() if place.startswith("decisions/")]
    assert len(decisions) >= 20
    assert set(decisions) == {2}, "only sections below the first level are folded"


# --- the tutorial ------------------------------------------------------------------------------------


def complete(page: str) -> list[str]:
    """The Python blocks of a page that are modules of their own, and no excerpts."""
    return [block for block in blocks(page, "python") if block.startswith(('"""', "import", "from"))]


def hook_of(module):
    return next(
        (name, getattr(module, name))
        for name in vars(hookspecs)
        if name.startswith("register_") and name in vars(module)
    )


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[type[Algorithm]]:
    folder, found = tmp_path_factory.mktemp("examples"), []
    for number, block in enumerate(complete("write-a-plugin.md")):
        (folder / f"example_{number}.py").write_text(block)
        _, register = hook_of(_imported(folder / f"example_{number}.py", f"example_{number}"))
        register(found.append)
    return found


def test_there_is_an_example_of_each_rung(examples):
    from kdzoo.testing.card import rung

    assert [rung(cls) for cls in examples] == ["losses", "step", "stages"]
    for cls in examples:
        admission.check_algorithm(cls)


WHOLE_RUNS = ("student_on_disk_is_the_plain_model", "runs_on_declared_needs", "beats_its_own_start")
CHECKS = [
    pytest.param(check, id=check.__name__, marks=[pytest.mark.slow] if check.__name__ in WHOLE_RUNS else [])
    for check in checks.ALL
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")  # teachers, for the next check


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_examples_keep_the_contract(examples, check, number, trained):
    outcome = checks.run_check(check, examples[number], root=trained)
    assert outcome.status != "failed", outcome.text


def test_examples_of_the_other_hooks_are_taken_up(tmp_path):
    by_hook = {
        "register_models": admission.check_family,
        "register_datasets": admission.check_dataset,
        "register_exporters": admission.check_exporter,
        "register_quantizers": admission.check_quantizer,
        "register_trackers": admission.check_tracker,
        "register_executors": admission.check_executor,
    }
    seen = []
    for number, block in enumerate(complete("hooks.md")):
        (tmp_path / f"hook_{number}.py").write_text(block)
        name, register = hook_of(_imported(tmp_path / f"hook_{number}.py", f"docs_hook_{number}"))
        register(by_hook[name])
        seen.append(name)
    assert sorted(seen) == sorted(by_hook)


def test_the_example_model_and_exporter_work(tmp_path):
    import numpy as np
    import timm
    import torch

    for number, block in enumerate(complete("hooks.md")):
        (tmp_path / f"use_{number}.py").write_text(block.replace("example_resnet6", "example_resnet6_again"))
        _imported(tmp_path / f"use_{number}.py", f"docs_use_{number}")
    model = timm.create_model("example_resnet6_again", num_classes=3).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    exporter = next(
        cls
        for number in range(len(complete("hooks.md")))
        for cls in vars(sys.modules[f"docs_use_{number}"]).values()
        if isinstance(cls, type) and issubclass(cls, export.Exporter) and cls is not export.Exporter
    )
    exporter = exporter(exporter.Options())
    exporter.export(model, torch.zeros(1, 3, 32, 32), tmp_path / "x.pt2", {}, [])
    images = np.random.default_rng(0).random((5, 3, 32, 32), dtype=np.float32)
    answers = exporter.load(tmp_path / "x.pt2", 1)(images)
    assert np.allclose(answers, model(torch.from_numpy(images)).detach(), atol=1e-5)


def test_excerpts_are_of_the_scaffold(tmp_path):
    files = {path: path.read_text() for path in scaffold.write_algorithm("mimic", tmp_path)}
    written = {line.strip() for text in files.values() for line in text.splitlines()}
    excerpts = [block for block in blocks("write-a-plugin.md", "python") if block not in complete("write-a-plugin.md")]
    excerpts += blocks("write-a-plugin.md", "toml")
    assert len(excerpts) >= 3
    for line in "\n".join(excerpts).splitlines():
        assert line.strip() in written | {""}, line
    for path in files:
        assert f"`{path.relative_to(tmp_path / 'kdzoo-mimic')}`" in text_of("write-a-plugin.md")


@pytest.mark.slow
def test_the_tutorials_commands_work(tmp_path):
    """As typed, but for pip: the package is put on the path with the metadata that pip would write."""
    typed = blocks("write-a-plugin.md", "bash")[0].split("\n")
    assert "pip install -e ." in typed
    package, site = tmp_path / "kdzoo-mimic", tmp_path / "site" / "kdzoo_mimic-0.1.0.dist-info"
    site.mkdir(parents=True)
    paths = os.pathsep.join([str(package), str(site.parent), str(ROOT), str(ROOT / "plugins")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    folder, said = tmp_path, {}
    for line in filter(None, typed):
        if line.startswith("cd "):
            folder = folder / line.removeprefix("cd ")
        elif line.startswith("pip "):
            project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
            metadata = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}", ""]
            (site / "METADATA").write_text("\n".join(metadata))
            points = [f"{name} = {module}" for name, module in project["entry-points"]["kdzoo"].items()]
            (site / "entry_points.txt").write_text("\n".join(["[kdzoo]", *points, ""]))
        else:
            brief = ["-o", "train.epochs=1", "-o", "threads=1"] if line.startswith("kdzoo run") else []
            command = [sys.executable, "-m", *line.split(), *brief]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            said[line] = done.stdout
    assert "mimic" in said["kdzoo list algorithms"]
    assert "failed" not in said["kdzoo test-plugin mimic"]
    assert (package / "runs" / "mimic" / "0001-seed0" / "report.html").is_file()


# --- the repository's own pages -------------------------------------------------------------------------


def test_the_readme_lists_every_algorithm():
    text = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"\[`(\w+)`\]\(plugins/", text))
    registered = {name for name, offer in load_zoo().algorithms.items() if offer.distribution == BUILT_IN}
    assert listed == registered, f"missing {sorted(registered - listed)}, too many {sorted(listed - registered)}"


def test_what_the_readme_lists_and_has_measured_is_as_the_generator_writes_it():
    text = (ROOT / "README.md").read_text()
    assert text == generate.readme(text, generate.built_in(), generate.read_recipes()), "python docs/generate.py"


def test_an_algorithm_stands_where_its_gains_put_it(monkeypatch):
    recipes = {
        name: SimpleNamespace(
            name=name, data=SimpleNamespace(name="fashion_mnist"), algorithm=SimpleNamespace(name=name)
        )
        for name in ("little", "much", "mixed", "worse", "bounded", "unmeasured", "blind")
    }
    gains = {
        "little": [0.1, 0.3],
        "much": [1.0, 3.0],
        "mixed": [-1.0, 2.0],
        "worse": [0.0, -1.0],
        "bounded": [-9.0],
        "blind": [-3.0],
    }
    found = {name: SimpleNamespace(gains=each, upper_bound=name == "bounded") for name, each in gains.items()}
    monkeypatch.setattr(generate, "measured", found.get)
    needs = {name: SimpleNamespace(needs=Needs(data="none" if name == "blind" else "labelled")) for name in recipes}
    assert generate._worth(recipes, SimpleNamespace(algorithm=needs.get)).splitlines()[2:] == [
        "| with every seed | `much` +2.0, `little` +0.2 |",
        "| with some seeds | `mixed` +0.5 |",
        "| with none | `worse` -0.5 |",
        "| sees no data, its control does | `blind` -3.0 |",
    ]


def test_the_readme_shows_the_quickstart_recipe():
    from kdzoo.recipe.reading import load_recipe, parse_recipe

    text = re.search(r"(?ms)^```yaml\n(version:.*?)^```$", (ROOT / "README.md").read_text()).group(1)
    shown = parse_recipe(text.encode(), Path("README.md")).recipe
    assert shown == load_recipe(ROOT / "recipes" / "quickstart.yaml").recipe


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(path, gallery):
    known = {(DOCS / page).resolve() for page in gallery}
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", path.read_text())
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", text):
        place = (path.parent / target).resolve()
        assert place.exists() or place in known, f"links to {target}"


def test_every_dependency_is_pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines), "only name==version"
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9_.-]+", dependency).group()).lower() for dependency in wanted}
    assert names - {"kdzoo"} <= pinned, f"not in constraints.txt: {sorted(names - pinned - {'kdzoo'})}"


def test_every_extra_is_on_the_quickstart_page():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"`(\w+)`", text_of("quickstart.md").split("| extra | for |")[1].split("##")[0]))
    assert set(extras) - {"docs", "dev", "page"} <= named


def test_the_changelog_knows_this_version():
    assert f"## {kdzoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()
