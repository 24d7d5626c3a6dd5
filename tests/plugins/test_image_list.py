"""Images by a list of paths and labels."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from encoded_images import encoded, load, opened, refusal, targets_of

from kdzoo.api.data import NO_LABEL
from kdzoo.data.loader import Loader
from kdzoo_vision.image_list import ImageList

parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "lists" / "images").mkdir(parents=True)
    for i in range(8):
        (tmp_path / "lists" / "images" / f"{i}.png").write_bytes(encoded(i))
    return tmp_path


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)


def rows(numbers: Sequence[int], labels: Sequence[Any], **more: Any) -> list[dict[str, Any]]:
    return [
        {"path": f"images/{i}.png", "label": label, **{key: values[k] for key, values in more.items()}}
        for k, (i, label) in enumerate(zip(numbers, labels, strict=True))
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_one_list_with_a_column_of_splits(suffix: str, root: Path) -> None:
    labels = ["dog", "cat", None, "dog", "cat", "cat", "dog", "cat"]
    where = ["train"] * 4 + ["val", "val", "test", "test"]
    write(root / f"lists/all{suffix}", rows(range(8), labels, split=where))
    data = opened(ImageList, root, train=f"lists/all{suffix}", split="split")
    assert data.check_form().startswith("8 images decoded; test split of 2 samples")
    data.test_gate.open()
    assert data.classes == ("cat", "dog")
    assert data.part("train").targets.tolist() == [1, 0, NO_LABEL, 1]
    assert (data.part("validation").targets.tolist(), data.part("test").targets.tolist()) == ([0, 0], [1, 0])
    batch = next(Loader(data, torch.device("cpu"), 2).train_batches(0, 0))
    assert batch.inputs.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_numbers_are_the_numbers_of_their_classes(suffix: str, root: Path) -> None:
    write(root / f"lists/train{suffix}", rows(range(5), [10, 2, 0, 2, 10]))
    write(root / f"lists/test{suffix}", rows(range(5, 8), [3, 2, 0]))
    lists = {"train": f"lists/train{suffix}", "test": f"lists/test{suffix}"}
    splits = load(ImageList, root, **lists)
    assert targets_of(splits) == ([10, 2, 0, 2, 10], [3, 2, 0])
    assert splits.classes == tuple(map(str, range(11)))
    assert load(ImageList, root, **lists, classes=12).classes[-1] == "11"
    assert load(ImageList, root, **lists, classes=list("abcdefghijk")).classes[10] == "k"


def test_a_list_without_labels(root: Path) -> None:
    write(root / "lists/train.csv", rows(range(5), [""] * 5))
    write(root / "lists/test.csv", rows(range(5, 8), [""] * 3))
    lists = {"train": "lists/train.csv", "test": "lists/test.csv"}
    assert targets_of(load(ImageList, root, **lists, classes=7)) == ([NO_LABEL] * 5, [NO_LABEL] * 3)
    assert refusal(ImageList, root, **lists) == (
        "data set 'image_list': no training image has a label; data.options.classes would say which classes the "
        "teacher knows, by number or by name"
    )
    write(root / "lists/test.csv", rows(range(5, 8), ["b", "a", "b"]))
    assert targets_of(load(ImageList, root, **lists, classes=["b", "a"]))[1] == [0, 1, 0]


GOOD = rows([0, 1, 2], ["a", "b", "a"])


@pytest.mark.parametrize(
    ("train", "options", "problem"),
    [
        ([*GOOD, {"path": "images/9.png", "label": "a"}], {}, "line 5: no file '{lists}/images/9.png'"),
        ([*GOOD, {"path": "", "label": "a"}], {}, "line 5: a path is text, got ''"),
        (
            [*GOOD, {"path": "../../x.png", "label": "a"}],
            {},
            "line 5: ../../x.png leads to {outside}, outside of the data root '{root}'",
        ),
        (
            [*GOOD, {"path": "images/0.png", "label": "a"}],
            {},
            "line 5: {lists}/images/0.png is listed before, in {lists}/train.csv: line 2; each image belongs in once",
        ),
        (GOOD, {"label": "class"}, "line 2: no column 'class'; the row has path, label"),
        (GOOD, {"split": "label"}, "line 2: the split in 'label' is 'a'; train, validation or test would be right"),
        (GOOD, {"classes": ["a"]}, "line 3: 'b' is no class; the classes are 1 names, a"),
        (
            rows([0, 1], [0, 3]),
            {"classes": 3},
            "line 3: '3' is no class; the classes are the numbers 0..2",
        ),
    ],
)
def test_rows_that_are_not_right(train: list[dict[str, Any]], options: Any, problem: str, root: Path) -> None:
    write(root / "lists/train.csv", train)
    write(root / "lists/test.csv", rows([6], [train[0]["label"]]))
    said = refusal(ImageList, root, **{"train": "lists/train.csv", "test": "lists/test.csv", **options})
    lists, outside = root / "lists", root.parent / "x.png"
    assert said == f"{lists}/train.csv: " + problem.format(lists=lists, root=root, outside=outside)


def test_lists_that_are_not_right(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists, title = root / "lists", "data set 'image_list': "
    write(lists / "train.csv", GOOD)
    options = {"train": "lists/train.csv", "test": "lists/test.csv"}
    assert refusal(ImageList, root, **options) == (
        f"{title}no file 'lists/test.csv' below '{root}'; set data.root or data.options"
    )
    assert refusal(ImageList, root, train="lists/train.txt") == (
        f"{title}lists/train.txt: .csv, .tsv, .jsonl, .parquet would be right"
    )
    assert refusal(ImageList, root, train="../train.csv") == (
        f"{title}../train.csv lies outside of the data root '{root}'; set data.root"
    )
    write(lists / "test.csv", rows([6, 7], ["a", ""]))
    assert refusal(ImageList, root, **options) == (
        f"{lists}/test.csv: line 3: has no label; only training images may have none, and this one is of test"
    )
    write(lists / "test.csv", rows([6], ["c"]))
    assert refusal(ImageList, root, **options) == (
        f"{lists}/test.csv: line 2: 'c' is no class; the classes are 2 names, a, b"
    )
    (lists / "test.csv").write_text("path,label\n")
    assert refusal(ImageList, root, **options) == f"{lists}/test.csv: holds no rows"
    write(lists / "x.jsonl", [{"path": "images/0.png", "label": [1]}])
    assert refusal(ImageList, root, train="lists/x.jsonl") == (
        f"{lists}/x.jsonl: line 1: a label is a name or a whole number, or empty where there is none; got [1]"
    )
    write(lists / "x.parquet", [{"path": "images/0.png", "class": "a"}])
    assert refusal(ImageList, root, train="lists/x.parquet") == (
        f"{lists}/x.parquet: no column 'label'; it has path, class"
    )
    (lists / "x.parquet").write_bytes((lists / "x.parquet").read_bytes()[:-20])
    assert refusal(ImageList, root, train="lists/x.parquet").startswith(
        f"{lists}/x.parquet: cannot be read as parquet:"
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(ImageList, root, train="lists/x.parquet") == (
        f'{lists}/x.parquet: needs pyarrow, which is not installed; pip install "kdzoo[parquet]"'
    )
