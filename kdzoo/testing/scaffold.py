"""Scaffolds that run as they are: a recipe, and a plugin package with one algorithm."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path

from kdzoo.contract.declared import Needs, bounds
from kdzoo.errors import OutputError, RecipeError, plain
from kdzoo.storage.atomic import write_bytes
from kdzoo.types import NAME

#: Classes that a scaffold uses, so that its own cannot have their names.
USED = ("Algorithm", "AlgorithmOptions", "Field", "Paper", "StepContext", "Tensor", "None", "True", "False")

ALGORITHM = '''"""{title}: replace this line with what the algorithm does."""

from __future__ import annotations

from kdzoo.api import Algorithm, AlgorithmOptions, Paper, StepContext, hookimpl
from pydantic import Field
from torch import Tensor


def {name}_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return half the squared distance between logits, averaged over the batch.

    Shapes: (N, K), (N, K) -> scalar.
    """
    return 0.5 * (student_logits - teacher_logits).square().sum(dim=1).mean()


class {title}(Algorithm):
    """Makes the student's logits match the teacher's.

    Reads: logits of student and teacher, each (N, K).
    Loss terms: ``{name}``: squared logits, at least 0, 0 when student equals teacher; mean over samples.
    Trains: nothing of its own.   State: none.
    Raises: nothing.
    Source: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, section 2.2.
    Differs from the paper: nothing known.
    Defaults from: the paper.
    """

    name = "{name}"
    paper = Paper(
        title="Do Deep Nets Really Need to be Deep?",
        authors="Ba, Caruana",
        year=2014,
        url="https://arxiv.org/abs/1312.6184",
        equation="section 2.2",
    )
    loss_functions = ({name}_loss,)
    default_weights = {{"task": 1.0, "{name}": 0.1}}

    class Options(AlgorithmOptions):
        scale: float = Field(1.0, gt=0, le=100, description="Factor of both logits; dimensionless.")

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        scale = self.options.scale
        return {{"{name}": {name}_loss(scale * ctx.student.logits, scale * ctx.teacher.logits)}}


@hookimpl
def register_algorithms(register):
    register({title})
'''

PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "kdzoo-{dashed}"
version = "0.1.0"
dependencies = ["kdzoo"]

[project.entry-points.kdzoo]
{name} = "kdzoo_{name}"

[tool.hatch.build.targets.wheel]
packages = ["kdzoo_{name}"]
"""

TEST = """import pytest
import torch
from kdzoo import checks

from kdzoo_{name} import {title}, {name}_loss


def test_{name}_loss_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert {name}_loss(student, teacher).item() == pytest.approx(0.5 * (5 + 25) / 2)


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_{name}_keeps_the_contract(check):
    outcome = checks.run_check(check, {title})
    assert outcome.status != "failed", outcome.text
"""

RECIPE = """# {name}: {algorithm} on digits. Run: kdzoo run {file}
version: 1
name: {name}
algorithm: {{name: {algorithm}}}
models:
{models}
data: {{name: digits, batch_size: 64}}
train: {{epochs: 10}}
export: [{{format: onnx}}]
"""


def write_recipe(name: str, algorithm: str, where: Path, bundled: Path) -> Path:
    """Write ``<name>.yaml``: the bundled quickstart under a new name, or one for a named algorithm.

    Raises RecipeError for a name that no recipe may have and OutputError when the file is there already.
    """
    name, path = recipe_place(name, where)
    if algorithm:
        from kdzoo.zoo.catalogue import catalogue

        cls = catalogue().algorithm(algorithm)
        own = _recipe_of(cls.name, bundled)
        fields = {"name": name, "algorithm": algorithm, "file": path.name}
        text = own.read_text() if own else RECIPE.format(**fields, models=_models(cls.needs))
    else:
        text = (bundled / "quickstart.yaml").read_text()
    text = re.sub(r"(?m)^name: .*$", f"name: {_quoted(name)}", text, count=1)
    text = re.sub(r"(?m)^expected:.*\n?", "", text)  # the published result belongs to the recipe it was measured with
    text = re.sub(r"Run: kdzoo run \S+", f"Run: kdzoo run {path.name}", text)
    write_new(path, text)
    return path


def recipe_place(name: str, where: Path) -> tuple[str, Path]:
    """Return a recipe's name and its file; raise RecipeError for a name that no recipe may have."""
    if not re.fullmatch(NAME, name):
        raise RecipeError(
            f"new recipe: '{plain(name, 100)}' cannot name a recipe; use lower-case letters, digits, '_', '.', '-'"
        )
    name = name.removesuffix(".yaml")
    return name, where / f"{name}.yaml"


def _quoted(name: str) -> str:
    """A name as YAML takes it for text, which ``1e3`` or ``true`` would not be."""
    return name if re.match("[a-z]", name) and name not in ("null", "true", "false") else f'"{name}"'


def _models(needs: Needs) -> str:
    """As many models on digits as an algorithm needs at least."""
    lines = []
    for kind, model in (("teachers", "digits_cnn"), ("assistants", "digits_cnn_small"), ("peers", "digits_cnn_tiny")):
        least, _ = bounds(getattr(needs, kind))
        if least == 1 and kind == "teachers":
            lines.append(f"  teacher: {{name: {model}}}")
        elif least:
            lines.append(f"  {kind}: [{', '.join([f'{{name: {model}}}'] * least)}]")
    return "\n".join([*lines, "  student: {name: digits_cnn_tiny}"])


def _recipe_of(algorithm: str, bundled: Path) -> Path | None:
    path = bundled / "digits" / f"{algorithm}.yaml"
    return path if path.is_file() else None


def write_algorithm(name: str, where: Path) -> list[Path]:
    """Write a plugin package ``kdzoo-<name>`` with an algorithm, its test and a recipe that runs.

    Raises RecipeError for a name that no algorithm may have and OutputError when a file is there already.
    """
    from kdzoo.zoo.catalogue import catalogue

    if len(name) > 40 or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise RecipeError(f"new algorithm: '{plain(name, 100)}' is not lower snake case, e.g. 'my_method'")
    title = "".join(part.capitalize() for part in name.split("_"))
    if title in USED or name == "task":
        raise RecipeError(f"new algorithm: '{name}' is a name that the scaffold itself uses; choose another")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise RecipeError(f"new algorithm: '{name}' is a word of Python's own; choose another")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise RecipeError(f"new algorithm: '{name}' is the name of an installed Python module; choose another")
    zoo = catalogue()
    if name in zoo.algorithms or name in {plugin.name for plugin in zoo.plugins}:
        raise RecipeError(f"new algorithm: '{name}' is taken by an installed algorithm or plugin; choose another")
    root = where / f"kdzoo-{name.replace('_', '-')}"
    values = {"name": name, "title": title, "dashed": name.replace("_", "-")}
    files = {
        root / "pyproject.toml": PROJECT.format(**values),
        root / f"kdzoo_{name}" / "__init__.py": ALGORITHM.format(**values),
        root / "tests" / f"test_{name}.py": TEST.format(**values),
        root / f"{name}.yaml": RECIPE.format(
            name=_quoted(values["dashed"]), algorithm=name, file=f"{name}.yaml", models=_models(Needs())
        ),
    }
    for path in files:
        if path.exists():
            raise OutputError(f"{path}: exists already; nothing was written")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_new(path, text)
    return list(files)


def write_new(path: Path, text: str) -> None:
    """Write a file; raise OutputError where it is there already."""
    if path.exists():
        raise OutputError(f"{path}: exists already; nothing was written")
    write_bytes(path, text.encode())
