from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_of_made_up_numbers import finished_run, write_run

from kdzoo.errors import CorruptError, KdzooError, ReportError
from kdzoo.report.compared_runs import compare_runs
from kdzoo.report.reading import read_run
from kdzoo.report.writing import rewrite_report
from kdzoo.storage.json_reading import MAX_BYTES, MAX_DIGITS, MAX_LEVELS, JsonError, parse_object, read_file
from kdzoo.storage.run_folder import RunFolder

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**50), 10**50) | st.floats(allow_nan=False) | st.text('a"\\[{}]é\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[{', max_size=3), inner, max_size=3),
)


@given(content=st.dictionaries(st.text(), JSON, max_size=3))
def test_what_was_written_comes_back(content):
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False), json.dumps(content, indent=1)):
        assert parse_object(text) == content
        assert parse_object(text.encode()) == content


def nested(levels: int) -> str:
    return '{"a": ' * (levels - 1) + "{}" + "}" * (levels - 1)


#: What may stand in a file of JSON, and what is said of it.
HOSTILE = {
    "nested lists": ("[" * 5000 + "]" * 5000, "nested more than 200 levels deep"),
    "nested objects": (nested(5000), "nested more than 200 levels deep"),
    "nested after a text of brackets": ('{"[[": "' + "]" * 5000 + '", "x": ' + "[" * 5000, "nested more than 200"),
    "an integer": ('{"a": ' + "7" * 5000 + "}", "an integer of 5000 digits"),
    "half a pair": ('{"a": "\\ud800"}', "half a surrogate pair"),
    "half a pair in a key": ('{"\\uDFFF": 1}', "half a surrogate pair"),
    "a list": ("[1, 2]", "not a JSON object but [1, 2]"),
    "nothing": ("", "not JSON: Expecting value"),
}


@pytest.mark.parametrize(("text", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_one_kind_of_error(text, problem):
    with pytest.raises(JsonError, match=r"^not ") as error:
        parse_object(text)
    assert problem in str(error.value)


def test_limits_are_as_stated():
    assert parse_object(nested(MAX_LEVELS))
    with pytest.raises(JsonError):
        parse_object(nested(MAX_LEVELS + 1))
    assert float(parse_object('{"a": ' + "9" * MAX_DIGITS + "}")["a"]) == pytest.approx(1e100)
    with pytest.raises(JsonError):
        parse_object('{"a": ' + "9" * (MAX_DIGITS + 1) + "}")
    assert parse_object('{"a": "' + "[" * 1000 + '\\""}') == {"a": "[" * 1000 + '"'}, "brackets in a text are no levels"
    assert parse_object('{"a": "\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}


def test_the_line_of_the_problem_is_told():
    for data in (b'{"a": 1,\n b}', b'{"a":\n"\xff"}', b'{"a": 1,\n"b":' + b"[" * 300):
        with pytest.raises(JsonError) as error:
            parse_object(data)
        assert error.value.line == 2


def test_only_regular_files_of_a_bearable_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name, problem in (("pipe", "not a regular file"), ("huge", "bytes are too many"), (".", "not a regular file")):
        with pytest.raises(OSError, match=problem):
            read_file(tmp_path / name)


# --- in a run folder ------------------------------------------------------------------------------

FILES = ("run.json", "manifest.json", "results.json", "provenance.json", "student.json", "metrics.jsonl", "recipe.yaml")


def hostile_contents(folder) -> dict[str, bytes]:
    contents = {name: text.encode() for name, (text, _) in HOSTILE.items()}
    return contents | {name: (folder / name).read_bytes() for name in FILES} | {"bytes": b"\xff\xfe\x00"}


@pytest.mark.parametrize("name", FILES)
def test_a_finished_run_with_hostile_files_is_refused_without_a_traceback(tmp_path, name):
    folder = finished_run(tmp_path / "run")
    contents = hostile_contents(folder)
    own = contents.pop(name)
    for content in contents.values():
        (folder / name).write_bytes(content)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        for action in (
            lambda: RunFolder.view(folder).verify(),
            lambda: rewrite_report(folder),
            lambda: compare_runs([folder]),
        ):
            with pytest.raises(CorruptError):
                action()
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (folder / name).write_bytes(own)
    assert RunFolder.view(folder).verify() == 5


@pytest.mark.parametrize("name", FILES[2:])
def test_an_unfinished_run_with_hostile_files_is_read_or_refused(tmp_path, name):
    folder = write_run(tmp_path / "run")
    contents = hostile_contents(finished_run(tmp_path / "other"))
    refused = 0
    for content in contents.values():
        (folder / name).write_bytes(content)
        try:
            read_run(folder)
        except ReportError:
            refused += 1
    assert refused >= 8 or name == "recipe.yaml"


def test_a_lock_record_of_nonsense_is_nobodys(tmp_path):
    fields = {"name": "x", "seed": 0, "recipe_text": "", "recipe_hash": "", "recipe_fields": {}}
    with RunFolder.start(tmp_path, **fields) as folder:
        pass
    owner = {"host": "h", "boot": "b", "namespace": "1", "pid": 10**20, "started": 1}
    records = ["[" * 4000, '{"owner": {"pid": "x"}}', json.dumps({"owner": owner}), json.dumps({"owner": 3})]
    for record in [*records, *(text for text, _ in HOSTILE.values())]:
        (folder.root / "lock").write_text(record)
        with RunFolder.start(tmp_path, **fields) as again:
            assert again.resumed


@pytest.mark.parametrize("path", ["x" * 300, "/".join(["x" * 200] * 30), "a\0b"])
def test_a_run_path_that_no_file_system_takes_is_no_run(tmp_path, path):
    for action in (RunFolder.view, rewrite_report, lambda folder: compare_runs([folder])):
        with pytest.raises(KdzooError, match="no such run folder"):
            action(tmp_path / path)
