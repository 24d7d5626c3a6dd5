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

# Bottom to top; a room imports only from floors below its own. A room is a package or a module directly below kdzoo/.
FLOORS = [
    {"__init__", "errors"},
    {"types"},
    {"contract", "losses"},
    {"api", "recipe", "storage"},
    {"zoo", "data"},
    {"models"},
    {"plan", "training", "evaluation"},
    {"report"},
    {"run"},
    {"study"},
    {"testing"},
    {"checks"},
    {"terminal"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PRINTS = {"terminal.py"}


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


def room_of(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in sources(CORE)}
    assert rooms == FLOOR.keys(), "give each room of the core a floor in FLOORS"


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_core_imports_point_down(path):
    own = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "kdzoo" or len(parts) == 1:
            continue
        target = "__init__" if parts[1].startswith("__") else parts[1]
        if target != own:
            assert FLOOR[target] < FLOOR[own], f"{own} (floor {FLOOR[own]}) imports {target} (floor {FLOOR[target]})"


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_core_never_imports_a_plugin(path):
    assert not [name for name in imports(path, runtime_only=False) if name.startswith("kdzoo_")]


@pytest.mark.parametrize("path", sources(PLUGINS), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_a_plugin_imports_the_api_and_its_own_family_only(path):
    family = path.relative_to(PLUGINS).parts[0]
    for name in imports(path, runtime_only=False):
        top = name.split(".")[0]
        if top == "kdzoo":
            assert name.startswith("kdzoo.api"), f"imports {name}"
        elif top.startswith("kdzoo_"):
            assert top == family, f"imports the family {top}"


def test_core_knows_no_algorithm():
    names = {path.stem for path in PLUGINS.glob("kdzoo_*/*.md")}
    assert len(names) >= 11, "the cards of the algorithms were not found"
    for path in sources(CORE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names - {"onnx"}, f"{path.name} names the algorithm '{node.value}'"


def test_recipe_report_and_errors_are_light():
    light = [CORE / "errors.py", CORE / "types.py", CORE / "contract" / "hookspecs.py"]
    for path in [*light, *sources(CORE / "recipe"), *sources(CORE / "report")]:
        heavy = {name.split(".")[0] for name in imports(path)} & {"torch", "timm", "torchvision"}
        assert not heavy, f"{path.name} imports {heavy}"


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_duties_are_kept_apart(path):
    room, module = room_of(path), str(path.relative_to(CORE))
    used = {name.split(".")[0] for name in imports(path)}
    if room != "models" and module not in ("contract/networks.py", "training/optimization.py", "training/device.py"):
        assert "timm" not in used, "only models and contract/networks build networks, and training optimizers, by timm"
    if room != "zoo" and module != "contract/hookspecs.py":
        assert "pluggy" not in used, "only zoo and hookspecs touch pluggy"
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    if module not in PRINTS and module != "evaluation/checker.py":
        assert "print" not in calls, "only the command line prints"
    if room != "storage":
        written = {call for call in calls if call.split(".")[-1] in ("write_text", "write_bytes") and "." in call}
        assert not written, f"only storage writes files: {written}"


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
