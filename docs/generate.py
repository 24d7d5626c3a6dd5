"""Write the pages that are made from the code: command line, recipe, errors, cards, a page per recipe.

Run ``python docs/generate.py`` before the site is built. ``docs/reference/`` is under version control: a change
of the command line or of the recipe shows in review. The folders in GENERATED_FOLDERS are not. With ``--notebooks`` the
notebooks are run, so that their pages show what they print.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import itertools
import json
import os
import re
import statistics
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from kdzoo import cli, errors, losses
from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.extension_points import Offer
from kdzoo.recipe.bundled import bundled_recipes
from kdzoo.recipe.reading import load_recipe
from kdzoo.recipe.sections import ExpectedRecipe, Recipe
from kdzoo.study.expected import can_be_reproduced
from kdzoo.testing import card
from kdzoo.zoo.finding import BUILT_IN
from kdzoo.zoo.loading import load_zoo
from kdzoo.zoo.offered import Zoo

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))  # for a test that imports this file, too
from figures import gain_figures  # noqa: E402
from notebook_pages import notebook_pages  # noqa: E402

RECIPES = DOCS.parent / "recipes"
RESULTS = DOCS / "results"
README = DOCS.parent / "README.md"
GENERATED_FOLDERS = ("algorithms", "exporters", "notebooks", "recipes")

#: The hand-written half of a card, in the order of the page; the generated half comes in between.
IN_BRIEF, WHEN, DIFFERS, NOTES = HAND_WRITTEN = (
    "In one paragraph",
    "When to use it, when not",
    "How ours differs from the paper",
    "Notes from running it",
)

Row = Sequence[str]


# --- Markdown ---------------------------------------------------------------------------------


#: A cell of numbers: 1.5, +1.40 ± 0.44, 3 of 3.
NUMBERS = re.compile(r"[+-]?\d[\d.,]*( ± [\d.]+)?( of \d+)?")


def table(head: Row, rows: Iterable[Row]) -> str:
    """A table; columns of numbers, the first aside, are to the right, and the style sheet keeps each on one line."""
    rows = list(rows)
    rules = ["---", *(_rule([row[i] for row in rows]) for i in range(1, len(head)))]
    lines = [head, rules, *rows]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in lines)


def _rule(column: Sequence[str]) -> str:
    filled = [cell for cell in column if cell]
    return "---:" if filled and all(map(NUMBERS.fullmatch, filled)) else "---"


def _cell(text: str) -> str:
    """A bar would end the cell, and Markdown dialects escape one in code differently."""
    text = re.sub(r"`([^`]*\|[^`]*)`", lambda found: f"<code>{html.escape(found.group(1))}</code>", text)
    return text.replace("|", "&#124;").replace("\n", " ")


def prose(text: str) -> str:
    """Text from a docstring as Markdown: code stays code, addresses become links, nothing else is markup."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    text = re.sub(r"([*_\[\]])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"https?://[^\s,;)]+[^\s,;).]", lambda found: f"<{found.group().replace(chr(92), '')}>", text)


def code(value: object) -> str:
    return f"`{value}`"


def link(text: str, page: str, here: str) -> str:
    """A link from one page to another, both relative to docs/."""
    return f"[{text}]({os.path.relpath(page, os.path.dirname(here) or '.')})"


def fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def flow(value: Any) -> str:
    """A value as a recipe would write it on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return json.dumps(value) if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", value) else value


def page(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


# --- the command line ---------------------------------------------------------------------------

KINDS = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}


def cli_page() -> str:
    root = typer.main.get_command(cli.app)
    sections = [_command(name, command) for name, command in _commands("kdzoo", root)]
    return page(
        "# Command line",
        (root.help or "").strip(),
        "This page is generated from the program (`python docs/generate.py`), and a test compares the two. "
        "Every command also takes `--help`. `kdzoo --install-completion` lets bash, zsh, fish and PowerShell "
        "complete commands, options, recipes and names.",
        fenced((cli.__doc__ or "").split("\n\n")[1]),
        "[Errors and exit codes](errors.md) explains the exit codes.",
        *sections,
    )


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command, and those below it."""
    yield name, command
    for below, child in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {below}", child)


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-")]
    if hasattr(command, "commands"):
        usage = f"{name} [OPTIONS] COMMAND ..."
    else:
        usage = " ".join([name, *(["[OPTIONS]"] if options else []), *map(_argument, arguments)])
    text = inspect.cleandoc(command.help or "") if name != "kdzoo" else "Options of every command, written before it."
    rows = [[code(_argument(p)), "", prose(p.help or "")] for p in arguments]
    rows += [[", ".join(map(code, _spellings(p, command))), _default(p), prose(p.help or "")] for p in options]
    return page(
        f"## {name}", text, fenced(usage), table(("argument or option", "default", "what it is"), rows) if rows else ""
    )


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _spellings(parameter: Any, command: Any) -> list[str]:
    if parameter.is_flag:
        return [*parameter.opts, *parameter.secondary_opts]
    hint = typing.get_type_hints(command.callback).get(parameter.name, str)
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if kind in KINDS]
    value = parameter.metavar or KINDS[kinds[0] if kinds else str]
    return [f"{spelling} {value}" for spelling in parameter.opts]


def _default(parameter: Any) -> str:
    unset = parameter.default is None or parameter.default == "" or parameter.is_flag
    return "" if unset else code(parameter.default)


# --- the recipe -----------------------------------------------------------------------------------


def recipe_page() -> str:
    schema = Recipe.model_json_schema()
    top = schema["properties"]
    sections = [_section("The top level", "", top, set(schema["required"]))]
    for path, name in _sections(top, schema["$defs"], ""):
        part = schema["$defs"][name]
        sections.append(_section(path, part["description"], part["properties"], set(part.get("required", []))))
    return page(RECIPE_INTRODUCTION, *sections)


RECIPE_INTRODUCTION = """# Recipe

Every key of a recipe: its type and range, its default, what it does. This page is generated from the class
`kdzoo.recipe.sections.Recipe` (`python docs/generate.py`), and a test compares the two. `kdzoo show RECIPE` prints a
recipe with every default filled in. `kdzoo schema` prints a JSON Schema for editors; it includes the options of every
installed plugin. `-o KEY=VALUE` overrides any key and is validated like the file.

## How it is read

A recipe is one YAML document of names and numbers, at most 256 KiB and 32 levels deep. It cannot run code: there are no
tags, anchors, aliases, merge keys, includes or import paths. An unknown key is an error, and so is a key written twice.
`1e-3` is a number; `no`, `on` and `yes` are text; `012` and `1:30`, which YAML readers understand differently, are
refused. Every number has a range; none includes `.inf` or `.nan`. All problems of a recipe are reported at once:

```text
recipes/x.yaml: 3 problems
  line 7  algorithm.options.tempreature: unknown key; did you mean 'temperature'?
  line 12 train.optimizer.lr: must be greater than 0, got -1
  line 15 data.name: unknown data set 'cifar'; did you mean 'cifar10'? known: cifar10, cifar100, digits ...
```
"""


def _sections(properties: Mapping[str, Any], defs: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (path, name of the section's schema) for every section below, each schema once."""
    seen: set[str] = set()

    def walk(properties: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for key, field in properties.items():
            name = _reference(field)
            if name is None or name in seen or name.startswith("Partial"):
                continue
            seen.add(name)
            path = f"{prefix}{key}"
            yield path, name
            yield from walk(defs[name]["properties"], f"{path}.")

    yield from walk(properties, prefix)


def _reference(field: Mapping[str, Any]) -> str | None:
    """The section that a field holds, itself, or null, or in a list."""
    items = field.get("items", {})
    for part in (field, items, *field.get("anyOf", []), *items.get("oneOf", [])):
        if "$ref" in part:
            return str(part["$ref"]).rsplit("/", 1)[-1]
    return None


def _section(path: str, text: str, properties: Mapping[str, Any], required: set[str]) -> str:
    rows = []
    for key, field in properties.items():
        default = field.get("default")
        shown = "the section's defaults" if isinstance(default, Mapping) and _reference(field) else code(flow(default))
        shown = "required" if key in required else shown
        rows.append([code(key), kind(field), shown, prose(field.get("description", ""))])
    title = path if path.startswith("The ") else f"`{path}`"
    return page(f"## {title}", prose(text), table(("key", "type and range", "default", "what it does"), rows))


WORDS = {"integer": "whole number", "string": "text", "boolean": "true or false"}
LIMITS = {
    "exclusiveMinimum": "greater than",
    "minimum": "at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
}


def kind(field: Mapping[str, Any]) -> str:
    """Type and range of a field of a JSON Schema, in words."""
    if members := field.get("anyOf") or field.get("oneOf"):
        return ", or ".join(map(kind, members))
    if "$ref" in field:
        name = _reference(field) or ""
        return "any keys of `train`" if name.startswith("Partial") else "section"
    if "const" in field:
        return code(field["const"])
    if "enum" in field:
        return " or ".join(map(code, field["enum"]))
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])}, each {kind(field['prefixItems'][0])}"
    if field.get("type") == "array":
        return f"list, each {kind(field['items'])}" if "$ref" not in field["items"] else "list of sections"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return "mapping of names to " + (f"one {kind(values)} each" if isinstance(values, Mapping) else "values")
    limits = ", ".join(f"{sign} {_number(field[key])}" for key, sign in LIMITS.items() if key in field)
    return f"{WORDS.get(field['type'], field['type'])} {limits}".strip()


def _number(value: float) -> str:
    return f"{int(value)}" if float(value).is_integer() else f"{value:g}"


# --- errors ---------------------------------------------------------------------------------------


def errors_page() -> str:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.KdzooError)]
    classes.sort(key=lambda cls: (cls is errors.Interrupted, cls.exit_code, cls is not errors.KdzooError, cls.__name__))
    rows = []
    for cls in classes:
        number = "128 + the signal" if cls is errors.Interrupted else str(cls.exit_code)
        rows.append([code(cls.__name__), number, prose(_first(cls))])
    return page(ERRORS_INTRODUCTION, table(("class", "exit code", "raised for"), rows), ERRORS_END)


ERRORS_INTRODUCTION = """# Errors and exit codes

Every mistake that a user can make ends in one of these errors. The message says what is wrong, where, what was found
and what would be right. It goes to standard error, without a traceback. `--debug` (or the environment variable
`KDZOO_DEBUG`) shows the traceback too. If a command ends in any other way, it is a bug of kdzoo or of a plugin.

This page is generated from `kdzoo.errors` (`python docs/generate.py`), and a test compares the two. Exit codes do not
change their meaning.
"""

ERRORS_END = """Exit code 0 means done; a run that had already finished counts as done. `kdzoo test-plugin` ends with
exit code 1 if an algorithm breaks the contract.

`kdzoo run` ends with 130 after SIGINT (Ctrl-C) and with 143 after SIGTERM. It first finishes the current step and saves
the state; the same command resumes. A second signal ends it at once, and it resumes from its last checkpoint.
"""


def _first(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())


# --- results ----------------------------------------------------------------------------------------


#: The keys of what a network costs, as benchmarks/publish.py keeps them, and the heading of each.
COST_COLUMNS = (
    ("top1_percent", "accuracy %"),
    ("params_m", "parameters, millions"),
    ("size_mib", "MiB"),
    ("macs_g", "multiply-adds, billions"),
    ("latency_ms", "ms a sample"),
    ("processor_ms", "ms of processor time"),
)


class Measured:
    """What was measured for one recipe, one number per seed; everything else is computed from these."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text())
        self.path = path
        self.recipe, self.command, self.commit = str(data["recipe"]), str(data["command"]), str(data["commit"])
        self.hardware = str(data["hardware"])
        self.seeds: list[int] = list(data["seeds"])
        self.student: list[float] = list(data["student"])
        self.control: list[float] = list(data.get("control") or [])
        self.teacher: list[float] = list(data.get("teacher") or [])
        self.step_time: float | None = data.get("step_time_over_control")
        self.variants: dict[str, list[float]] = {label: list(v) for label, v in data.get("variants", {}).items()}
        self.upper_bound: str = data.get("upper_bound", "")
        self.tables: list[dict[str, Any]] = list(data.get("tables", []))
        self.costs: dict[str, dict[str, list[float]]] = dict(data.get("costs", {}))
        models = {name: getattr(self, name) for name in ("student", "control", "teacher")}
        for name, values in (*models.items(), *self.variants.items()):
            if len(values) != len(self.seeds) and (values or name == "student"):
                raise ValueError(f"{path}: '{name}' has {len(values)} values for {len(self.seeds)} seeds")

    @property
    def gains(self) -> list[float]:
        return [s - c for s, c in zip(self.student, self.control, strict=True)] if self.control else []

    def summary(self) -> str:
        gains = self.gains
        if not gains:
            return f"student {mean_std(self.student)} over {len(self.seeds)} seeds; there was no control run"
        wins = sum(gain > 0 for gain in gains)
        both = f"student {mean_std(self.student)}, control {mean_std(self.control)}"
        if self.upper_bound:
            return f"{both}, an upper bound; the student is {mean_std(gains, '+')} points from it"
        return f"{both}; paired gain {mean_std(gains, '+')} points, better on {wins} of {len(gains)} seeds"

    def table(self) -> str:
        columns = ((self.teacher, ""), (self.control, ""), (self.student, ""), (self.gains, "+"))
        rows = [[str(seed), *(_at(values, i, sign) for values, sign in columns)] for i, seed in enumerate(self.seeds)]
        rows.append(["**mean, std**", *(mean_std(values, sign) for values, sign in columns)])
        return table(("seed", "teacher %", "control %", "student %", "gain"), rows)

    def further(self) -> str:
        """What else the algorithm measures, e.g. other sizes of the student; empty if nothing."""
        rows = [(prose(label), mean_std(values)) for label, values in self.variants.items()]
        title = "Measured on the same split, by the algorithm itself:"
        return page(title, table(("", "mean, std %"), rows)) if rows else ""

    def what_it_costs(self) -> str:
        """Networks and exported files with their sizes and times; empty if they were not kept."""
        rows = [
            [prose(label), *(significant(values.get(key, [])) for key, _ in COST_COLUMNS)]
            for label, values in self.costs.items()
        ]
        title = "Networks and exported files. Times are medians of calls in turn, of one sample each:"
        return page(title, table(("", *(head for _, head in COST_COLUMNS)), rows)) if rows else ""

    def shown(self) -> str:
        """The tables that the algorithm shows, mean and deviation over the seeds; empty if there are none."""
        parts = []
        for item in self.tables:
            rows = [[prose(str(row[0])), *map(_item_cell, row[1:])] for row in item["rows"]]
            head = tuple(prose(str(column)) for column in item["columns"])
            parts.append(page(f"**{prose(item['title'])}.** {prose(item['note'])}", table(head, rows)))
        return page(*parts) if parts else ""


def _item_cell(cell: str | Sequence[float] | None) -> str:
    """A cell of an algorithm's table: words that are the same for every seed, or one number per seed."""
    if isinstance(cell, str):
        return prose(cell)
    return f"{cell[0]:g}" if cell and len(set(cell)) == 1 else mean_std(cell or [])


def _at(values: Sequence[float], index: int, sign: str) -> str:
    return f"{values[index]:{sign}.2f}" if values else ""


def mean_std(values: Sequence[float], sign: str = "") -> str:
    """Mean and sample standard deviation; without the latter for one value, empty for none."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.2f}{spread}"


def significant(values: Sequence[float]) -> str:
    """The same in four significant digits, for any unit; without a deviation if all values are equal."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2g}" if len(set(values)) > 1 else ""
    return f"{statistics.fmean(values):.4g}{spread}"


def measured(name: str) -> Measured | None:
    """What was measured for the recipe of this name; None when nothing was."""
    path = RESULTS / f"{name}.json"
    return Measured(path) if path.is_file() else None


# --- recipes ----------------------------------------------------------------------------------------


def read_recipes() -> dict[str, Recipe]:
    """Every bundled recipe by its path below recipes/, without the ending."""
    paths = bundled_recipes()
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): load_recipe(path).recipe for path in paths}


def recipe_pages(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    pages = {f"recipes/{name}.md": _recipe(name, recipe) for name, recipe in recipes.items()}
    pages["recipes/index.md"] = _recipe_index(recipes)
    return pages


def _recipe(name: str, recipe: Recipe) -> str:
    here = f"recipes/{name}.md"
    text = (RECIPES / f"{name}.yaml").read_text()
    head = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment, _, command = " ".join(line.lstrip("# ") for line in head).partition("Run: ")
    comment = comment.removeprefix(recipe.description).strip()
    algorithm = recipe.algorithm.name
    facts = [
        ["Algorithm", link(algorithm, f"algorithms/{algorithm}.md", here)],
        ["Teacher", _names(recipe.models.all_teachers) or "none"],
        ["Assistants", _names(recipe.models.assistants)],
        ["Peers", _names(recipe.models.peers)],
        ["Student", _names((recipe.models.student,))],
        ["Data", code(recipe.data.name)],
    ]
    return page(
        f"# {recipe.name}",
        link("all recipes", "recipes/index.md", here),
        prose(recipe.description),
        prose(comment),
        fenced(command, "bash") if command else "",
        table(("what", "which"), [row for row in facts if row[1]]),
        "## Result",
        _result(recipe, here),
        "## The recipe",
        fenced(text, "yaml"),
    )


def _names(models: Iterable[Any]) -> str:
    return ", ".join(f"{code(m.name)} {code(flow(m.args))}" if m.args else code(m.name) for m in models)


def _result(recipe: Recipe, here: str) -> str:
    found = measured(recipe.name)
    if found is None:
        return "Not measured yet."
    raw = link("the numbers as data", f"results/{found.path.name}", here)
    return page(
        "Top-1 accuracy on the test split, read once after training. The control is the recipe's student under the "
        + (f"same budget, trained {found.upper_bound}." if found.upper_bound else "same budget without the teacher."),
        found.table(),
        found.further(),
        found.what_it_costs(),
        found.shown(),
        f"In short: {found.summary()}.",
        f"Measured by `{found.command}` at commit `{found.commit}` on {prose(found.hardware)} ({raw}). "
        + _how_to_re_check(recipe.expected),
    )


def _how_to_re_check(expected: ExpectedRecipe | None) -> str:
    if expected is None:
        return ""
    if can_be_reproduced(expected):
        return "`kdzoo verify` re-checks it."
    return (
        f"`kdzoo verify` trains it again, but its answer is at best *undecided*: with a standard deviation of "
        f"{expected.std:g} points over {expected.seeds} seeds, means that far apart say nothing."
    )


def _recipe_index(recipes: Mapping[str, Recipe]) -> str:
    rows = []
    for name, recipe in recipes.items():
        found = measured(recipe.name)
        numbers = (mean_std(found.student), mean_std(found.control), str(len(found.seeds))) if found else None
        rows.append(
            [
                link(name, f"recipes/{name}.md", "recipes/index.md"),
                link(recipe.algorithm.name, f"algorithms/{recipe.algorithm.name}.md", "recipes/index.md"),
                _names((recipe.models.student,)),
                code(recipe.data.name),
                *(numbers or ("not measured yet", "", "")),
            ]
        )
    head = ("recipe", "algorithm", "student", "data", "student %", "control %", "seeds")
    return page(RECIPES_INTRODUCTION, table(head, rows))


RECIPES_INTRODUCTION = """# Recipes

The recipes that come with kdzoo. `kdzoo run RECIPE` runs one; `kdzoo new recipe NAME --algorithm ALGORITHM` writes
a new one to start from. Accuracies are top-1 percent on the test split, mean and standard deviation over seeds. The
control is the same student under the same budget without the teacher.
"""


# --- evidence ---------------------------------------------------------------------------------------


def evidence_page(zoo: Zoo, recipes: Mapping[str, Recipe]) -> str:
    """One table a data set: every measured recipe, the largest gain first."""
    by_data: dict[str, list[tuple[str, Recipe, Measured]]] = {}
    for name, recipe in recipes.items():
        found = measured(recipe.name)
        if found is not None:
            by_data.setdefault(recipe.data.name, []).append((name, recipe, found))
    sections = []
    for data, rows in sorted(by_data.items(), key=lambda item: (item[0] == "digits", -len(item[1]), item[0])):
        ranked = sorted(rows, key=lambda row: -statistics.fmean(row[2].gains) if row[2].gains else 0.0)
        bounded = [row for row in ranked if row[2].upper_bound]
        blind = [row for row in ranked if zoo.algorithm(row[1].algorithm.name).needs.data == "none"]
        usual = [row for row in ranked if row not in bounded and row not in blind]
        figures = _evidence_figures(data, usual)
        parts = [figures, _evidence_table(usual, folded=bool(figures)) if usual else ""]
        for text, others in ((EVIDENCE_BLIND, blind), (EVIDENCE_BOUNDED, bounded)):
            parts += [text, _evidence_table(others)] if others else []
        sections.append(page(f"## {data}", *parts))
    shown = {recipe.algorithm.name for rows in by_data.values() for _, recipe, _ in rows}
    missing = sorted(set(zoo.algorithms) - shown)
    if missing:
        sections.append(page("## Not measured yet", ", ".join(code(name) for name in missing)))
    return page(EVIDENCE_INTRODUCTION, *sections)


def _evidence_table(rows: Sequence[tuple[str, Recipe, Measured]], folded: bool = False) -> str:
    text = table(EVIDENCE_HEAD, [_evidence_row(*row) for row in rows])
    title = f"The numbers of {len(rows)} recipes"
    return f"<details markdown>\n<summary>{title}</summary>\n\n{text}\n\n</details>" if folded else text


def _evidence_figures(data: str, rows: Sequence[tuple[str, Recipe, Measured]]) -> str:
    found = {name.removeprefix(f"{data}/"): one for name, _, one in rows if one.gains}
    step_times = {label: one.step_time for label, one in found.items() if _times(one.step_time)}
    return gain_figures(data, {label: one.gains for label, one in found.items()}, step_times)


def _evidence_row(name: str, recipe: Recipe, found: Measured) -> Row:
    gains, here = found.gains, "evidence.md"
    best = f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if gains else ""
    return [
        link(name.removeprefix(f"{recipe.data.name}/"), f"recipes/{name}.md", here),
        link(recipe.algorithm.name, f"algorithms/{recipe.algorithm.name}.md", here),
        mean_std(found.teacher),
        mean_std(found.control),
        mean_std(found.student),
        mean_std(gains, "+"),
        best,
        _times(found.step_time),
    ]


EVIDENCE_HEAD = ("recipe", "algorithm", "teacher %", "control %", "student %", "gain", "better on", "step")
EVIDENCE_BLIND = "These see no training data, while their control does:"
EVIDENCE_BOUNDED = (
    "Held against an upper bound: a control that the student is not expected to beat. The recipe's page has the lower "
    "bound too."
)
EVIDENCE_INTRODUCTION = """---
hide: [toc]
---

# Evidence

Was distillation worth it? Here is every measured recipe by data set, the largest gain first. Recipes that do not beat
their control are not left out.

All numbers are top-1 percent on the test split, read once after training: mean and standard deviation over seeds. The
*control* is the same student, trained alone under the same budget; for some algorithms it is another one, and their
cards say which. *Gain* is the student's accuracy minus the control's, in points; both start from the same seed, so the
difference is paired. *Step* is the time of a training step of the student, divided by that of the control.

`make evidence` measures all of it again, with three seeds each. It may be killed at any point and goes on from there.
The pages of the recipes have every seed, the command and the commit.
"""


# --- algorithms -------------------------------------------------------------------------------------


def algorithm_pages(zoo: Zoo, recipes: Mapping[str, Recipe]) -> dict[str, str]:
    pages = {f"algorithms/{name}.md": _algorithm(offer, zoo, recipes) for name, offer in zoo.algorithms.items()}
    pages["algorithms/index.md"] = _algorithm_index(zoo, recipes)
    return pages


def hand_written(cls: type) -> dict[str, str]:
    """The sections of ``<name>.md`` next to a class; empty if its plugin has none."""
    path = Path(inspect.getfile(cls)).with_name(f"{cls.name}.md")  # type: ignore[attr-defined]
    if not path.is_file():
        return {}
    parts = re.split(r"(?m)^## (.+)$", path.read_text())
    return {title.strip(): text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def uses(name: str, recipes: Mapping[str, Recipe], zoo: Zoo) -> list[str]:
    """The recipes that use an algorithm, directly or as the delegate of another one."""
    return [path for path, recipe in recipes.items() if name in (recipe.algorithm.name, _delegate(recipe, zoo))]


def _delegate(recipe: Recipe, zoo: Zoo) -> str | None:
    cls = zoo.algorithm(recipe.algorithm.name)
    if cls.delegate is None:
        return None
    return recipe.algorithm.options.get(cls.delegate, cls.Options.model_fields[cls.delegate].default)


def _algorithm(offer: Offer, zoo: Zoo, recipes: Mapping[str, Recipe]) -> str:
    cls: type[Algorithm] = offer.thing
    here = f"algorithms/{cls.name}.md"
    parts, notes = card.docstring_parts(cls), hand_written(cls)
    summary, _, idea = parts[""].partition("\n\n")
    own = {title: _linked(text, cls.name, zoo) for title, text in notes.items()}
    shown_by_hand = {"Differs from the paper"} if DIFFERS in notes else set()
    labels = [label for label in card.LABELS if parts.get(label) and label not in shown_by_hand]
    described = [f"**{label}:** {prose(' '.join(parts[label].split()))}" for label in labels]

    def by_hand(title: str) -> tuple[str, ...]:
        return (f"## {title}", own[title]) if title in own else ()

    place = f", {prose(cls.paper.equation)}" if cls.paper.equation else ""
    known = f" Also known as {', '.join(map(code, cls.also_known_as))}." if cls.also_known_as else ""
    return page(
        f"# {cls.name}",
        link("all algorithms", "algorithms/index.md", here),
        prose(" ".join(summary.split())),
        f"{prose(cls.paper.authors)}, [{_plain(cls.paper.title)}]({cls.paper.url}), {cls.paper.year}{place}. From the "
        f"plugin `{offer.plugin}` of `{offer.distribution}`.{known}",
        *by_hand(IN_BRIEF),
        *by_hand(WHEN),
        "## Can I use it?",
        table(("what", "answer"), [[name, prose(value)] for name, value in card.abilities(cls)]),
        "## In a recipe",
        _recipe_form(cls),
        _recipes_of(cls.name, recipes, zoo, here),
        "## As a function",
        _functions(cls),
        "## What it matches",
        prose(idea),
        *described,
        *by_hand(DIFFERS),
        "## Results",
        _results_of(cls.name, recipes, zoo, here),
        *by_hand(NOTES),
        *_exemptions(cls),
    )


def _linked(text: str, own: str, zoo: Zoo) -> str:
    """Hand-written text with the names of other algorithms as links to their cards."""

    def to_card(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"[`{name}`]({name}.md)" if name in zoo.algorithms and name != own else found.group()

    return re.sub(r"(?<![`\[])`([a-z0-9_]+)`(?!`)", to_card, text)


def _recipe_form(cls: type[Algorithm]) -> str:
    fields = cls.Options.model_fields
    options = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    lines = ["algorithm:", f"  name: {cls.name}"]
    lines += [f"  options: {flow(options)}"] if options else []
    lines += [f"  loss_weights: {flow(dict(cls.default_weights))}"] if cls.default_weights else []
    rows = []
    for name, words, _, text in card.option_rows(cls):
        rows.append([code(name), prose(words), code(flow(options[name])), prose(text)])
    delegate = (
        f"Options and loss weights that are not listed here go to the algorithm named by `{cls.delegate}`."
        if cls.delegate
        else ""
    )
    return page(
        "With every default:",
        fenced("\n".join(lines), "yaml"),
        table(("option", "type and range", "default", "what it does"), rows) if rows else "It has no options.",
        delegate,
    )


def _recipes_of(name: str, recipes: Mapping[str, Recipe], zoo: Zoo, here: str) -> str:
    found = [link(recipe, f"recipes/{recipe}.md", here) for recipe in uses(name, recipes, zoo)]
    return f"Recipes that use it: {', '.join(found)}." if found else "No bundled recipe uses it."


def _functions(cls: type[Algorithm]) -> str:
    """The pure functions that the class names."""
    if not cls.loss_functions:
        return "It has no loss of its own."
    return page(*map(_function, cls.loss_functions))


def _function(function: Callable[..., Any]) -> str:
    line = f"from kdzoo.losses import {function.__name__}"
    return page(fenced(f"{line}\n\n{_signature(function)}", "python"), _documented(function))


def _signature(function: Callable[..., Any]) -> str:
    """The line or lines of ``def``, as they are written."""
    return re.split(r":\n    (?! )", inspect.getsource(function), maxsplit=1)[0]


def _documented(function: Callable[..., Any]) -> str:
    return "\n\n".join(prose(" ".join(part.split())) for part in inspect.cleandoc(function.__doc__ or "").split("\n\n"))


def _results_of(name: str, recipes: Mapping[str, Recipe], zoo: Zoo, here: str) -> str:
    rows = []
    for recipe in uses(name, recipes, zoo):
        found = measured(recipes[recipe].name)
        if found is not None:
            numbers = (mean_std(found.control), mean_std(found.student), mean_std(found.gains, "+"))
            rows.append([link(recipe, f"recipes/{recipe}.md", here), *numbers, str(len(found.seeds))])
    head = ("recipe", "control %", "student %", "gain", "seeds")
    return table(head, rows) if rows else "Not measured yet."


def _exemptions(cls: type[Algorithm]) -> list[str]:
    if not cls.skip_checks:
        return []
    lines = [f"- `{check}`: {prose(reason)}" for check, reason in cls.skip_checks.items()]
    return ["## Exempt from the conformance suite", "The class itself declares these exceptions:", "\n".join(lines)]


def _algorithm_index(zoo: Zoo, recipes: Mapping[str, Recipe]) -> str:
    found = _measured_on(COMPARED_ON, recipes)
    rows = [_overview(offer, found.get(name)) for name, offer in sorted(zoo.algorithms.items())]
    families = [[code(family), prose(_first(_package(offers)))] for family, offers in _families(zoo).items()]
    return page(
        ALGORITHMS_INTRODUCTION,
        '<div class="catalogue" markdown>',
        table(ALGORITHMS_HEAD, rows),
        "</div>",
        "## Families",
        table(("family", "what it is"), families),
    )


#: The data set that most algorithms were measured on, with the same networks and budget.
COMPARED_ON = "fashion_mnist"
#: docs/assets/tables.js filters by these heads.
ALGORITHMS_HEAD = (
    "algorithm",
    "what the student is made to match",
    "family",
    "teachers",
    "labels",
    "features",
    "gain, points",
    "step, times",
)
LABELS_NEEDED = {"labelled": "all", "any": "some", "unlabelled": "none", "none": "no data"}
ALGORITHMS_INTRODUCTION = """---
hide: [toc]
---

# Algorithms

Every algorithm that comes with kdzoo. Each has a card: what it does, when to use it, what it needs, its options, how it
differs from its paper, and what was measured. `kdzoo show NAME` prints the same in a terminal.

*Teachers* is how many it needs. *Labels* says how many of the training samples must have one: all, some, none, or that
there need be no data at all. *Features* says whether it reads feature maps or embeddings, or answers alone. *Gain* is
the student's test accuracy minus that of its control, the same student trained alone, and *step* the time of a training
step divided by the control's. Both were measured on 6000 images of Fashion-MNIST over three seeds, and are empty where
the control is an upper bound. The page [evidence](../evidence.md) has other data sets.
"""


def _families(zoo: Zoo) -> dict[str, list[Offer]]:
    families: dict[str, list[Offer]] = {}
    for _, offer in sorted(zoo.algorithms.items()):
        families.setdefault(offer.plugin, []).append(offer)
    return dict(sorted(families.items()))


def _package(offers: Sequence[Offer]) -> Any:
    """The package of a family, whose docstring says what the family is."""
    return sys.modules[offers[0].thing.__module__.split(".")[0]]


def _overview(offer: Offer, found: Measured | None) -> Row:
    cls: type[Algorithm] = offer.thing
    summary = " ".join(card.docstring_parts(cls)[""].split("\n\n")[0].split())
    also = f' {{ data-also="{" ".join(cls.also_known_as)}" }}' if cls.also_known_as else ""
    return [
        f"[{cls.name}]({cls.name}.md){also}",
        prose(summary),
        offer.plugin,
        card.count(cls.needs.teachers),
        LABELS_NEEDED[cls.needs.data],
        "yes" if cls.needs.features or cls.needs.pre_logits else "no",
        mean_std(found.gains, "+") if found else "",
        _times(found.step_time) if found else "",
    ]


def _measured_on(data: str, recipes: Mapping[str, Recipe]) -> dict[str, Measured]:
    """Algorithm -> what was measured for it on a data set, against a control that it is expected to beat."""
    found = {r.algorithm.name: measured(r.name) for r in recipes.values() if r.data.name == data}
    return {name: one for name, one in found.items() if one is not None and one.gains and not one.upper_bound}


def _times(step_time: float | None) -> str:
    """How long a step takes, in steps of the control; empty where that was not measured, or is no number."""
    return f"{step_time:.2f}" if step_time is not None and step_time == step_time else ""


def readme(text: str, zoo: Zoo, recipes: Mapping[str, Recipe]) -> str:
    """The README with the list of algorithms and their measured results."""
    written = {"algorithms": _families_and_algorithms(zoo), "results": _worth(recipes, zoo)}
    for what, content in written.items():
        begin, end = f"<!-- {what}: written by docs/generate.py -->", f"<!-- end of {what} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return text


def _families_and_algorithms(zoo: Zoo) -> str:
    rows = []
    for family, offers in _families(zoo).items():
        notes = [Path(inspect.getfile(offer.thing)).parent.name for offer in offers]
        links = [f"[`{o.name}`](plugins/{folder}/{o.name}.md)" for o, folder in zip(offers, notes, strict=True)]
        rows.append([family, _first(_package(offers)).split(":")[-1].strip(), ", ".join(links)])
    return table(("family", "what it is", "algorithms"), rows)


def _worth(recipes: Mapping[str, Recipe], zoo: Zoo) -> str:
    """The algorithms measured on Fashion-MNIST by how often the student beats its control, the largest gain first."""
    gains = {name: found.gains for name, found in _measured_on(COMPARED_ON, recipes).items()}
    ranked = sorted(gains, key=lambda name: -statistics.fmean(gains[name]))
    blind = [name for name in ranked if zoo.algorithm(name).needs.data == "none"]
    every = [name for name in ranked if min(gains[name]) > 0 and name not in blind]
    never = [name for name in ranked if max(gains[name]) <= 0 and name not in blind]
    some = [name for name in ranked if name not in {*every, *never, *blind}]
    rows = [
        [when, ", ".join(f"{code(name)} {statistics.fmean(gains[name]):+.1f}" for name in names)]
        for when, names in (
            ("with every seed", every),
            ("with some seeds", some),
            ("with none", never),
            ("sees no data, its control does", blind),
        )
    ]
    return table(("student better than control", "algorithms, with the mean difference in points"), rows)


# --- export formats -----------------------------------------------------------------------------------


def exporter_pages(zoo: Zoo) -> dict[str, str]:
    return {f"exporters/{name}.md": _exporter(offer) for name, offer in zoo.exporters.items()}


def _exporter(offer: Offer) -> str:
    cls = offer.thing
    sections = [part for title, text in hand_written(cls).items() for part in (f"## {title}", text)]
    back = link("evaluate and export", "evaluate-and-export.md", f"exporters/{cls.name}.md")
    rows = [
        [code(name), prose(words), code(default), prose(text)] for name, words, default, text in card.option_rows(cls)
    ]
    options = ["## Options", table(("option", "type and range", "default", "what it does"), rows)] if rows else []
    return page(f"# {cls.name}", back, prose(cls.description), *sections, *options)


# --- losses -------------------------------------------------------------------------------------------

LOSSES_INTRODUCTION = """# Losses

Every loss of every algorithm is a pure function of tensors under one path, `kdzoo.losses`, for a training loop of your
own. A function stays under its name; arguments may be added and never change their meaning. A plugin that you install
adds its own functions: `dir(kdzoo.losses)` lists what is there, and `help(kdzoo.losses.kd_loss)` says what it takes. Of
the plugins only the one that has the function is imported.

Only what an algorithm computes from its networks' answers is here. Projectors, memory banks and warm-up belong to the
algorithm, and its [card](../algorithms/index.md) says what it does around the function.

A complete training loop in plain PyTorch:
"""


def losses_page(zoo: Zoo) -> str:
    example = (DOCS / "examples" / "own_loop.py").read_text()
    users: dict[Callable[..., Any], list[str]] = {}
    for name, offer in sorted(zoo.algorithms.items()):
        for function in offer.thing.loss_functions:
            users.setdefault(function, []).append(link(name, f"algorithms/{name}.md", "reference/losses.md"))
    for name in losses.__all__:
        users.setdefault(getattr(losses, name), [])
    sections = []
    for function in sorted(users, key=lambda function: function.__name__):
        used = f"Used by {', '.join(users[function])}." if users[function] else ""
        sections.append(page(f"## {function.__name__}", used, _function(function)))
    return page(LOSSES_INTRODUCTION, fenced(example, "python"), *sections)


# --- all of it ----------------------------------------------------------------------------------------


def reference_pages() -> dict[str, str]:
    """The pages under version control."""
    return {
        "reference/cli.md": cli_page(),
        "reference/recipe.md": recipe_page(),
        "reference/errors.md": errors_page(),
        "reference/losses.md": losses_page(built_in()),
    }


def built_in() -> Zoo:
    """The zoo without third-party plugins of this environment."""
    zoo = load_zoo()
    own = {name: offer for name, offer in zoo.algorithms.items() if offer.distribution == BUILT_IN}
    exporters = {name: offer for name, offer in zoo.exporters.items() if offer.distribution == BUILT_IN}
    return dataclasses.replace(zoo, algorithms=own, exporters=exporters)


def gallery_pages() -> dict[str, str]:
    """A card per algorithm, a page per recipe, one per export format and one per notebook, without its outputs."""
    zoo, recipes = built_in(), read_recipes()
    pages = algorithm_pages(zoo, recipes) | recipe_pages(recipes) | exporter_pages(zoo) | notebook_pages(execute=False)
    return pages | {"evidence.md": evidence_page(zoo, recipes)}


def main() -> None:
    pages = reference_pages() | gallery_pages()
    if "--notebooks" in sys.argv[1:]:
        pages |= notebook_pages(execute=True)
    stale = {path for folder in GENERATED_FOLDERS for path in (DOCS / folder).rglob("*.md")}
    for path in stale - {DOCS / name for name in pages}:
        path.unlink()
    README.write_text(readme(README.read_text(), built_in(), read_recipes()))
    for name, text in pages.items():
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(text)
    print(f"wrote {len(pages)} pages")


if __name__ == "__main__":
    main()
