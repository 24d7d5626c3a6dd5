"""The catalogue answers for what is installed now, whatever happens to the folder it is kept in."""

# ruff: noqa: F811 the fixture is imported

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from test_zoo import ALGORITHM, Shelf, shelf  # noqa: F401 the fixture

from kdzoo.plan.resolve import doubtful, further_problems
from kdzoo.plan.schema import fits, recipe_schema
from kdzoo.zoo import cache as entries
from kdzoo.zoo import catalogue as catalogues
from kdzoo.zoo import loading
from kdzoo.zoo import survey as surveys
from kdzoo.zoo.cache import fatal_plugins
from kdzoo.zoo.cards import body_of, zoo_of
from kdzoo.zoo.catalogue import catalogue, remembered
from kdzoo.zoo.finding import find_plugins
from kdzoo.zoo.loading import load_plugins, load_zoo

OPTIONS = """
    from typing import Literal
    from kdzoo.api import Algorithm, AlgorithmOptions, Needs, Paper, hookimpl
    from pydantic import Field

    class Beta(Algorithm):
        \"\"\"Makes one like the other.

        The idea.
        \"\"\"
        name = "beta"
        paper = Paper("A paper", "An author", 2020, "https://example.org")
        needs = Needs(teachers=(2, None), min_batch=2)
        default_weights = {"task": 1, "beta": 0.5}
        also_known_as = ("second_letter",)

        class Options(AlgorithmOptions):
            heat: float = Field(4.0, gt=0, description="Heat.")
            kind: Literal["a", "b"] = Field("a", description="Kind.")

        def losses(self, ctx):
            return {}

    @hookimpl
    def register_algorithms(register):
        register(Beta)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and plugins that are surveyed in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(entries, "_fatal", {})
    monkeypatch.setattr(surveys, "survey", lambda found, only, fatal: (body_of(load_plugins(found, only, fatal)), {}))
    return tmp_path / "cache" / "kdzoo" / "catalogue"


def forgotten() -> None:
    """As a new process: nothing of the shelf is imported yet."""
    for name in [name for name in sys.modules if name.startswith("shelf_")]:
        del sys.modules[name]
    loading._load_all.cache_clear()


def source_of(shelf: Shelf) -> Path:
    return Path(shelf.path[-1], "shelf_third_third.py")


def test_cards_say_what_the_classes_say(shelf: Shelf, cache: Path) -> None:
    shelf.put("third", "1.5", third=OPTIONS)
    loaded, cards = load_zoo(), catalogue()
    forgotten()
    again = remembered()
    assert again is not None
    assert "shelf_third_third" not in sys.modules, "reading the catalogue imports nothing"
    assert (again.algorithms, again.plugins) == (cards.algorithms, loaded.plugins)
    offer = again.algorithms["beta"]
    assert (offer.plugin, offer.distribution, offer.version) == ("third", "third", "1.5")
    cls, card = loaded.algorithm("beta"), offer.thing
    for name in ("name", "paper", "needs", "default_weights", "also_known_as", "delegate", "quantizer"):
        assert getattr(card, name) == getattr(cls, name), name
    assert card.doc == "Makes one like the other.\n\nThe idea."
    assert (card.fields, card.open, card.rung) == (("heat", "kind"), False, "losses")
    assert recipe_schema(again) == recipe_schema(loaded)


def test_a_change_of_a_plugin_s_source_is_noticed(shelf: Shelf, cache: Path) -> None:
    shelf.put("third", third=OPTIONS)
    assert "beta" in catalogue().algorithms
    source = source_of(shelf)
    about = source.stat()
    source.write_text(source.read_text().replace('"beta"', '"zeta"'))
    os.utime(source, ns=(about.st_atime_ns, about.st_mtime_ns))  # the same size, and the time of before
    forgotten()
    assert remembered() is None
    assert {"zeta"} == catalogue().algorithms.keys() - {"alpha"}


def test_an_upgrade_is_noticed(shelf: Shelf, cache: Path) -> None:
    shelf.put("third", "1.0", third=OPTIONS)
    assert catalogue().algorithms["beta"].version == "1.0"
    (info,) = Path(shelf.path[-1]).glob("*.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 2.0\n")
    forgotten()
    assert catalogue().algorithms["beta"].version == "2.0"


def test_another_choice_of_plugins_is_another_catalogue(
    shelf: Shelf,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.put("third", third=OPTIONS)
    assert set(catalogue().algorithms) == {"alpha", "beta"}
    monkeypatch.setenv("KDZOO_PLUGINS", "builtin")
    assert set(catalogue().algorithms) == {"alpha"}
    shelf.put("fourth", fourth=ALGORITHM.format(name="delta"))
    monkeypatch.setenv("KDZOO_PLUGINS", "")
    assert set(catalogue().algorithms) == {"alpha", "beta", "delta"}


def test_code_outside_of_the_package_is_watched_too(shelf: Shelf, cache: Path) -> None:
    shelf.put("third", third="from shelf_beyond import NAME\n" + textwrap.dedent(ALGORITHM).replace("{name!r}", "NAME"))
    beyond = Path(shelf.path[-1], "shelf_beyond.py")
    beyond.write_text("NAME = 'beta'\n")
    source_of(shelf).write_text(source_of(shelf).read_text().replace("{{", "{").replace("}}", "}"))
    assert "beta" in catalogue().algorithms
    beyond.write_text("NAME = 'eta'\n")
    forgotten()
    assert "eta" in catalogue().algorithms


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "folder"])
def test_a_damaged_entry_is_made_again(shelf: Shelf, cache: Path, damage: str) -> None:
    shelf.put("third", third=OPTIONS)
    catalogue()
    (entry,) = cache.glob("*.json")
    content = entry.read_bytes()
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        entry.write_bytes({"empty": b"", "cut": content[:-9], "flipped": bytes(flipped), "other": b"[]"}[damage])
    forgotten()
    assert remembered() is None
    assert "beta" in catalogue().algorithms
    if damage != "folder":
        assert remembered() is not None


def test_content_of_another_shape_is_made_again(shelf: Shelf, cache: Path) -> None:
    shelf.put("third", third=OPTIONS)
    catalogue()
    (entry,) = cache.glob("*.json")
    body = json.loads(entry.read_bytes().partition(b"\n")[2])
    for wrong in ({}, {**body, "offers": 3}, {**body, "offers": [{"kind": "algorithm"}]}, {**body, "plugins": [{}]}):
        entries.write_body(entry, wrong)
        assert remembered() is None
    entries.write_body(entry, body)
    assert remembered() is not None


def test_a_folder_that_takes_nothing_is_no_error(
    shelf: Shelf,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), "/proc/none"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert "alpha" in catalogue().algorithms
        assert remembered() is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert "alpha" in catalogue().algorithms
    assert list((tmp_path / "home" / ".cache" / "kdzoo" / "catalogue").glob("*.json"))


def test_a_broken_plugin_is_tried_again_after_a_while_and_on_request(
    shelf: Shelf,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.put("third", third="import os\nassert 'KDZOO' + 'X' in os.environ\n" + textwrap.dedent(OPTIONS))
    assert catalogue().plugins[1].status == "broken"
    monkeypatch.setenv("KDZOOX", "1")
    forgotten()
    assert catalogue().plugins[1].status == "broken", "remembered"
    assert catalogue(retry_broken=True).plugins[1].status == "ok"
    monkeypatch.delenv("KDZOOX")
    source_of(shelf).touch()
    forgotten()
    assert catalogue().plugins[1].status == "broken"
    for entry in cache.glob("*.json"):
        os.utime(entry, (time.time() - catalogues.BROKEN_S - 1,) * 2)
    monkeypatch.setenv("KDZOOX", "1")
    forgotten()
    assert catalogue().plugins[1].status == "ok"


def test_what_has_no_card_is_loaded_each_time(shelf: Shelf, cache: Path) -> None:
    options = "class Options(AlgorithmOptions):\n"
    odd = "            odd: type(len) = Field(len, description='Odd.')\n"
    settings = "            model_config = {'arbitrary_types_allowed': True}\n"
    source = OPTIONS.replace(options, options + settings + odd)
    shelf.put("third", third=source)
    loaded = load_zoo()
    assert loaded.plugins[1].status == "ok", loaded.plugins[1].cause
    assert body_of(loaded) is None
    assert "beta" in catalogue().algorithms
    assert remembered() is None


# --- two processes ----------------------------------------------------------------------------------


def test_two_processes_write_one_catalogue(cache: Path, tmp_path: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from kdzoo.storage.cache_folder import read_entry
        from kdzoo.zoo.cache import write_body
        body = {{"plugins": [], "refused": [], "offers": [], "sources": [], "filling": sys.argv[1] * 100_000}}
        for _ in range(20):
            write_body(Path({str(cache)!r}, "same.json"), body)
            assert read_entry(Path({str(cache)!r}, "same.json")) is not None
    """
    both = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), letter]) for letter in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert [path.name for path in cache.iterdir()] == ["same.json"]


# --- plugins that end or hang the process -------------------------------------------------------------


def surveyed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, source: str, limit_s: float) -> dict[str, str]:
    """Survey one plugin of the shelf in a process of its own; return the causes by name."""
    shelf.put("third", third=source)
    monkeypatch.setenv("KDZOO_PLUGINS", "third")
    body, culprits = surveys.survey(find_plugins(), "third", {}, limit_s)
    assert body is not None
    (info,) = [info for info in body["plugins"] if info["name"] == "third"]
    assert info["status"] == "broken"
    assert {one.info.name: cause for one, cause in culprits.items()} == {"third": info["cause"]}
    return info["cause"]


def test_a_plugin_that_ends_the_process_is_broken(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = surveyed(shelf, monkeypatch, "import os\nos._exit(3)", 60)
    assert cause == "ended the process with exit code 3 while loading"


def test_a_plugin_that_hangs_is_broken(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "OWN_LIMIT_S", 60)
    begin = time.monotonic()
    cause = surveyed(shelf, monkeypatch, "import time\nprint('not an answer')\ntime.sleep(1000)", 15)
    assert cause == "did not load within 15 s"
    assert time.monotonic() - begin < 60


def test_a_fatal_plugin_is_not_loaded_again(
    shelf: Shelf,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.put("third", third="raise AssertionError('loaded')")
    (third,) = [one for one in find_plugins() if one.info.name == "third"]
    entries.remember_fatal(third, "ended the process with exit code 3 while loading")
    monkeypatch.setattr(entries, "_fatal", {})  # as a new process
    assert list(fatal_plugins(find_plugins())) == [third]
    assert load_zoo().plugins[1].cause == "ended the process with exit code 3 while loading"
    assert catalogue().plugins[1].cause == "ended the process with exit code 3 while loading"
    source_of(shelf).write_text(textwrap.dedent(OPTIONS))
    forgotten()
    assert fatal_plugins(find_plugins()) == {}
    assert "beta" in catalogue().algorithms


# --- what cards decide about a recipe -----------------------------------------------------------------


class Noted(dict):
    def add(self, path: str, message: str) -> None:
        self[path] = message


RECIPES = {
    "right": ({"name": "beta", "options": {"heat": 2}, "loss_weights": {"beta": 1}}, False),
    "name": ({"name": "betta"}, False),
    "option": ({"name": "beta", "options": {"heet": 2}}, False),
    "term": ({"name": "beta", "loss_weights": {"bta": 2}}, False),
    "value": ({"name": "beta", "options": {"heat": -1}}, True),
    "text": ({"name": "beta", "options": {"heat": "2"}}, True),
    "choice": ({"name": "beta", "options": {"kind": "c"}}, True),
}


@pytest.mark.parametrize("case", RECIPES)
def test_cards_say_the_very_same_of_a_recipe(shelf: Shelf, cache: Path, case: str) -> None:
    shelf.put("third", third=OPTIONS)
    cards, loaded = catalogue(), load_zoo()
    section, doubt = RECIPES[case]
    data = {"algorithm": section}
    by_card, by_class = Noted(), Noted()
    further_problems(data, by_card, cards)
    further_problems(data, by_class, loaded)
    assert doubtful(data, cards) == doubt
    assert by_card == ({} if doubt else by_class)
    assert bool(by_class) == (case != "right")


def test_options_that_the_class_reads_first_are_left_to_it(shelf: Shelf, cache: Path) -> None:
    early = """
            @model_validator(mode="before")
            @classmethod
            def renamed(cls, data):
                return {"heat" if key == "hot" else key: value for key, value in data.items()}
"""
    source = OPTIONS.replace("from pydantic import Field", "from pydantic import Field, model_validator")
    shelf.put("third", third=source.replace('description="Kind.")\n', 'description="Kind.")\n' + early))
    cards = catalogue()
    data, found = {"algorithm": {"name": "beta", "options": {"hot": 2}}}, Noted()
    further_problems(data, found, cards)
    further_problems(data, by_class := Noted(), load_zoo())
    assert (found, doubtful(data, cards)) == (by_class, True)


def test_a_value_fits_only_what_is_known() -> None:
    assert fits(3, {"type": "integer", "minimum": 1, "description": "x"})
    assert fits(None, {"anyOf": [{"type": "number"}, {"type": "null"}]})
    assert fits([1, 2], {"type": "array", "items": {"type": "integer"}, "maxItems": 2})
    assert fits("b", {"enum": ["a", "b"], "type": "string"})
    assert fits({}, {"title": "Anything"})
    for value, schema in (
        (True, {"type": "integer"}),
        (0, {"type": "number", "exclusiveMinimum": 0}),
        ([1, "2"], {"type": "array", "items": {"type": "integer"}}),
        ("c", {"enum": ["a", "b"], "type": "string"}),
        (3, {"$ref": "#/$defs/X"}),
        ("x", {"minimum": 1}),
    ):
        assert not fits(value, schema), (value, schema)


def test_a_zoo_that_was_written_comes_back(shelf: Shelf, cache: Path) -> None:
    shelf.put("one", one=ALGORITHM.format(name="beta"))
    shelf.put("two", two=ALGORITHM.format(name="beta"))
    loaded = load_zoo()
    body = body_of(loaded)
    assert body is not None
    again = zoo_of(json.loads(json.dumps(body)))
    assert dict(again.refused) == dict(loaded.refused)
    assert again.plugins == loaded.plugins
