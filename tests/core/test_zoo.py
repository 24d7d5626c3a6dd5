"""Plugins that misbehave in every way we know of; the others must not notice."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch

from kdzoo import __version__
from kdzoo.errors import PluginError, UnknownName
from kdzoo.zoo import loading as zoo
from kdzoo.zoo.loading import load_zoo
from kdzoo.zoo.process_state import given_back

ALGORITHM = """
    from kdzoo.api import Algorithm, Paper, hookimpl

    class Alpha(Algorithm):
        name = {name!r}
        paper = Paper("A paper", "An author", 2020, "https://example.org")
        default_weights = {{"task": 1.0}}
        also_known_as = ("first_letter",)

        def losses(self, ctx):
            return {{}}

    @hookimpl
    def register_algorithms(register):
        register(Alpha)
"""


class Shelf:
    """Distributions on a path of their own, instead of the installed ones."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.path: list[str] = []

    def put(self, distribution: str, version: str = "1.0", first: bool = False, **plugins: str | None) -> None:
        """Add a distribution with plugins; each is its module's source, or None where there is no module."""
        folder = self.root / f"{distribution}-{len(self.path)}"
        info = folder / f"{distribution}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = []
        for name, source in plugins.items():
            module = f"shelf_{distribution}_{name}"
            lines.append(f"{name} = {module}")
            if source is not None:
                (folder / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "entry_points.txt").write_text("\n".join(["[kdzoo]", *lines, ""]))
        self.path.insert(0 if first else len(self.path), str(folder))
        self.monkeypatch.syspath_prepend(folder)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path, monkeypatch)
    shelf.put("kdzoo", "0.1", builtin=ALGORITHM.format(name="alpha"))
    real = metadata.distributions
    monkeypatch.setattr(metadata, "distributions", lambda: real(path=shelf.path))
    monkeypatch.delenv("KDZOO_PLUGINS", raising=False)
    before = set(sys.modules)
    yield shelf
    for name in set(sys.modules) - before:
        if name.startswith("shelf_"):
            del sys.modules[name]
    zoo._load_all.cache_clear()


def offers(loaded) -> dict:
    fields = ("algorithms", "models", "datasets", "exporters", "trackers", "executors")
    return {field: dict(getattr(loaded, field)) for field in fields}


def plugin(loaded, name: str):
    (info,) = [info for info in loaded.plugins if info.name == name]
    return info


def test_a_plugin_offers_what_it_registers(shelf):
    loaded = load_zoo()
    assert loaded.algorithm("alpha").name == "alpha"
    offer = loaded.algorithms["alpha"]
    assert (offer.plugin, offer.distribution, offer.version) == ("builtin", "kdzoo", "0.1")
    assert str(plugin(loaded, "builtin")) == "plugin 'builtin' (kdzoo 0.1)"
    assert plugin(loaded, "builtin").status == "ok"


def test_loaded_once(shelf):
    assert load_zoo() is load_zoo()


def test_all_kinds_of_offers(shelf):
    source = """
        from pathlib import Path
        from kdzoo.api import hookimpl
        from kdzoo.api.data import DataSource
        from kdzoo.api.execution import Executor
        from kdzoo.api.export import Exporter, Tracker
        from kdzoo.api.models import ModelFamily

        class Data(DataSource):
            name = "dots"
            def load(self, root): ...

        class Out(Exporter):
            name, suffix = "paper", ".txt"
            def export(self, model, example, path, metadata, calibration): ...
            def load(self, path, threads): ...

        class Log(Tracker):
            name = "diary"
            def start(self, folder): ...
            def log(self, stage, step, values): ...
            def close(self): ...

        class Here(Executor):
            name = "here"
            shares_files = True
            def open(self): ...
            def submit(self, name, function, arguments, resources): ...
            def workers(self): return 1
            def ask_to_stop(self): ...
            def close(self): ...

        @hookimpl
        def register_models(register):
            register(ModelFamily("tiny", ("tiny_1", "tiny_2")))

        @hookimpl
        def register_datasets(register):
            register(Data)

        @hookimpl
        def register_exporters(register):
            register(Out)

        @hookimpl
        def register_trackers(register):
            register(Log)

        @hookimpl
        def register_executors(register):
            register(Here)
    """
    shelf.put("more", more=source)
    loaded = load_zoo()
    assert plugin(loaded, "more").cause == ""
    assert loaded.dataset("dots").name == "dots"
    assert loaded.exporter("paper").suffix == ".txt"
    assert loaded.tracker("diary").name == "diary"
    assert loaded.executor("here").shares_files
    assert list(loaded.models) == ["tiny_1", "tiny_2"]
    assert loaded.models["tiny_1"].thing.name == "tiny"


def test_an_instance_may_be_a_plugin(shelf):
    source = ALGORITHM.format(name="beta") + (
        "\n    class Plugin:\n        @hookimpl\n        def register_algorithms(self, register):\n"
        "            register(Alpha)\n    plugin = Plugin()\n"
    )
    shelf.put("third", third=source)
    entry = next(Path(shelf.path[-1]).glob("*.dist-info/entry_points.txt"))
    entry.write_text("[kdzoo]\nthird = shelf_third_third:plugin\n")
    assert load_zoo().algorithm("beta").name == "beta"


HOOKS = (
    "register_algorithms, register_models, register_datasets, register_exporters, register_quantizers, "
    "register_trackers, register_executors"
)
BROKEN = {
    "no_such_module": (None, "ModuleNotFoundError: No module named 'shelf_bad_bad'"),
    "import_error": ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    "syntax_error": ("def f(:\n    pass", "SyntaxError: invalid syntax"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "own_base_exception": ("class E(BaseException): pass\nraise E('x')", "shelf_bad_bad.E: x"),
    "silent_exception": (
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
        "shelf_bad_bad.E: <exception str() failed>",
    ),
    "recursion": (
        "def f(): f()\nf()",
        "RecursionError: maximum recursion depth exceeded",
    ),
    "raises_in_hook": (
        "from kdzoo.api import hookimpl\n@hookimpl\ndef register_models(register): 1 / 0",
        "ZeroDivisionError: division by zero",
    ),
    "exits_in_hook": (
        "from kdzoo.api import hookimpl\n@hookimpl\ndef register_models(register): raise SystemExit('bye')",
        "SystemExit: bye",
    ),
    "misspelt_hook": (
        "from kdzoo.api import hookimpl\n@hookimpl\ndef register_algorithm(register): ...",
        f"unknown hook 'register_algorithm'; did you mean 'register_algorithms'? known: {HOOKS}",
    ),
    "unknown_hook": (
        "from kdzoo.api import hookimpl\n@hookimpl\ndef on_start(): ...",
        f"unknown hook 'on_start'; known: {HOOKS}",
    ),
    "wrong_argument": (
        "from kdzoo.api import hookimpl\n@hookimpl\ndef register_models(registry): ...",
        "Plugin 'bad' for hook 'register_models' hookimpl definition: register_models(registry) "
        "Argument(s) {'registry'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "unmarked": (
        "def register_algorithms(register): ...",
        "implements no hook; mark register_algorithms or another with kdzoo.api.hookimpl",
    ),
    "future_api": (
        "KDZOO_API = 2",
        f"made for plugin API 2; kdzoo {__version__} has plugin API 1",
    ),
    "half": (
        ALGORITHM.format(name="beta") + "        register(int)\n",
        "int is no subclass of Algorithm",
    ),
    "twice": (
        ALGORITHM.format(name="beta") + "        register(Alpha)\n",
        "registers algorithm 'beta' twice",
    ),
    "unprintable": ("raise ValueError('\\x1b[2J\\nx')", "ValueError: \\x1b[2J x"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_leaves_the_others_alone(shelf, case):
    source, cause = BROKEN[case]
    alone = load_zoo()
    shelf.put("bad", "2.1", bad=source)
    loaded = load_zoo()
    assert offers(loaded) == offers(alone)
    info = plugin(loaded, "bad")
    assert (info.status, info.distribution, info.version) == ("broken", "bad", "2.1")
    assert info.cause == cause
    assert info.traceback.startswith("Traceback")


def test_a_missing_attribute_is_reported(shelf):
    shelf.put("bad", bad="x = 1")
    entry = next(Path(shelf.path[-1]).glob("*.dist-info/entry_points.txt"))
    entry.write_text("[kdzoo]\nbad = shelf_bad_bad:plugin\n")
    assert plugin(load_zoo(), "bad").cause == "AttributeError: module 'shelf_bad_bad' has no attribute 'plugin'"


def test_interrupts_pass_through(shelf):
    shelf.put("bad", bad="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_zoo()


def test_what_a_plugin_prints_stays_off_stdout(shelf, capsys):
    shelf.put("loud", loud="print('look at me')\n" + textwrap.dedent(ALGORITHM.format(name="beta")))
    assert "beta" in load_zoo().algorithms
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "look at me\n")


def test_unmarked_functions_are_no_hooks(shelf):
    shelf.put("third", third=ALGORITHM.format(name="beta") + "\n    def register_model(register): ...\n")
    assert plugin(load_zoo(), "third").status == "ok"


def test_damaged_metadata_is_reported(shelf):
    alone = load_zoo()
    shelf.put("bad", bad="x = 1")
    entry = next(Path(shelf.path[-1]).glob("*.dist-info/entry_points.txt"))
    entry.write_bytes(b"[kdzoo]\nbad = \xff\n")
    loaded = load_zoo()
    assert offers(loaded) == offers(alone)
    cause = plugin(loaded, "?").cause
    assert cause.startswith(f"a distribution in {shelf.path[-1]} cannot be read: UnicodeDecodeError")


# --- what a plugin may offer ------------------------------------------------------------------------

OFFERS = {
    "name": ("Beta.name = 'Beta'", "Beta: name is 'Beta'; "),
    "look_alike": ("Beta.name = 'b\\u0435ta'", "Beta: name is 'bеta'; "),  # noqa: RUF001
    "no_name": ("del Beta.name", "Beta: name is nothing; "),
    "no_paper": ("del Beta.paper", "Beta: paper is nothing; it is a Paper(title, authors, year, url)"),
    "needs": ("Beta.needs = 3", "Beta: needs is 3; it is a Needs(...)"),
    "weights": ("Beta.default_weights = None", "Beta: default_weights is nothing; it maps terms to numbers"),
    "nan": (
        "Beta.default_weights = {'a': float('nan')}",
        "Beta: default_weights['a'] is nan; it is a finite number, 0 or more",
    ),
    "bool": (
        "Beta.default_weights = {'a': True}",
        "Beta: default_weights['a'] is true; it is a finite number, 0 or more",
    ),
    "aliases": ("Beta.also_known_as = 'b'", "Beta: also_known_as is 'b'; it is a tuple of texts"),
    "options": ("Beta.Options = dict", "Beta: Options is no subclass of AlgorithmOptions"),
    "description": (
        "class O(AlgorithmOptions):\n    x: int = 1\nBeta.Options = O",
        "Beta: option 'x' has no description; give Field(description=...)",
    ),
    "delegate": ("Beta.delegate = 'via'", "Beta: delegate is 'via'; it is None or one of its options: none"),
    "renamed": (
        "Beta.exhibits = classmethod(lambda cls, run: ())",
        "Beta: 'exhibits' is called 'report_items' since kdzoo 0.2.0; rename it",
    ),
    "no_rung": ("del Beta.losses", "Beta overrides none of losses, step, stages"),
    "instance": ("Beta = 3", "3 is no subclass of Algorithm"),
    "base": ("Beta = Algorithm", "Algorithm is no subclass of Algorithm"),
}
NAMES = "a name is 1 to 64 of a-z, 0-9, '_', '.' and '-', the first a letter or digit"


@pytest.mark.parametrize("case", OFFERS)
def test_an_offer_is_checked(shelf, case):
    change, cause = OFFERS[case]
    source = f"""
from kdzoo.api import Algorithm, AlgorithmOptions, Paper, hookimpl

class Beta(Algorithm):
    name = "beta"
    paper = Paper("A paper", "An author", 2020, "https://example.org")
    default_weights = {{"task": 1.0}}
    def losses(self, ctx): return {{}}

{change}

@hookimpl
def register_algorithms(register):
    register(Beta)
"""
    shelf.put("bad", bad=source)
    assert plugin(load_zoo(), "bad").cause == cause + (NAMES if cause.endswith("; ") else "")


OTHER_OFFERS = {
    "models": ("register_models", "register(ModelFamily('f', ('Big',)))", "ModelFamily 'f': name is 'Big'; " + NAMES),
    "no_models": (
        "register_models",
        "register(ModelFamily('f', 'big'))",
        "ModelFamily 'f': models is 'big'; it is a tuple of names",
    ),
    "no_family": ("register_models", "register('f')", "'f' is no ModelFamily"),
    "abstract": (
        "register_datasets",
        "register(type('D', (DataSource,), {'name': 'd'}))",
        "D does not define load",
    ),
    "suffix": (
        "register_exporters",
        "register(type('E', (Exporter,), dict(name='e', suffix='onnx', export=print, load=print)))",
        "E: suffix is 'onnx'; it is like '.onnx'",
    ),
    "further_suffixes": (
        "register_exporters",
        "register(type('E', (Exporter,), dict(name='e', suffix='.xml', further_suffixes='.bin', export=print, "
        "load=print)))",
        "E: further_suffixes is '.bin'; it is a tuple of further ones, like ('.bin',)",
    ),
    "quantizer": ("register_quantizers", "register(print)", "print is no subclass of Quantizer"),
    "tracker": ("register_trackers", "register(print)", "print is no subclass of Tracker"),
    "executor": ("register_executors", "register(print)", "print is no subclass of Executor"),
    "shares_files": (
        "register_executors",
        "register(type('E', (Executor,), {'name': 'e', **dict.fromkeys(Executor.__abstractmethods__, print)}))",
        "E: shares_files is nothing; it is true or false",
    ),
}


@pytest.mark.parametrize("case", OTHER_OFFERS)
def test_other_offers_are_checked(shelf, case):
    hook, call, cause = OTHER_OFFERS[case]
    source = "".join(f"from kdzoo.api{part} import *\n" for part in ("", ".models", ".data", ".export", ".execution"))
    source += f"from kdzoo.api import hookimpl\n@hookimpl\ndef {hook}(register):\n    {call}\n"
    shelf.put("bad", bad=source)
    assert plugin(load_zoo(), "bad").cause == cause


# --- two that claim one name ------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_a_built_in_name_stays_built_in(shelf, first):
    alone = load_zoo()
    shelf.put("thief", "3.0", first=first, thief=ALGORITHM.format(name="alpha"))
    loaded = load_zoo()
    assert offers(loaded) == offers(alone)
    assert plugin(loaded, "builtin").status == "ok"
    assert plugin(loaded, "thief").cause == (
        "algorithm 'alpha' of plugin 'thief' (thief 3.0) is also offered by plugin 'builtin' (kdzoo 0.1); "
        "only one can have it"
    )


@pytest.mark.parametrize("first", [True, False])
def test_neither_of_two_claimants_gets_a_name(shelf, first):
    alone = load_zoo()
    shelf.put("one", "1.0", one=ALGORITHM.format(name="beta"))
    shelf.put("two", "2.0", first=first, two=ALGORITHM.format(name="beta"))
    loaded = load_zoo()
    assert offers(loaded) == offers(alone)
    with pytest.raises(PluginError) as caught:
        loaded.algorithm("beta")
    assert str(caught.value) == (
        "algorithm 'beta': plugin 'two' (two 2.0) is refused: algorithm 'beta' of plugin 'two' (two 2.0) "
        "is also offered by plugin 'one' (one 1.0); only one can have it"
    )


def test_a_clash_with_a_refused_plugin_is_none(shelf):
    shelf.put(
        "a_thief", thief=ALGORITHM.format(name="alpha") + "        register(type('B', (Alpha,), {'name': 'beta'}))\n"
    )
    shelf.put("honest", honest=ALGORITHM.format(name="beta"))
    loaded = load_zoo()
    assert loaded.algorithms["beta"].plugin == "honest"
    assert plugin(loaded, "thief").status == "broken"


def test_two_plugins_of_one_name(shelf):
    shelf.put("one", "1.0", same=ALGORITHM.format(name="beta"))
    shelf.put("two", "2.0", same=ALGORITHM.format(name="gamma"))
    loaded = load_zoo()
    assert list(loaded.algorithms) == ["alpha"]
    assert [info.cause for info in loaded.plugins if info.name == "same"] == [
        "the name of plugin 'same' (one 1.0) is also that of plugin 'same' (two 2.0); only one can have it",
        "the name of plugin 'same' (two 2.0) is also that of plugin 'same' (one 1.0); only one can have it",
    ]


def test_the_first_of_two_versions_on_the_path_counts(shelf):
    shelf.put("third", "1.0", third=ALGORITHM.format(name="beta"))
    shelf.put("third", "2.0", third=ALGORITHM.format(name="gamma"))
    assert [(info.name, info.version) for info in load_zoo().plugins] == [("builtin", "0.1"), ("third", "1.0")]


# --- choosing and naming ----------------------------------------------------------------------------


def test_only_the_plugins_asked_for(shelf, monkeypatch):
    shelf.put("third", third=ALGORITHM.format(name="beta"))
    assert list(load_zoo("third").algorithms) == ["beta"]
    assert list(load_zoo(" builtin, third").algorithms) == ["alpha", "beta"]
    assert plugin(load_zoo("third"), "builtin").status == "disabled"
    monkeypatch.setenv("KDZOO_PLUGINS", "none")
    assert list(load_zoo().algorithms) == []
    monkeypatch.setenv("KDZOO_PLUGINS", "")
    assert list(load_zoo().algorithms) == ["alpha", "beta"]


def test_a_disabled_plugin_is_not_imported(shelf):
    shelf.put("third", third=ALGORITHM.format(name="beta"))
    load_zoo("builtin")
    assert "shelf_third_third" not in sys.modules


def test_an_unknown_plugin_asked_for_is_an_error(shelf):
    shelf.put("third", third=ALGORITHM.format(name="beta"))
    with pytest.raises(PluginError) as caught:
        load_zoo("thirt")
    assert str(caught.value) == "KDZOO_PLUGINS: unknown plugin 'thirt'; did you mean 'third'? known: builtin, third"


def test_an_unknown_name_says_what_may_be_missing(shelf):
    shelf.put("bad", bad="import no_such_module_at_all")
    with pytest.raises(UnknownName) as caught:
        load_zoo().algorithm("alfa")
    assert str(caught.value) == (
        "unknown algorithm 'alfa'; did you mean 'alpha'? known: alpha\n"
        "note: plugin 'bad' (bad 1.0) failed to load: ModuleNotFoundError: No module named 'no_such_module_at_all'"
    )


def test_capitals_do_not_hide_the_nearest_name(shelf):
    with pytest.raises(UnknownName) as caught:
        load_zoo().algorithm("ALPHA")
    assert str(caught.value) == "unknown algorithm 'ALPHA'; did you mean 'alpha'? known: alpha"


def test_other_spellings_are_suggested_and_never_taken(shelf):
    with pytest.raises(UnknownName) as caught:
        load_zoo().algorithm("first_letter")
    assert str(caught.value) == "unknown algorithm 'first_letter'; did you mean 'alpha'? known: alpha"


def test_unknown_names_of_other_kinds(shelf):
    loaded = load_zoo("none")
    for find, text in [
        (loaded.dataset, "unknown data set 'x'; known: none"),
        (loaded.exporter, "unknown export format 'x'; known: none"),
        (loaded.tracker, "unknown tracker 'x'; known: none"),
    ]:
        with pytest.raises(UnknownName) as caught:
            find("x")
        assert str(caught.value) == f"{text}\nnote: plugin 'builtin' (kdzoo 0.1) is disabled by KDZOO_PLUGINS"


def test_many_names_are_cut(shelf):
    loaded = load_zoo()
    many = {f"name_{i}": loaded.algorithms["alpha"] for i in range(20)}
    with pytest.raises(UnknownName) as caught:
        dataclasses.replace(loaded, algorithms=many).algorithm("zzz")
    assert str(caught.value).endswith("known: name_0, name_1, name_10, name_11, name_12, name_13, name_14, name_15 ...")


def test_an_algorithm_under_test_joins_the_zoo(shelf):
    loaded = load_zoo()
    alpha = loaded.algorithm("alpha")
    other = type("Other", (alpha,), {"name": "other"})
    again = type("Again", (alpha,), {"name": "alpha"})
    assert loaded.with_algorithm(other).algorithm("other") is other
    assert loaded.with_algorithm(alpha) is loaded
    assert loaded.with_algorithm(again).algorithm("alpha") is again


# --- what a plugin changes of the process -----------------------------------------------------------

CHANGES = {
    "dtype": ("torch.set_default_dtype(torch.float64)", "torch's default dtype from float32 to float64"),
    "precision": (
        "torch.set_float32_matmul_precision('medium')",
        "torch's float32 matmul precision from highest to medium",
    ),
    "denormals": ("torch.set_flush_denormal(True)", "torch's flushing of denormals from False to True"),
    "threads": ("torch.set_num_threads(3)", "torch's number of threads from 1 to 3"),
    "deterministic": (
        "torch.use_deterministic_algorithms(True)",
        "torch's deterministic algorithms from False to True",
    ),
    "gradients": ("torch.set_grad_enabled(False)", "torch's gradient mode from True to False"),
    "device": ("torch.set_default_device('meta')", "torch's default device from cpu to meta"),
    "cudnn": ("torch.backends.cudnn.benchmark = True", "torch.backends.cudnn.benchmark from False to True"),
    "seed": ("torch.manual_seed(1)", "torch's random state"),
    "python_seed": ("import random; random.seed(1)", "Python's random state"),
    "numpy_seed": ("import numpy; numpy.random.seed(1)", "NumPy's random state"),
    "variable": (
        "import os; os.environ['ONEDNN_MAX_CPU_ISA'] = 'SSE41'",
        "the environment variable ONEDNN_MAX_CPU_ISA",
    ),
    "removed": ("import os; del os.environ['KDZOO_TEST_VARIABLE']", "the environment variable KDZOO_TEST_VARIABLE"),
    "warnings": ("import warnings; warnings.simplefilter('ignore')", "the filters of warnings"),
    "several": (
        "torch.set_num_threads(2); torch.set_flush_denormal(True)",
        "torch's flushing of denormals from False to True, torch's number of threads from 1 to 2",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_a_plugin_changes_of_the_process_is_given_back_and_named(shelf, case, monkeypatch):
    monkeypatch.setenv("KDZOO_TEST_VARIABLE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code, changed = CHANGES[case]
        shelf.put("third", third=f"import torch\n{code}\n" + textwrap.dedent(ALGORITHM.format(name="beta")))
        first: list[str] = []
        with given_back(first):
            loaded = load_zoo()
        assert (plugin(loaded, "third").status, plugin(loaded, "third").changed) == ("ok", changed)
        assert plugin(loaded, "builtin").changed == ""
        assert first == [], "something was not given back"
    finally:
        torch.set_num_threads(threads)


def test_a_broken_plugin_s_changes_are_given_back_too(shelf):
    shelf.put("bad", bad="import torch\ntorch.set_default_dtype(torch.float16)\n1 / 0")
    info = plugin(load_zoo(), "bad")
    assert (info.status, info.cause) == ("broken", "ZeroDivisionError: division by zero")
    assert info.changed == "torch's default dtype from float32 to float16"
    assert torch.get_default_dtype() == torch.float32


def test_filters_for_the_warnings_of_one_module_are_no_change(shelf):
    filters = "import warnings\nwarnings.filterwarnings('ignore', module='some_library')\n"
    shelf.put("third", third=filters + textwrap.dedent(ALGORITHM.format(name="beta")))
    with warnings.catch_warnings():
        assert plugin(load_zoo(), "third").changed == ""
