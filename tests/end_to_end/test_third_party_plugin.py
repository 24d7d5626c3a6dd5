"""A plugin from somebody else: from an empty folder to a run, and what it must not be able to spoil."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from command_line import CommandLine, Trained, lasting, run_folder, stock
from test_refusals import PLUGINS, refused

from kdzoo import __version__


class Installed:
    def __init__(self, cli: CommandLine, files: list[str], said: str) -> None:
        self.cli, self.files, self.said = cli, files, said
        self.env = {"PYTHONPATH": str(cli.place / "site")}


@pytest.fixture(scope="module")
def mimic(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A package scaffolded by kdzoo, built and installed by pip without a network."""
    cli = CommandLine(tmp_path_factory.mktemp("mimic"))
    ended = cli("new", "algorithm", "soft_mimic")
    assert ended.code == 0, ended
    files = ended.out.split()
    install = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    installed = cli.shell(*install, "--target", "site", "./kdzoo-soft-mimic").wait()
    assert installed.code == 0, installed
    return Installed(cli, files, installed.out)


def test_a_scaffold_is_four_files_and_a_wheel(mimic: Installed) -> None:
    root = "kdzoo-soft-mimic"
    tail = ("pyproject.toml", "kdzoo_soft_mimic/__init__.py", "tests/test_soft_mimic.py", "soft_mimic.yaml")
    assert mimic.files == [f"{root}/{name}" for name in tail]
    assert "Successfully installed kdzoo-soft-mimic-0.1.0" in mimic.said
    ended = mimic.cli("new", "algorithm", "soft_mimic")
    refused(ended, 4, f"{root}/pyproject.toml: exists already; nothing was written")
    refused(
        mimic.cli("new", "algorithm", "SoftMimic"),
        2,
        "new algorithm: 'SoftMimic' is not lower snake case, e.g. 'my_method'",
    )


def test_the_installed_algorithm_is_listed_with_its_owner(mimic: Installed) -> None:
    rows = {row["name"]: row for row in json.loads(mimic.cli("list", "--json", env=mimic.env).out)}
    row = rows["soft_mimic"]
    assert (row["plugin"], row["distribution"], row["version"]) == ("soft_mimic", "kdzoo-soft-mimic", "0.1.0")
    assert "kd" in rows
    assert "soft_mimic" not in {row["name"] for row in json.loads(mimic.cli("list", "--json").out)}
    (plugin,) = [
        row for row in json.loads(mimic.cli("plugins", "--json", env=mimic.env).out) if row["name"] == "soft_mimic"
    ]
    assert plugin["status"] == "ok"
    assert "scale" in mimic.cli("show", "soft_mimic", env=mimic.env).out
    assert '"soft_mimic"' in mimic.cli("schema", env=mimic.env).out


@pytest.mark.costly(15)
def test_the_installed_algorithms_loss_is_among_kdzoos(mimic: Installed) -> None:
    code = (
        "import kdzoo, sys; from kdzoo.losses import soft_mimic_loss; "
        "print(soft_mimic_loss.__module__, 'soft_mimic_loss' in dir(kdzoo.losses), 'timm' in sys.modules)"
    )
    mimic.cli("list", env=mimic.env)  # which leaves a catalogue, as any command does
    ended = mimic.cli.shell(sys.executable, "-c", code, env=mimic.env).wait()
    assert ended.out == "kdzoo_soft_mimic True False\n", ended  # no other plugin is imported


@pytest.mark.costly(20)
def test_the_installed_algorithm_conforms(mimic: Installed) -> None:
    ended = mimic.cli("test-plugin", "soft_mimic", "--json", env=mimic.env)
    assert ended.code == 0, ended
    rows = json.loads(ended.out)
    assert len(rows) >= 20
    assert {row["algorithm"] for row in rows} == {"soft_mimic"}
    assert {row["status"] for row in rows} <= {"passed", "vacuous"}


def test_the_installed_algorithm_runs_by_its_recipe(mimic: Installed, trained: Trained) -> None:
    scaffolded = yaml.safe_load((mimic.cli.place / mimic.files[3]).read_text())
    assert mimic.cli("check", mimic.files[3], env=mimic.env).code == 0
    assert mimic.cli("new", "recipe", "other", "--algorithm", "soft_mimic", env=mimic.env).code == 0
    other = yaml.safe_load((mimic.cli.place / "other.yaml").read_text())
    assert other | {"name": ""} == scaffolded | {"name": ""}
    out = stock(mimic.cli.place / "out", trained.folder, "teacher")
    path = mimic.cli.recipe({"algorithm": {"name": "soft_mimic", "options": {"scale": 2.0}}})
    ended = mimic.cli("run", path, "--out", out, env=mimic.env)
    assert ended.code == 0, ended
    folder = run_folder(out)
    assert "soft_mimic" in (folder / "metrics.jsonl").read_text()
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["plugins"]["soft_mimic"] == {"distribution": "kdzoo-soft-mimic", "version": "0.1.0"}
    ended = mimic.cli("run", path, "--out", out)
    assert ended.code == 2, "without the plugin the name is unknown"
    assert "line 5 algorithm.name: unknown algorithm 'soft_mimic'" in ended.err


# --- plugins that misbehave ---------------------------------------------------------------------

MISBEHAVING = {
    "bad_hook": "Argument(s) {'registry'} are declared in the hookimpl but can not be found in the hookspec",
    "broken_import": "ModuleNotFoundError: No module named 'library_that_nobody_has'",
    "failing_hook": "ValueError: the second one is missing",
    "from_the_future": f"made for plugin API 99; kdzoo {__version__} has plugin API 1",
    "impostor": "algorithm 'kd' of plugin 'impostor' (kdzoo-impostor 1.0) is also offered by plugin 'response' "
    f"(kdzoo {metadata.version('kdzoo')}); only one can have it",
    "leaving": "SystemExit: 7",
}

ALL_OF_THEM = {"PYTHONPATH": os.pathsep.join(str(PLUGINS / name) for name in MISBEHAVING)}


def test_broken_plugins_are_told_once_each_and_change_nothing(cli: CommandLine, trained: Trained) -> None:
    stock(cli.place / "out", trained.folder, "teacher")
    ended = cli("run", cli.recipe(), "--out", "out", env=ALL_OF_THEM)
    assert ended.code == 0, ended
    warnings = [line for line in ended.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(MISBEHAVING)
    for warning, (name, cause) in zip(warnings, MISBEHAVING.items(), strict=True):
        assert warning.startswith(f"warning: plugin {name} (kdzoo-{name.replace('_', '-')} 1.0) failed to load: "), (
            warning
        )
        assert cause in warning
    assert lasting(run_folder(cli.place / "out")) == lasting(trained.folder)


def test_plugins_tells_the_cause_of_each(cli: CommandLine) -> None:
    ended = cli("plugins", env=ALL_OF_THEM)
    assert ended.code == 0, ended
    rows = {line.split()[0]: line.split() for line in ended.out.splitlines()}
    for name, cause in MISBEHAVING.items():
        assert rows[name][3] == "broken"
        assert cause in " ".join(rows.pop(name)[4:])
    assert {tuple(row[3:]) for row in rows.values()} == {("ok",)}
    assert [line.split() for line in cli("plugins").out.splitlines()] == list(rows.values())


def installed(place: Path, name: str, source: str) -> dict[str, str]:
    """Put a plugin into a folder as pip would; return the environment in which it is the only one."""
    info = place / f"kdzoo_{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kdzoo-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kdzoo]\n{name} = kdzoo_{name}\n")
    (place / f"kdzoo_{name}.py").write_text(source)
    return {"PYTHONPATH": str(place), "KDZOO_PLUGINS": name, "XDG_CACHE_HOME": str(place / "cache")}


def test_a_plugin_that_ends_the_process_ends_no_command(cli: CommandLine) -> None:
    env = installed(cli.place / "site", "ender", "import os\nos._exit(3)\n")
    for command in ("plugins", "list"):
        ended = cli.cold(command, env=env)
        assert ended.code == 0, ended
        assert "ended the process with exit code 3 while loading" in ended.out + ended.err
    ended = cli.cold("check", cli.recipe(), env=env)
    assert ended.code == 2, ended
    assert "note: plugin 'ender' (kdzoo-ender 1.0) failed to load: ended the process with exit code 3" in ended.err


def test_what_a_plugin_changes_of_torch_is_said_once_and_undone(cli: CommandLine, trained: Trained) -> None:
    source = "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_flush_denormal(True)\n"
    source += "from kdzoo.api import hookimpl\n@hookimpl\ndef register_models(register): ...\n"
    env = installed(cli.place / "site", "changer", source) | {"KDZOO_PLUGINS": "changer,response,vision"}
    stock(cli.place / "out", trained.folder, "teacher")
    ended = cli("run", cli.recipe(), "--out", "out", env=env)
    assert ended.code == 0, ended
    assert ended.err.count("plugin changer") == 1
    assert (
        "warning: plugin changer (kdzoo-changer 1.0) changed torch's default dtype from float32 to float64, torch's "
        "flushing of denormals from False to True while it was loaded; kdzoo gave that back\n"
    ) in ended.err
    assert lasting(run_folder(cli.place / "out")) == lasting(trained.folder)


@pytest.mark.parametrize("name", ["half_offered", "from_the_future"])
def test_using_what_a_broken_plugin_may_have_offered_tells_why_it_is_not_there(cli: CommandLine, name: str) -> None:
    ended = cli("run", cli.recipe({"algorithm": {"name": name}}), "--out", "out", env=ALL_OF_THEM)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    assert f"algorithm.name: unknown algorithm '{name}'" in ended.err
    for cause in MISBEHAVING.values():
        assert cause in ended.err.partition("unknown algorithm")[2]


def test_a_broken_plugin_can_be_left_out(cli: CommandLine) -> None:
    ended = cli("list", "--json", env={**ALL_OF_THEM, "KDZOO_PLUGINS": "response,vision"})
    assert ended.code == 0, ended
    assert ended.err == ""
    rows = json.loads(ended.out)
    assert {row["plugin"] for row in rows} == {"response"}
    assert "kd" in {row["name"] for row in rows}
    ended = cli("list", env={**ALL_OF_THEM, "KDZOO_PLUGINS": "respond"})
    assert ended.code == 2
    assert ended.err.startswith("error: KDZOO_PLUGINS: unknown plugin 'respond'; did you mean 'response'? known: ")


def test_help_needs_no_plugin(cli: CommandLine) -> None:
    ended = cli.cold("--help", env=ALL_OF_THEM)
    assert ended.code == 0
    assert ended.err == ""


def test_every_broken_plugin_of_the_fixtures_is_tried() -> None:
    folders = {path.name for path in Path(PLUGINS).iterdir() if path.is_dir()}
    assert folders == {*MISBEHAVING, "exploding", "harmful"}
