"""Arrows point one way: what may import what, and who may do what."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "kdzoo"
PLUGINS = ROOT / "plugins"

# Bottom to top; a module imports only from rows above its own in this list.
LAYERS = [
    {"__init__"},
    {"errors", "quiet"},
    {"types"},
    {"offers", "losses", "metrics", "networks"},
    {"algorithm", "hookspecs"},
    {"api"},
    {"problems", "recipe_yaml", "admission"},
    {"zoo", "recipe"},
    {"resolve", "schema", "card"},
    {"levels", "augment", "parallel", "store"},
    {"models", "data"},
    {"device"},
    {"optimization"},
    {"teacher"},
    {"engine"},
    {"evaluation", "run_folder", "export"},
    {"building"},
    {"delivery", "exhibits", "workers"},
    {"runner", "verdict", "charts", "findings"},
    {"report_page", "model_card"},
    {"report"},
    {"testing"},
    {"checks"},
    {"scaffold"},
    {"cli"},
    {"__main__"},
]
SAME_ROW = {("recipe", "problems"), ("recipe", "recipe_yaml"), ("recipe_yaml", "problems"), ("admission", "problems")}
ROW = {module: row for row, modules in enumerate(LAYERS) for module in modules}
PRINTS = {"cli.py"}
WRITES = {"store.py", "run_folder.py"}


def sources(root: Path) -> list[Path]:
    found = sorted(path for path in root.rglob("*.py") if "recipes" not in path.parts)
    assert found, f"no sources below {root}"
    return found


def imports(path: Path, runtime_only: bool = True) -> Iterator[str]:
    """Modules that a file imports; those under TYPE_CHECKING are hints, not arrows."""
    tree = ast.parse(path.read_text())
    hints = {
        id(node)
        for branch in ast.walk(tree)
        if runtime_only and isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "kdzoo":
                yield from (f"kdzoo.{alias.name}" for alias in node.names)
            else:
                yield node.module


def module_of(path: Path) -> str:
    inside = path.relative_to(CORE).parts
    return "export" if inside[0] == "export" else path.stem


def test_every_core_module_has_a_row():
    missing = {module_of(path) for path in sources(CORE)} - ROW.keys()
    assert not missing, f"give these modules a row in LAYERS: {sorted(missing)}"


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_core_imports_point_down(path):
    own = module_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "kdzoo" or len(parts) == 1 or parts[1].startswith("__"):
            continue
        target = parts[1] if parts[1] in ROW else "__init__"
        if target == own or (own, target) in SAME_ROW or (target == "api" and own in ("checks", "testing")):
            continue
        assert ROW[target] < ROW[own], f"{own} (row {ROW[own]}) imports {target} (row {ROW[target]})"


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_core_never_imports_a_plugin(path):
    assert not [name for name in imports(path, runtime_only=False) if name.startswith("kdzoo_")]


@pytest.mark.parametrize("path", sources(PLUGINS), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_a_plugin_imports_the_api_and_its_own_family_only(path):
    family = path.relative_to(PLUGINS).parts[0]
    for name in imports(path, runtime_only=False):
        top = name.split(".")[0]
        if top == "kdzoo":
            assert name == "kdzoo.api", f"imports {name}"
        elif top.startswith("kdzoo_"):
            assert top == family, f"imports the family {top}"


def test_core_knows_no_algorithm():
    names = {path.stem for path in PLUGINS.glob("kdzoo_*/*.md")}
    assert len(names) >= 11, "the cards of the algorithms were not found"
    for path in sources(CORE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names - {"onnx"}, f"{path.name} names the algorithm '{node.value}'"


def test_recipe_and_errors_are_light():
    for module in ("errors", "types", "recipe", "recipe_yaml", "problems", "hookspecs"):
        heavy = {name.split(".")[0] for name in imports(CORE / f"{module}.py")} & {"torch", "timm", "torchvision"}
        assert not heavy, f"{module} imports {heavy}"


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_duties_are_kept_apart(path):
    module, text = path.name, path.read_text()
    used = {name.split(".")[0] for name in imports(path)}
    if module_of(path) not in ("models", "networks", "optimization", "device", "levels"):
        assert "timm" not in used, (
            "only models.py and networks.py build networks and optimization.py optimizers with timm"
        )
    if module not in ("zoo.py", "hookspecs.py"):
        assert "pluggy" not in used, "only zoo and hookspecs touch pluggy"
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    if module not in PRINTS and module_of(path) != "export":
        assert "print" not in calls, "only the command line prints"
    if module not in WRITES:
        written = {call for call in calls if call.split(".")[-1] in ("write_text", "write_bytes") and "." in call}
        assert not written, f"only store and run_folder write files: {written}"


FORBIDDEN = re.compile(
    r"\b(pickle\.(load|dump|Pickler)|torch\.save|eval\(|exec\(|yaml\.load\(|yaml\.unsafe|shell=True)"
)


def test_no_pickle_and_no_code_from_data():
    for path in (*sources(CORE), *sources(PLUGINS)):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("#")[0]
            if FORBIDDEN.search(code) and ".eval()" not in code and '"' not in code:
                raise AssertionError(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")


def test_families_are_registered():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entries = set(project["project"]["entry-points"]["kdzoo"].values())
    folders = {path.name for path in PLUGINS.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert entries == folders
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages == {"kdzoo", *(f"plugins/{folder}" for folder in folders)}
