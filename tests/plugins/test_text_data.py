"""Sentences to ids: the same pieces every time, official splits, files that are wrong."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from kdzoo.api.data import TokenSplit
from kdzoo.data.data_set import open_data
from kdzoo.errors import DataError
from kdzoo.recipe.sections import DataRecipe
from kdzoo_text.checkpoints import suppress_output
from kdzoo_text.clinc150 import Clinc150
from kdzoo_text.text_files import TextFiles
from kdzoo_text.wordpiece import learn

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "data"


def clinc(root: Path = FIXTURES, **options: Any) -> Any:
    return Clinc150(Clinc150.Options(**{"vocab_size": 200, **options})).load(root)


def files(root: Path, **options: Any) -> Any:
    return TextFiles(TextFiles.Options(**{"vocab_size": 60, **options})).load(root)


def refusal(act: Any) -> str:
    with pytest.raises(DataError) as caught:
        act()
    return str(caught.value)


# --- pieces ---------------------------------------------------------------------------------------


def test_pieces_worked_out_by_hand() -> None:
    # Letters by how often they occur, then by name: ##a and ##b 5 each, a 4 ... Pairs: (a, ##b) 4, (##b, ##a) 3 and
    # (##a, ##a) 2: first ab; then (ab, ##a) 3 makes aba.
    words = {"aba": 3, "ab": 1, "caa": 2}
    assert learn(words, 6) == ["##a", "##b", "a", "c", "ab", "aba"]
    assert learn(words, 3) == ["##a", "##b", "a"]
    assert learn(words, 100) == ["##a", "##b", "a", "c", "ab", "aba", "##aa", "caa"]


def test_a_pair_that_overlaps_itself_is_merged_from_the_left() -> None:
    assert learn({"xaaaa": 1}, 4) == ["##a", "x", "##aa", "##aaaa"]


def test_each_process_learns_the_same_pieces(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from kdzoo_text.clinc150 import Clinc150;"
        "splits = Clinc150(Clinc150.Options(vocab_size=200)).load(Path(sys.argv[1]));"
        "sys.stdout.write(splits.tokens.files['tokenizer.json'].decode())"
    )
    told = {
        subprocess.run([sys.executable, "-c", script, str(FIXTURES)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert told == {clinc().tokens.files["tokenizer.json"].decode()}
    assert len(json.loads(next(iter(told)))["model"]["vocab"]) == 200


def test_the_delivered_tokenizer_gives_the_ids_that_were_trained_on(tmp_path: Path) -> None:
    splits = clinc()
    for name, content in splits.tokens.files.items():
        (tmp_path / name).write_bytes(content)
    texts = [text for text, _ in json.loads((FIXTURES / "clinc150" / "data_full.json").read_text())["train"]]
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for row, text in zip(splits.train.ids, texts, strict=True):
        ids = tokenizer.encode(text).ids
        assert row[: len(ids)].tolist() == ids
        assert (row[len(ids) :] == splits.tokens.pad).all()
    from transformers import AutoTokenizer

    outer = AutoTokenizer.from_pretrained(tmp_path)
    assert outer(texts[0])["input_ids"] == tokenizer.encode(texts[0]).ids
    assert tokenizer.decode(tokenizer.encode("what is my balance").ids) == "what is my balance"


def test_long_texts_lose_their_end() -> None:
    splits = clinc(max_length=6)
    assert splits.size == (6, 1)
    assert splits.train.ids.shape[1] == 6


# --- clinc150 -------------------------------------------------------------------------------------


def test_official_splits_without_what_is_out_of_scope() -> None:
    splits = clinc()
    assert [len(split.targets) for split in (splits.train, splits.validation, splits.test())] == [144, 48, 60]
    assert len(splits.classes) == 12
    assert "oos" not in splits.classes
    assert np.bincount(splits.train.targets).tolist() == [12] * 12
    assert splits.classes[splits.train.targets[0]] == "balance"
    data = open_data(Clinc150(Clinc150.Options(vocab_size=200)), DataRecipe(name="clinc150", root=str(FIXTURES)), 0)
    assert data.split_sizes == {"train": 144, "validation": 48}


def test_a_checkpoints_tokenizer_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in clinc().tokens.files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("KDZOO_MODELS", str(tmp_path.parent))
    assert np.array_equal(clinc(tokenizer=tmp_path.name).train.ids, clinc().train.ids)


def test_a_tokenizer_that_is_not_there() -> None:
    assert refusal(lambda: clinc(tokenizer="nobody/nothing")).startswith(
        "data set 'clinc150': tokenizer 'nobody/nothing' cannot be read; no folder of that name, here or below "
        "$KDZOO_MODELS: "
    )


def test_a_tokenizer_without_fill_is_refused(tmp_path: Path) -> None:
    for name, content in clinc().tokens.files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert refusal(lambda: clinc(tokenizer=str(tmp_path))) == (
        f"data set 'clinc150': tokenizer '{tmp_path}' has no pad token, or no fast version; choose one with both"
    )


def test_where_the_json_is_looked_for(tmp_path: Path) -> None:
    assert refusal(lambda: clinc(tmp_path)) == (
        f"data set 'clinc150': no file 'clinc150/data_full.json' below '{tmp_path}'. Set data.root or $KDZOO_DATA to "
        "the folder that holds it; it is data/data_full.json of https://github.com/clinc/oos-eval"
    )
    assert refusal(lambda: clinc(tmp_path, file="../x.json")) == (
        f"data set 'clinc150': ../x.json lies outside of the data root '{tmp_path}'; set data.root"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[", "cannot be read as JSON: Expecting value: line 1 column 2 (char 1)"),
        ("[]", "has no list 'train'; data_full.json of CLINC150 would be right"),
        ('{"train": [["a", "b"], ["a"]]}', "train[1] is no [text, intent]"),
        ('{"train": [["a", "b"]], "val": [["", "b"]]}', "val[0] is no [text, intent]"),
        (r'{"train": [["a", "\ud800"]]}', "train[0] holds half of a surrogate pair, which is no character"),
        ('{"train": [["a", "b"]], "val": []}', "has no list 'val'; data_full.json of CLINC150 would be right"),
    ],
)
def test_a_json_that_is_wrong(content: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(content)
    assert refusal(lambda: clinc(tmp_path, file="own.json")) == f"{path}: {problem}"


def test_a_class_that_train_lacks(tmp_path: Path) -> None:
    rows = {"train": [["a b", "x"], ["c", "y"]], "val": [["a", "z"]], "test": [["a", "x"]]}
    (tmp_path / "own.json").write_text(json.dumps(rows))
    assert refusal(lambda: clinc(tmp_path, file="own.json")) == (
        "data set 'clinc150', split validation: class 'z' is none of the training split"
    )


# --- own files ------------------------------------------------------------------------------------

ROWS = [
    ("turn the light on", "light"),
    ('play, "music"\nloud', "music"),
    ("light\u2028off", "light"),
    ("stop", "music"),
]


def test_tables_and_json_lines_hold_the_same(tmp_path: Path) -> None:
    import csv

    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"train{suffix}").open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([("label", "text"), *((label, text) for text, label in ROWS)])
    lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
    (tmp_path / "train.jsonl").write_text("\n".join(["", *lines, ""]))
    splits = [files(tmp_path, train=f"train{suffix}", test="train.csv") for suffix in (".csv", ".tsv", ".jsonl")]
    assert splits[0].classes == ("light", "music")
    assert splits[0].train.targets.tolist() == [0, 1, 0, 1]
    assert isinstance(splits[0].test(), TokenSplit)
    assert all(np.array_equal(split.train.ids, splits[0].train.ids) for split in splits[1:])


IN_QUOTES = "a text with a comma, a tab or a quote in it belongs in quotes, and its own quotes are doubled"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("train.csv", "text,label\nhello,\n", "line 2: no text in 'label'; the row has text, label"),
        ("train.csv", "words,label\nhello,a\n", "line 2: no text in 'text'; the row has words, label"),
        ("train.csv", "text,label\n", "holds no rows"),
        (
            "train.csv",
            "text,label\nhello,a\nhello, you,a\n",
            f"line 3: 3 columns, the first row names 2; {IN_QUOTES}",
        ),
        (
            "train.csv",
            'text,label\nhello,a\n"one,b\ntwo,a\n"three,b\n',
            f"line 3: ',' expected after '\"'; {IN_QUOTES}",
        ),
        ("train.tsv", 'text\tlabel\n"one\tb\ntwo\ta\n', f"line 2: unexpected end of data; {IN_QUOTES}"),
        ("train.jsonl", '{"text": "a", "label": "b"}\n[]', "line 2: is no JSON object"),
        (
            "train.jsonl",
            '\n{"text": ',
            "line 2: is not JSON: Expecting value: line 1 column 10 (char 9)",
        ),
        (
            "train.csv",
            "text,text,label\na,b,c\n",
            "line 1: names the column 'text' twice; each column needs its own name",
        ),
        ("train.jsonl", '{"text": ' + "[" * 200_000, "line 1: is nested too deeply"),
        (
            "train.jsonl",
            r'{"text": "half \ud800", "label": "b"}',
            "line 1: 'text' holds half of a surrogate pair, which is no character",
        ),
        ("train.jsonl", '{"text": 3.5, "label": "b"}', "line 1: no text in 'text'; the row has text, label"),
    ],
)
def test_rows_that_are_wrong(name: str, content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert refusal(lambda: files(tmp_path, train=name, test=name)) == f"{tmp_path / name}: {problem}"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    assert refusal(lambda: files(tmp_path)) == (
        f"data set 'text_files': no file 'test.csv' below '{tmp_path}'; set data.root or data.options"
    )
    assert refusal(lambda: files(tmp_path, test="test.txt")) == (
        "data set 'text_files': test.txt: .csv, .tsv, .jsonl would be right"
    )
    assert refusal(lambda: files(tmp_path, test="x" * 300 + ".csv")).startswith("data set 'text_files': no file 'xxx")
    assert refusal(lambda: files(tmp_path, test="../test.csv")) == (
        f"data set 'text_files': ../test.csv lies outside of the data root '{tmp_path}'; set data.root"
    )
    (tmp_path / "test.csv").write_bytes(b"text,label\n\xff,b\n")
    assert refusal(files(tmp_path).test).startswith(f"{tmp_path / 'test.csv'}: cannot be read as UTF-8 text: ")


def test_what_the_hub_retries_is_kept_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("huggingface_hub.utils._http")
    with suppress_output():
        logger.warning("retrying in 8 s")
    assert not caplog.records
    logger.warning("somebody else's")
    assert [record.message for record in caplog.records] == ["somebody else's"]
