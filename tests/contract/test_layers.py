"""Arrows point one way: what may import what, and who may do what."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from source_duties import accelerators, parsed, unsafe, writers

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "kdzoo"
PLUGINS = ROOT / "plugins"

# Bottom to top; a room imports only from floors below its own. A room is a package or a module directly below kdzoo/.
FLOORS = [
    {"errors", "version"},
    {"types"},
    {"contract"},
    {"processes"},
    {"api", "recipe", "storage"},
    {"zoo", "data"},
    {"models", "losses"},
    {"plan", "training", "evaluation"},
    {"report"},
    {"run"},
    {"study"},
    {"testing"},
    {"checks"},
    {"terminal"},
    {"cli", "python"},
    {"__main__", "__init__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PRINTS = {"terminal.py"}


def sources(root: Path) -> list[Path]:
    found = sorted(path for path in root.rglob("*.py") if "recipes" not in path.parts)
    assert found, f"no sources below {root}"
    return found


def imports(path: Path, runtime_only: bool = True) -> Iterator[str]:
    """Modules that a file imports; those under TYPE_CHECKING are hints, not arrows."""
    tree = parsed(path.read_text())
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


def circle(modules: Mapping[str, str]) -> list[str]:
    """Return modules that import each other in a circle, wherever the imports are written; empty: there are none.

    ``modules``: the source of each module by its full name.
    """
    arrows: dict[str, set[str]] = {}
    for module, source in modules.items():
        targets = arrows[module] = set()
        for node in ast.walk(parsed(source)):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: write the full name of what is imported"
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {name if name in modules else str(node.module) for name in names}
    try:
        TopologicalSorter({module: targets & modules.keys() for module, targets in arrows.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_of_the_core_import_each_other_in_a_circle():
    modules = {}
    for path in sources(CORE):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path.read_text()
    assert circle(modules) == []


@pytest.mark.parametrize(
    "back",
    [
        "import kdzoo.a",
        "from kdzoo import a",
        "from kdzoo.a import thing",
        "def late():\n    from kdzoo.a import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kdzoo.a import thing",
    ],
)
def test_a_circle_is_seen(back):
    modules = {"kdzoo": "", "kdzoo.a": "from kdzoo import b", "kdzoo.b": "import kdzoo.c", "kdzoo.c": "import json"}
    assert circle(modules) == []
    assert set(circle({**modules, "kdzoo.c": back})) == {"kdzoo.a", "kdzoo.b", "kdzoo.c"}


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
    with_a_recipe = {path.stem for path in (ROOT / "recipes" / "digits").glob("*.yaml")}  # every algorithm has one
    assert with_a_recipe, "the recipes of the algorithms were not found"
    assert with_a_recipe <= names, "the cards of the algorithms were not found"
    for path in sources(CORE):
        for node in ast.walk(parsed(path.read_text())):
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
    if module == "data/sample_views.py":
        timm = {name for name in imports(path) if name.split(".")[0] == "timm"}
        assert all(name.startswith("timm.data.") for name in timm), "of timm, data takes augmentation alone"
    elif room != "models" and module not in ("contract/networks.py", "training/optimization.py", "training/device.py"):
        assert "timm" not in used, "only models and contract/networks build networks, and training optimizers, by timm"
    if room != "zoo" and module != "contract/hookspecs.py":
        assert "pluggy" not in used, "only zoo and hookspecs touch pluggy"
    calls = {ast.unparse(node.func) for node in ast.walk(parsed(path.read_text())) if isinstance(node, ast.Call)}
    if module not in PRINTS and module != "evaluation/checker.py":
        assert "print" not in calls, "only the command line prints"


#: What may write outside of storage, and why. A path of the core or of the plugins -> (what it calls, the reason).
MAY_WRITE = {
    "kdzoo/data/file_records.py": ({".mkdir"}, "the folder that storage writes a record into"),
    "kdzoo/evaluation/checker.py": ({"numpy.save"}, "answers for the process that asked, in its scratch folder"),
    "kdzoo/evaluation/verification.py": (
        {"tempfile.TemporaryDirectory", ".open for writing"},
        "the scratch folder of a check, and the inputs of the file that is checked",
    ),
    "kdzoo/contract/onnx_graph.py": (
        {"onnx.save", "tempfile.TemporaryDirectory"},
        "onnxruntime quantizes from file to file",
    ),
    "kdzoo/processes/local.py": (
        {"tempfile.TemporaryFile", "os.write"},
        "the output of a worker process, in a file without a name, and the pipe to it",
    ),
    "kdzoo/report/drawing.py": ({".savefig"}, "a figure goes into a text in memory"),
    "kdzoo/run/runner.py": ({"shutil.rmtree"}, "trackers' files, which are written anew when a run goes on"),
    "kdzoo/run/stage_log.py": ({"shutil.rmtree"}, "trackers' files, which are written anew when a run goes on"),
    "kdzoo/run/student_files.py": ({".mkdir"}, "the folder that storage writes a model's own files into"),
    "kdzoo/study/candidates.py": ({"tempfile.TemporaryDirectory"}, "the scratch folder of a file that is measured"),
    "kdzoo/testing/checks.py": ({"tempfile.TemporaryDirectory"}, "the checkpoints of a check"),
    "kdzoo/testing/harness.py": ({"tempfile.mkdtemp"}, "the runs of checks, removed with their harness"),
    "kdzoo/testing/scaffold.py": ({".mkdir"}, "the folder that storage writes a new plugin into"),
    "kdzoo/zoo/survey.py": ({"os.write"}, "the pipe to the process that asked"),
    "plugins/kdzoo_executorch/executorch_file.py": (
        {".write_bytes"},
        "an exporter writes the path that it is handed",
    ),
    "plugins/kdzoo_export/onnx_file.py": (
        {"onnx.save"},
        "an exporter writes the path that it is handed",
    ),
    "plugins/kdzoo_mlflow/mlflow_tracker.py": ({"tempfile.TemporaryDirectory"}, "the scratch folder of a model"),
    "plugins/kdzoo_nas/search.py": ({".unlink"}, "a killed search's journal, which optuna writes"),
    "plugins/kdzoo_openvino/openvino_file.py": (
        {"openvino.save_model"},
        "an exporter writes the path that it is handed",
    ),
    "plugins/kdzoo_slurm/slurm_executor.py": (
        {".unlink"},
        "what submitit sent and received, in the folder that an executor is handed",
    ),
    "plugins/kdzoo_slurm/slurm_work.py": (
        {".write_text", "os.replace"},
        "a job's progress, in the folder that an executor is handed",
    ),
    "plugins/kdzoo_tensorboard/tensorboard.py": (
        {"torch.utils.tensorboard.SummaryWriter"},
        "a tracker writes the folder that it is handed",
    ),
    "plugins/kdzoo_wandb/wandb_tracker.py": (
        {".mkdir", "shutil.rmtree"},
        "a tracker writes the folder that it is handed",
    ),
}

#: What may name a module that runs code from data, and why.
MAY_NAME = {
    "kdzoo/models/weight_files.py": ({"pickle"}, "the error that torch raises for a file with more than weights")
}

#: What may name an accelerator besides training/device, and why.
MAY_NAME_A_DEVICE = {
    "kdzoo/training/batch_norm.py": ({".is_cuda"}, "fused kernels that torch has for this device alone"),
    "kdzoo/zoo/process_state.py": ({"torch.backends.cuda"}, "switches of torch that a plugin must not turn"),
}

SOURCES = [*sources(CORE), *sources(PLUGINS)]


def told(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=told)
def test_only_storage_writes(path):
    if path.is_relative_to(CORE / "storage"):
        return
    allowed, _ = MAY_WRITE.get(told(path), (set(), ""))
    for line, what in writers(path.read_text()):
        assert what in allowed, (
            f"{told(path)}:{line}: {what}; let kdzoo.storage write it, or add it to MAY_WRITE with the reason"
        )


@pytest.mark.parametrize("path", SOURCES, ids=told)
def test_no_pickle_no_shell_and_no_code_from_data(path):
    allowed, _ = MAY_NAME.get(told(path), (set(), ""))
    for line, what in unsafe(path.read_text()):
        assert what in allowed, f"{told(path)}:{line}: {what}"


@pytest.mark.parametrize("path", SOURCES, ids=told)
def test_only_training_device_names_a_device(path):
    if path == CORE / "training" / "device.py":
        assert list(accelerators(path.read_text())), "the search finds nothing"
        return
    allowed, _ = MAY_NAME_A_DEVICE.get(told(path), (set(), ""))
    for line, what in accelerators(path.read_text()):
        assert what in allowed, f"{told(path)}:{line}: {what}; let training/device decide, and hand on what it says"


def test_every_exemption_is_used_and_has_a_reason():
    for exemptions, found in ((MAY_WRITE, writers), (MAY_NAME, unsafe), (MAY_NAME_A_DEVICE, accelerators)):
        for name, (allowed, reason) in exemptions.items():
            assert len(reason.split()) >= 4, name
            used = {what for _, what in found((ROOT / name).read_text())}
            assert used == allowed, f"{name}: may {sorted(allowed)}, does {sorted(used)}"


WRITING = """
open("f", "w")
open("f", mode="a") # "quotes"
open("f", "x+")
open("f", "r+b")
open("f", mode)
path.open("wb")
path.open(mode="a")
import io; io.open("f", "w")
import gzip; gzip.open("f", "wt")
import tarfile; tarfile.open("f", "w:gz")
import zipfile; zipfile.ZipFile("f", "a")
import os; os.open("f", os.O_RDWR)
from os import mkdir as m; m("f")
os.write(1, b"")
os.replace("f", "g")
path.write_text("x")
path.unlink()
import numpy as np; np.save("f", a)
from numpy import savez; savez("f", a)
a.tofile("f")
np.lib.format.open_memmap("f")
import shutil as s; s.copytree("f", "g")
import json; json.dump({}, file)
import yaml; yaml.dump({}, file)
from safetensors.torch import save_file; save_file({}, "f")
import tempfile; tempfile.mkstemp()
"""
RUNNING = """
eval("1")
exec("x = '1'")
compile("1", "f", "eval")
import pickle
from pickle import loads
import dill as d
import torch; torch.save(x, "f")
from torch import save; save(x, "f")
torch.load("f")
torch.load("f", weights_only=False)
import numpy as np; np.load("f", allow_pickle=True)
import subprocess; subprocess.run("ls", shell=True)
import os; os.system("ls")
import yaml; yaml.load(text, Loader)
"""
HARMLESS = """
open("f"); open("f", "rb"); open("f", encoding="utf-8"); path.open(); path.open("rb"); archive.open("data.txt")
import os, io, json, yaml, torch, re, subprocess, shutil; os.open("f", os.O_RDONLY); json.dumps({}); yaml.dump({})
model.eval(); re.compile("x"); torch.load("f", weights_only=True); subprocess.run(["ls"], shell=False)
x.to("cpu"); x.to(x.device); "auto, cpu, cuda or mps"
text.replace("a", "b"); shutil.disk_usage("."); "pickle, torch.save, eval("
"""


NAMING = """
device.type == "cuda"
torch.device("cuda:1")
x.to("mps")
import torch; torch.cuda.synchronize()
import torch; torch.mps.manual_seed(0)
from torch.cuda import synchronize
from torch.backends.mps import is_available
x.is_cuda
x.cuda()
"""


def test_each_kind_of_writing_of_running_and_of_naming_is_seen():
    for text, found in ((WRITING, writers), (RUNNING, unsafe), (NAMING, accelerators)):
        lines = {line for line, _ in found(text)}
        missed = [told for number, told in enumerate(text.splitlines(), 1) if told and number not in lines]
        assert not missed
    assert [*writers(HARMLESS), *unsafe(HARMLESS), *accelerators(HARMLESS)] == []


def test_families_are_registered():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entries = set(project["project"]["entry-points"]["kdzoo"].values())
    folders = {path.name for path in PLUGINS.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert entries == folders
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages == {"kdzoo", *(f"plugins/{folder}" for folder in folders)}
